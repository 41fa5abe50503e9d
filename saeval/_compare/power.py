"""Computes the power of a paired comparison with a given number of latents, and its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

_ALPHA = 0.05
_EQUAL = 1e-9
_RUNS_PER_END = 200  # runs drawn for each end of an interval


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


def power_interval(differences: ArrayLike, latents: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return an interval of the power of `paired_power`: its values at both ends of the mean difference's interval.

    Power is very uncertain if it is estimated from few latents, because a chance difference between them counts as
    real. The differences are moved so that their mean is each end of its 95 % interval, that of Student's t. It covers
    the power in 92 to 100 % of samples of 20 and 50 latents, and in 71 and 89 % if only one latent in twenty differs.
    Equal differences show no spread, so it is then a point.

    Args:
        differences: One per latent, at least two.  [given latents]
        latents: Latents of a run.
        rng: Random generator for the runs and flips.

    Example:
        >>> from saeval.plugin import derive_rng
        >>> power_interval([0.1] * 20, 50, derive_rng(0)), power_interval([0.0] * 20, 50, derive_rng(0))
        ((1.0, 1.0), (0.0, 0.0))
    """
    import numpy as np
    from scipy.special import stdtrit

    d = np.asarray(differences, dtype=np.float64)
    half = float(stdtrit(len(d) - 1, 0.975)) * float(d.std(ddof=1)) / len(d) ** 0.5
    least, greatest = (paired_power(d + moved, latents, rng, runs=_RUNS_PER_END) for moved in (-half, half))
    return least, greatest
