"""Tests, intervals and agreement for comparisons: plain functions of numbers, each saying what it assumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import hypot
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_TILE = 500  # resamples at a time


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979), in the order given.

    Rejecting where the corrected value is at most .05 keeps the chance of any false rejection at .05, whatever the
    dependence between the tests. Assumes that each p value holds for itself.
    """
    corrected = [0.0] * len(ps)
    largest = 0.0
    for step, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, ps[i] * (len(ps) - step)))
        corrected[i] = largest
    return corrected


def paired_p(differences: ArrayLike, rng: np.random.Generator, resamples: int = 9999) -> float:
    """Return the two-sided p value of a mean difference of 0: a permutation test that flips signs.

    Assumes that pairs are independent of each other, and that without an effect a difference is as likely to have
    either sign (exact then; for other symmetric-in-the-mean cases it holds for many latents). nan below two pairs.

    Args:
        differences: One a latent: its score on one side minus that on the other.  [latents]
        rng: Source of the flips.
        resamples: Number of flips of all signs; p is at least 1 / (resamples + 1).
    """
    import numpy as np

    d = np.asarray(differences, dtype=np.float64).round(12)
    if len(d) < 2:
        return float("nan")
    seen = abs(d.sum())
    extreme = sum(
        int((np.abs((2.0 * rng.integers(0, 2, size=(k, len(d))) - 1) @ d) >= seen - 1e-9).sum())
        for k in _tiles(resamples)
    )
    return (extreme + 1) / (resamples + 1)


def unpaired_p(a: ArrayLike, b: ArrayLike, rng: np.random.Generator, resamples: int = 9999) -> float:
    """Return the two-sided p value of equal means: a permutation test of the difference over its standard error.

    Exact where the two sides have the same distribution when there is no effect; since the difference is divided by
    its standard error, it also holds for sides that differ in spread and in number, for many latents (Janssen 1997).
    Assumes that all latents are independent of each other. nan with fewer than two latents on a side.

    Args:
        a: Scores of one side.  [latents]
        b: Scores of the other.  [other latents]
        rng: Source of the permutations.
        resamples: Number of permutations; p is at least 1 / (resamples + 1).
    """
    import numpy as np

    x, y = (np.asarray(side, dtype=np.float64).round(12) for side in (a, b))
    if min(len(x), len(y)) < 2:
        return float("nan")
    both = np.concatenate([x, y])
    both = both - both.mean()
    seen = _studentised(both[None, :], len(x))[0]
    extreme = 0
    for k in _tiles(resamples):
        mixed = rng.permuted(np.broadcast_to(both, (k, len(both))), axis=1)
        extreme += int((_studentised(mixed, len(x)) >= seen * (1 - 1e-9)).sum())
    return (extreme + 1) / (resamples + 1)


def _studentised(rows: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return |difference| over its standard error for each row, whose first n values are one side.  [rows]"""
    import numpy as np

    one, other = rows[:, :n], rows[:, n:]
    difference = np.abs(one.mean(axis=1) - other.mean(axis=1))
    error = np.sqrt(one.var(axis=1, ddof=1) / one.shape[1] + other.var(axis=1, ddof=1) / other.shape[1])
    difference[difference < 1e-12] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: NDArray[np.float64] = np.nan_to_num(difference / error, nan=0.0, posinf=np.inf)
    return ratio


def _tiles(total: int) -> list[int]:
    return [min(_TILE, total - start) for start in range(0, total, _TILE)]


def combined_interval(
    weights: Sequence[float], values: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Return the interval of a weighted sum of independent estimates, from the interval of each.

    Each side of the sum's interval is the root of the summed squares of the sides it is made of, so that skewed
    intervals stay skewed ("MOVER", Zou and Donner 2008). Assumes that the estimates are independent: for the difference
    of two SAEs, weights 1 and -1.
    """
    total = sum(w * v for w, v in zip(weights, values, strict=True))
    sides = [
        (w * (v - low), w * (high - v)) if w >= 0 else (-w * (high - v), -w * (v - low))
        for w, v, (low, high) in zip(weights, values, intervals, strict=True)
    ]
    return total - hypot(*(below for below, _ in sides)), total + hypot(*(above for _, above in sides))


def krippendorff_alpha(answers: Sequence[Sequence[Hashable | None]]) -> float:
    """Return Krippendorff's alpha for answers without order: 1 for full agreement, 0 for that of chance.

    Units with fewer than two answers are left out. nan where all answers are the same, for then nothing tells
    agreement from habit. Assumes that judges are interchangeable and units independent.

    Args:
        answers: A row a judge, an answer a unit, None where there is none.  [judges, units]
    """
    totals: Counter[Hashable] = Counter()
    disagreement = 0.0
    for unit in zip(*answers, strict=True):
        counts = Counter(answer for answer in unit if answer is not None)
        n = counts.total()
        if n >= 2:
            totals += counts
            disagreement += (n * n - sum(c * c for c in counts.values())) / (n - 1)
    n = totals.total()
    expected = n * n - sum(c * c for c in totals.values())
    return 1 - (n - 1) * disagreement / expected if expected else float("nan")
