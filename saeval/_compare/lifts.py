"""Computes lifts: scores above those of uninformed explanations by the same judge, with floors pooled over cells.

A judge that never reads the explanation can still score two dictionaries differently, because their windows differ. The
floor of a cell is the score of its windows under uninformed explanations; lift is score minus floor. Floors are
estimates from part of the latents, so they are pooled over cells as far as the data allow: where floors agree, a
difference of lifts is as precise as a difference of scores; where they differ, the difference is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AGREE = 30.0  # prior odds that true floors agree between cells; keeps the power of raw scores (docs/metrics.md)
_SCALE = 0.4  # prior scale of their spread if they differ, in standard deviations of one latent's floor
_STEPS = 24  # grid points of the integral over that spread
_REACH = 4.0  # the largest spread considered, in units of its prior scale


@dataclass(frozen=True)
class Paired:
    """Scores of one cell, and the floors of some of its latents.

    Attributes:
        own: Mean score over all latents.
        error: Its standard error.
        shared_own: Mean score over the latents that have a floor.
        floor: Mean floor.
        m: Number of latents that have a floor.
        covariance: Sample variances of those scores and floors, and their covariance.
        least_error: Lower bound for the lift's standard error: a few latents prove little even if they are similar.
        shared: Identity of the floor; cells with equal ones share a floor. Empty if the floor is the cell's own.
    """

    own: float
    error: float
    shared_own: float
    floor: float
    m: int
    covariance: tuple[float, float, float]
    least_error: float = 0.0
    shared: str = ""


@dataclass(frozen=True)
class Lifts:
    """Lifts of several cells under one judge.

    Attributes:
        values: The lifts.  [cells]
        covariance: Covariance of their errors, which share the common floor's error.  [cells, cells]
        floors: Floors after pooling.  [cells]
        spread: Posterior mean of the standard deviation of true floors between cells.
    """

    values: NDArray[np.float64]
    covariance: NDArray[np.float64]
    floors: NDArray[np.float64]
    spread: float


def lifts(cells: Sequence[Paired]) -> Lifts:
    """Return the lifts of cells scored by one judge, using a random-effects model of their floors.

    1. The floor of all latents of a cell is predicted from that of the latents judged twice, by regression on the
       scores (double sampling, Cochran 1977, §12.7): if a judge looks only at the windows, score and floor are equal.
    2. True floors vary between cells with standard deviation τ about a common mean. In the prior, τ is 0 with odds of
       30 to 1; otherwise it is half-normal with a scale of .4 standard deviations of one latent's floor. Means and
       covariances are averaged over the posterior of τ, so every interval includes the uncertainty of τ.
    3. Given the floor, the score is corrected for the part of its error that it shares with the floor.

    A floor that several cells share counts once when floors are pooled: it is the mean of their predictions, weighted
    by precision, and as if the latents of a cell with fewer were among those of the others. Step 3 uses each cell's own
    prediction, which belongs to the latents of its score; explainers fail on different ones.

    Assumes that latents are drawn independently and that errors are nearly normal.
    """
    import numpy as np

    own = np.array([c.own for c in cells])
    error = np.array([c.error for c in cells])
    m = np.array([c.m for c in cells], dtype=np.float64)
    x_variance, f_variance = _variances(cells)
    r = _correlation(cells)
    both = r * np.sqrt(x_variance * f_variance)
    slope = np.divide(both, x_variance, out=np.zeros_like(both), where=x_variance > 0)
    floor = np.array([c.floor for c in cells]) + slope * (own - np.array([c.shared_own for c in cells]))
    # The error of all scores is that of the rows: the variance of the latents judged twice would give parts that do not
    # add up to it.
    floor_error2 = f_variance * (1 - r**2) / m + slope**2 * error**2 + 1e-12
    place, mean_of = _distinct(cells, 1 / floor_error2)
    floors_once = mean_of @ floor
    in_both = np.minimum.outer(floor_error2, floor_error2)  # covariances of predictions of one floor
    errors_once = np.diag(mean_of @ in_both @ mean_of.T)
    carried = slope * error**2 / floor_error2  # regression of the score's error on the floor's error
    rest = np.maximum(error**2 - carried**2 * floor_error2, 0.0)

    taus, weights = _spread(floors_once, errors_once, float(np.sqrt(np.median(f_variance))))
    means, covariances, floors = [], [], []
    for tau in taus:
        pooled, covariance = _pooled(floors_once, errors_once, tau)
        keep = 1 - carried
        means.append(own - carried * floor - keep * pooled[place])
        covariances.append(np.diag(rest) + np.outer(keep, keep) * covariance[np.ix_(place, place)])
        floors.append(pooled[place])
    values = np.average(means, axis=0, weights=weights)
    away = np.array(means) - values
    covariance = np.average(covariances, axis=0, weights=weights) + (away * weights[:, None]).T @ away
    lacking = np.maximum(np.array([c.least_error for c in cells]) ** 2 - np.diag(covariance), 0.0)
    return Lifts(
        values,
        covariance + np.diag(lacking),
        np.average(floors, axis=0, weights=weights),
        float(weights @ taus),
    )


def _distinct(cells: Sequence[Paired], precision: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the place of each cell's floor among the distinct floors, and the averages over the cells of each.

    Args:
        cells: The cells.
        precision: Weight of each cell's prediction of its floor.  [cells]

    Returns:
        places: [cells]
        averages: Weights that sum to 1 for each floor.  [distinct floors, cells]
    """
    import numpy as np

    names = [cell.shared or i for i, cell in enumerate(cells)]
    distinct = {name: place for place, name in enumerate(dict.fromkeys(names))}
    places = np.array([distinct[name] for name in names], dtype=np.intp)
    member = np.where(places == np.arange(len(distinct))[:, None], precision, 0.0)
    return places, member / member.sum(axis=1, keepdims=True)


def _variances(cells: Sequence[Paired]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variances of scores and floors over latents, shrunk towards those of all cells if latents are few."""
    import numpy as np

    each = np.array([c.covariance[:2] for c in cells])
    weight = np.array([max(c.m - 1, 0) for c in cells], dtype=np.float64)
    common = (each * weight[:, None]).sum(axis=0) / max(weight.sum(), 1.0)
    leaning = 4.0  # weight of the common variances, in degrees of freedom
    mixed = (each * weight[:, None] + leaning * common) / (weight + leaning)[:, None]
    return mixed[:, 0], mixed[:, 1]


def _correlation(cells: Sequence[Paired]) -> float:
    """Return the correlation of score and floor over the latents within cells."""
    import numpy as np

    sums = np.array([np.multiply(c.covariance, max(c.m - 1, 0)) for c in cells]).sum(axis=0)
    scale = float(np.sqrt(sums[0] * sums[1]))
    return float(np.clip(sums[2] / scale, -1.0, 1.0)) if scale > 0 else 0.0


def _spread(
    floor: NDArray[np.float64], error2: NDArray[np.float64], sd: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values of τ and their posterior weights, which sum to 1."""
    import numpy as np

    scale = _SCALE * sd
    if len(floor) < 2 or scale <= 0:
        return np.zeros(1), np.ones(1)
    taus = np.concatenate([[0.0], (np.arange(_STEPS) + 0.5) / _STEPS * _REACH * scale])
    prior = np.exp(-0.5 * (taus / scale) ** 2)
    prior[0] = _AGREE * prior[1:].sum()
    logs = np.array([_log_likelihood(floor, error2 + tau**2) for tau in taus])
    weights = prior * np.exp(logs - logs.max())
    return taus, weights / weights.sum()


def _log_likelihood(floor: NDArray[np.float64], variance: NDArray[np.float64]) -> float:
    """Return the log-likelihood of floors about an unknown common mean, restricted (REML)."""
    import numpy as np

    weight = 1 / variance
    mean = float(weight @ floor / weight.sum())
    return float(-0.5 * (np.log(variance).sum() + np.log(weight.sum()) + weight @ (floor - mean) ** 2))


def _pooled(
    floor: NDArray[np.float64], error2: NDArray[np.float64], tau: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return floors shrunk to their common mean, and the covariance of their errors, for a given τ."""
    import numpy as np

    weight = 1 / (error2 + tau**2)
    mean = float(weight @ floor / weight.sum())
    kept = tau**2 / (error2 + tau**2)
    covariance = np.diag(kept * error2) + np.outer(1 - kept, 1 - kept) / weight.sum()
    return kept * floor + (1 - kept) * mean, covariance
