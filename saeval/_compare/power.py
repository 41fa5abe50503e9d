"""Computes the power of a paired comparison with a given number of latents, and its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval._compare.stats import mean_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

_ALPHA = 0.05
_EQUAL = 1e-9


def paired_power(
    differences: ArrayLike, latents: int, rng: np.random.Generator, *, runs: int = 500, flips: int = 999
) -> float:
    """Return the power of the paired test for a positive mean difference in runs with this many latents.

    Runs are drawn with replacement from the given latents. In each, the two-sided test at 5 % flips signs, as
    `stats.paired_p` does. Therefore a difference that comes from a few latents is detected in few runs.

    Args:
        differences: One per latent.  [given latents]
        latents: Latents of a run.
        rng: Random generator for the runs and flips.
        runs: Runs to draw.
        flips: Flips of all signs, the same in each run.

    Example:
        >>> from saeval.plugin import derive_rng
        >>> paired_power([0.1] * 9 + [0.0], 50, derive_rng(0)), paired_power([0.1, -0.1] * 9, 50, derive_rng(0)) < 0.1
        (1.0, True)
    """
    import numpy as np

    d = np.asarray(differences, dtype=np.float64)
    drawn = d[rng.integers(0, len(d), size=(runs, latents))]
    signs = 2.0 * rng.integers(0, 2, size=(flips, latents)) - 1
    seen = drawn.sum(axis=1)
    as_extreme = (np.abs(signs @ drawn.T) >= np.abs(seen) - _EQUAL).sum(axis=0)
    found = ((1 + as_extreme) / (1 + flips) <= _ALPHA) & (seen > 0)
    return float(found.mean())


def power_interval(
    differences: ArrayLike, latents: int, rng: np.random.Generator, *, low: float, high: float, runs: int = 200
) -> tuple[float, float]:
    """Return an interval of the power of `paired_power`: its values at both ends of the mean difference's interval.

    Power is very uncertain if it is estimated from few latents, because a chance difference between them counts as
    real. The differences are moved so that their mean is each end of its 95 % interval.

    Args:
        differences: One per latent.  [given latents]
        latents: Latents of a run.
        rng: Random generator for resamples, runs and flips.
        low: Minimum of the metric, or -inf.
        high: Maximum of the metric, or inf.
        runs: Runs to draw at each end.

    Example:
        >>> from saeval.plugin import derive_rng
        >>> power_interval([0.1, -0.1, 0.2, 0.3] * 5, 50, derive_rng(0), low=0, high=1)[1]
        1.0
    """
    import numpy as np

    d = np.asarray(differences, dtype=np.float64)
    ends = mean_interval(d, rng, low=low - high, high=high - low)
    least, greatest = (paired_power(d - d.mean() + end, latents, rng, runs=runs) for end in ends)
    return least, greatest
