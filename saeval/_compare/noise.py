"""Measures uncertainty: noise of single latents' scores, reliability, reruns, and the value of more data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import hypot, inf, isfinite, sqrt
from typing import TYPE_CHECKING, NamedTuple

from saeval._compare.stats import Z95, Interval, combined_interval
from saeval.records import JudgedWindows, Score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LEAST_RELIABILITY = 0.1  # minimum reliability for correcting a correlation


class ScoreNoise(NamedTuple):
    """Noise of one latent's score due to the choice of windows.

    Attributes:
        variance: Variance of the score: the mean over all splits of the windows into halves.
        find_interval: Computes the interval; separate, because a run needs only the variance of most latents.
    """

    variance: float
    find_interval: Callable[[], Interval]

    @property
    def interval(self) -> Interval:
        """95 % interval of the score."""
        return self.find_interval()


def score_noise(score: Score, judged: JudgedWindows | None = None) -> ScoreNoise | None:
    """Return the noise of a latent's headline score; None for scores that are not a share or ranking of windows.

    The variance is that of split halves, averaged over all splits, which has a closed form: for shares, the sample
    variance over n; for AUROC, that of DeLong, DeLong and Clarke-Pearson (1988). Intervals are Wilson's for shares,
    combined for balanced accuracy ("MOVER"), and Newcombe's (2006) for AUROC, so they are not empty at 0 and 1. Assumes
    that windows are independent.

    Args:
        score: The score.
        judged: Its judged windows as columns, if at hand; default: its `outcomes`.
    """
    if judged is None:
        judged = JudgedWindows.of(score.outcomes)
    if score.status != "ok" or judged.status.count("ok") < 2:
        return None
    headline = next(iter(score.values), "")
    if headline in ("balanced_accuracy", "accuracy"):
        return _of_shares([right for right in sides_right(judged, headline) if right])
    return _of_ranking(judged, score.values["auroc"]) if headline == "auroc" else None


def sides_right(judged: JudgedWindows, headline: str) -> list[list[bool]]:
    """Return which answered windows were judged correctly, for each group whose shares a score averages.

    The groups are activating windows and others; for accuracy, all windows are one group.

    Args:
        judged: A latent's windows.
        headline: Name of the score.
    """
    activating: list[bool] = []
    others: list[bool] = []
    for active, predicted, status in zip(judged.active, judged.predicted, judged.status, strict=True):
        if status == "ok" and predicted is not None:
            (activating if active or headline == "accuracy" else others).append(predicted == active)
    return [activating, others]


def _of_shares(sides: Sequence[Sequence[bool]]) -> ScoreNoise | None:
    """Return the noise of the mean of one or two shares."""
    if not sides or min(map(len, sides)) < 2:
        return None
    weights = [1 / len(sides)] * len(sides)
    shares = [sum(side) / len(side) for side in sides]
    variances = [p * (1 - p) / (len(side) - 1) for p, side in zip(shares, sides, strict=True)]
    variance = sum(w * w * v for w, v in zip(weights, variances, strict=True))
    return ScoreNoise(
        variance,
        lambda: combined_interval(weights, shares, [wilson(sum(side), len(side)) for side in sides]),
    )


def wilson(hits: int, n: int) -> Interval:
    """Return the score interval of a share (Wilson 1927)."""
    p, z, z2 = hits / n, Z95, Z95 * Z95
    centre, half = (p + z2 / (2 * n)) / (1 + z2 / n), z * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))


def _of_ranking(judged: JudgedWindows, area: float) -> ScoreNoise | None:
    import numpy as np

    rows = zip(judged.active, judged.probability, judged.status, strict=True)
    valued = [(active, value) for active, value, status in rows if status == "ok" and value is not None]
    up, down = (np.array([v for active, v in valued if active is side]) for side in (True, False))
    if min(len(up), len(down)) < 2:
        return None
    above = (up[:, None] > down).astype(float) + (up[:, None] == down) / 2
    variance = float(above.mean(axis=1).var(ddof=1) / len(up) + above.mean(axis=0).var(ddof=1) / len(down))
    return ScoreNoise(variance, partial(_newcombe, area, len(up), len(down)))


def _newcombe(area: float, m: int, n: int) -> Interval:
    """Return the interval of an AUROC: areas within 1.96 of their own standard errors (Newcombe 2006, method 5)."""
    from scipy.optimize import brentq

    more = (m + n) / 2 - 1

    def away(true: float, side: int) -> float:
        spread = 1 + more * (1 - true) / (2 - true) + more * true / (1 + true)
        return side * (true - area) - Z95 * sqrt(true * (1 - true) * spread / (m * n))

    near = 1e-9  # keeps the search away from areas of 0 and 1, which have no error
    low = brentq(away, 0, area - near, args=(-1,)) if area > near else 0.0
    high = brentq(away, area + near, 1, args=(1,)) if area < 1 - near else 1.0
    return float(low), float(high)


def reliability(scores: ArrayLike, variances: ArrayLike) -> float | None:
    """Return the share of the variance between latents that is not noise of their windows.

    It is the expected correlation with a second scoring on other windows of the same latents: split-half reliability
    for the full number of windows (Rulon 1939), averaged over all splits. It is 0 if noise explains all variance, and
    None for fewer than three latents with known noise or for equal scores.

    Args:
        scores: One per latent.  [latents]
        variances: Noise variance of each.  [latents]
    """
    import numpy as np

    x, error = np.asarray(scores, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    known = np.isfinite(error)
    if known.sum() < 3 or (total := float(x[known].var(ddof=1))) <= 0:
        return None
    return max(0.0, 1 - float(error[known].mean()) / total)


def disattenuated(correlation: float | None, reliabilities: Sequence[float | None]) -> float | None:
    """Return a correlation corrected for the noise of both scores (Spearman 1904).

    Returns None without a correlation, or if a reliability is unknown or below .1.

    Example:
        >>> round(disattenuated(0.4, (0.5, 0.8)), 3), disattenuated(0.4, (0.05, 0.8)), disattenuated(0.4, (None, 0.8))
        (0.632, None, None)
    """
    known = [r for r in reliabilities if r is not None and r >= _LEAST_RELIABILITY]
    if correlation is None or len(known) < len(reliabilities):
        return None
    return max(-1.0, min(1.0, correlation / sqrt(known[0] * known[1])))


def prediction_interval(
    value: float, ci95: Interval, bounds: tuple[float | None, float | None] = (None, None), shared: float = 0.0
) -> Interval:
    """Return the 95 % prediction interval of the mean in a rerun with other latents.

    Both runs have sampling error, so without shared shifts it is √2 times as wide as the confidence interval.

    Args:
        value: The mean.
        ci95: Its confidence interval.
        bounds: Minimum and maximum of the metric.
        shared: Variance of shifts that all latents of a run share (judge, explainer, corpus), if known. Each
            run has its own shift.
    """
    extra = Z95 * sqrt(2 * shared)
    low, high = (hypot(sqrt(2) * (value - ci95[0]), extra), hypot(sqrt(2) * (ci95[1] - value), extra))
    least, greatest = (-inf if bounds[0] is None else bounds[0]), (inf if bounds[1] is None else bounds[1])
    return max(value - low, least), min(value + high, greatest)


class Components(NamedTuple):
    """Variance components of scores.

    Attributes:
        latents: Variance between latents' true scores.
        windows: Variance of one latent's score due to the choice of windows.
        noise: By repeated step (`judge`, `explainer`, `corpus`): variance of one latent's score between repetitions.
        shared: By repeated step: variance of a shift that all latents of a run share.
    """

    latents: float
    windows: float
    noise: Mapping[str, float]
    shared: Mapping[str, float]


class Halves(NamedTuple):
    """Scores of the same latents, each time explained from and scored on one half of the corpus.

    Attributes:
        scores: In each half.  [2][latents]
        variances: Noise of each score by its windows and by answers to them; nan where unknown.  [2][latents]
    """

    scores: tuple[Sequence[float], Sequence[float]]
    variances: tuple[Sequence[float], Sequence[float]]


def components(
    scores: ArrayLike,
    variances: ArrayLike,
    repeats: Mapping[str, tuple[ArrayLike, ArrayLike]],
    halves: Halves | None = None,
) -> Components:
    """Return variance components of a cell's scores.

    In a repeat, the same latents are scored twice with one step redone. Half the variance of the differences is the
    noise of single latents. Their squared mean, minus what that noise explains, is twice the variance of a shared
    shift; negative estimates become 0. The noise of the first repeated step is part of the noise of windows and of
    later repeats, and is subtracted there.

    Halves of the corpus share no text. Half the variance of their differences, minus the noise of windows (known for
    each half) and of the explainer, is noise of the text. A whole corpus has twice the text, and so half of this noise.
    The same holds for the shift.

    Args:
        scores: One per latent.  [latents]
        variances: Noise of each due to windows and answers; nan if unknown.  [latents]
        repeats: By source, two scores of the same latents.
        halves: The scores on halves of the corpus.
    """
    import numpy as np

    x, error = np.asarray(scores, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    noise: dict[str, float] = {}
    shared = {}
    for source, (one, other) in repeats.items():
        d = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
        spread = float(d.var(ddof=1))
        shared[source] = max(0.0, (float(d.mean()) ** 2 - spread / len(d)) / 2)
        noise[source] = max(0.0, spread / 2 - sum(noise.values()))
    if halves is not None:
        d = np.asarray(halves.scores[0], dtype=np.float64) - np.asarray(halves.scores[1], dtype=np.float64)
        drawn = np.asarray(halves.variances, dtype=np.float64).mean(axis=0)
        of_windows = float(np.nanmean(drawn)) if np.isfinite(drawn).any() else 0.0
        spread = float(d.var(ddof=1))
        shared["corpus"] = max(0.0, (float(d.mean()) ** 2 - spread / len(d)) / 2) / 2
        noise["corpus"] = max(0.0, spread / 2 - of_windows - noise.get("explainer", 0.0)) / 2
    seen = float(np.nanmean(error)) if np.isfinite(error).any() else 0.0
    windows = max(0.0, seen - noise.get("judge", 0.0))
    latents = max(0.0, float(x.var(ddof=1)) - windows - sum(noise.values()))
    return Components(latents, windows, noise, shared)


def worth_of_more(latents: float, windows: float, fixed: float, per_window: float) -> dict[str, float]:
    """Return the relative decrease of a mean's standard error if 10 % more money is spent on latents or on windows.

    Args:
        latents: Variance between latents' true scores.
        windows: Variance of one latent's score by its windows.
        fixed: Cost of a latent independent of its number of windows: its explanation.
        per_window: Cost of all its windows.

    Example:
        >>> {k: round(v, 3) for k, v in worth_of_more(0.01, 0.01, 1.0, 1.0).items()}
        {'latents': 0.047, 'windows': 0.043}
    """
    total = latents + windows
    if total <= 0 or per_window <= 0 or not isfinite(fixed + per_window):
        return {"latents": 0.0, "windows": 0.0}
    more = 1 + 0.1 * (fixed + per_window) / per_window
    return {"latents": 1 - sqrt(1 / 1.1), "windows": 1 - sqrt((latents + windows / more) / total)}
