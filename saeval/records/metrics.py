"""Metrics of binary judgements and of predictions, and intervals for them: plain functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        name: As it stands in results and reports.
        higher_is_better: Direction.
        low: Least value it can take; -inf where there is none.
        high: Greatest value it can take; inf where there is none.
        chance: Value that a judge without any information gets; None when there is no such value.
    """

    name: str
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0
    chance: float | None = None


BALANCED_ACCURACY = Metric("balanced_accuracy", chance=0.5)
AUROC = Metric("auroc", chance=0.5)
F1 = Metric("f1")
PRECISION = Metric("precision")
RECALL = Metric("recall")
ACCURACY = Metric("accuracy")
PEARSON = Metric("pearson", low=-1.0, chance=0.0)

CLASSIFICATION = (BALANCED_ACCURACY, AUROC, F1, PRECISION, RECALL, ACCURACY)
"""Metrics of scorers that judge windows one by one; the first is the headline."""


def _counts(truth: ArrayLike, predicted: ArrayLike) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives."""
    import numpy as np

    t, p = np.asarray(truth, dtype=bool), np.asarray(predicted, dtype=bool)
    if t.shape != p.shape:
        raise ValueError(f"{t.shape} truths for {p.shape} predictions")
    return int((t & p).sum()), int((~t & p).sum()), int((t & ~p).sum()), int((~t & ~p).sum())


def balanced_accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of the hit rates on positives and on negatives; nan unless both occur.

    Example:
        >>> balanced_accuracy([True, True, False, False], [True, False, False, False])
        0.75
        >>> balanced_accuracy([True, False, False, False], [False] * 4)  # who always says no gets chance
        0.5
    """
    tp, fp, fn, tn = _counts(truth, predicted)
    if tp + fn == 0 or tn + fp == 0:
        return float("nan")
    return (tp / (tp + fn) + tn / (tn + fp)) / 2


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share judged right; nan for no judgements."""
    tp, fp, fn, tn = _counts(truth, predicted)
    total = tp + fp + fn + tn
    return (tp + tn) / total if total else float("nan")


def precision(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of positive answers that are right; nan when nothing was called positive."""
    tp, fp, _, _ = _counts(truth, predicted)
    return tp / (tp + fp) if tp + fp else float("nan")


def recall(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of positives found; nan when there are none."""
    tp, _, fn, _ = _counts(truth, predicted)
    return tp / (tp + fn) if tp + fn else float("nan")


def f1(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Harmonic mean of precision and recall; nan when there is neither a positive nor a positive answer."""
    tp, fp, fn, _ = _counts(truth, predicted)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan")


def auroc(truth: ArrayLike, values: ArrayLike) -> float:
    """Probability that a positive gets a higher value than a negative, ties counting half; nan unless both occur.

    Example:
        >>> auroc([True, True, False], [0.9, 0.4, 0.4])
        0.75
    """
    import numpy as np

    t, v = np.asarray(truth, dtype=bool), np.asarray(values, dtype=np.float64)
    if t.shape != v.shape:
        raise ValueError(f"{t.shape} truths for {v.shape} values")
    positives, negatives = int(t.sum()), int((~t).sum())
    if positives == 0 or negatives == 0 or np.isnan(v).any():
        return float("nan")
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank among ties, from 1
    return float((ranks[t].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Linear correlation; nan when either side is constant.

    Example:
        >>> pearson([1, 2, 3], [2, 4, 6])
        1.0
        >>> pearson([1, 2, 3], [5, 5, 5])
        nan
    """
    import numpy as np

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return min(max(float(a @ b) / scale, -1.0), 1.0) if scale > 0 else float("nan")


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation of the ranks, ties sharing their mean rank; nan when either side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def classification(
    truth: Sequence[bool], predicted: Sequence[bool], probability: Sequence[float] | None = None
) -> dict[str, float]:
    """Return all `CLASSIFICATION` metrics that are defined for these judgements, by name.

    Args:
        truth: Whether each window activates the latent.
        predicted: What the judge said.
        probability: The judge's probability of "activates"; without it there is no AUROC.

    Example:
        >>> values = classification([True, False], [True, True])
        >>> values["balanced_accuracy"], values["recall"], values["precision"], "auroc" in values
        (0.5, 1.0, 0.5, False)
    """
    values = {
        "balanced_accuracy": balanced_accuracy(truth, predicted),
        "f1": f1(truth, predicted),
        "precision": precision(truth, predicted),
        "recall": recall(truth, predicted),
        "accuracy": accuracy(truth, predicted),
    }
    if probability is not None:
        values["auroc"] = auroc(truth, probability)
    return {name: value for name, value in values.items() if value == value}


_EQUAL = 1e-3  # share of a metric's range within which scores count as equal


def mean_interval(
    values: ArrayLike, rng: np.random.Generator, *, low: float, high: float, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Bootstrap interval for the mean over latents, safe at the bounds of the metric's range.

    Bias-corrected and accelerated bootstrap (BCa, Efron 1987), which follows skewed scores; stretched about the mean by
    t(n-1)/z · √(n/(n-1)), since for few latents the plain one is too narrow; and cut off at the range. It assumes
    that latents are drawn independently of each other. Where values are equal, resampling sees no spread. If all are,
    the interval reaches as far as the mean would move if the largest share of latents that n draws can miss
    (the rule of three, `1 - (1-level)^(1/n)`) sat at the end of the range; if a share of them are, equal being
    what differs by a thousandth of the range or less, it reaches at least as far as the square of that share of
    the way. So it is never of zero width, and values that differ by noise alone get the width of equal ones. A metric
    without bounds is taken to reach as far again as the largest value lies from 0; of a single value of it, nothing
    can be said.

    Args:
        values: One score a latent.
        rng: Source of the resamples.
        low: Least value the metric can take, or -inf.
        high: Greatest value the metric can take, or inf.
        level: Coverage aimed at.
        resamples: Number of bootstrap means.

    Example:
        >>> from saeval.plugin import derive_rng
        >>> low, high = mean_interval([0.6, 0.7, 0.8, 0.9] * 10, derive_rng(0), low=0, high=1)
        >>> print(f"{low:.2f} to {high:.2f}")
        0.72 to 0.79
        >>> mean_interval([1.0] * 10, derive_rng(0), low=0, high=1)[0] < 0.8  # ten equal scores prove little
        True
    """
    import numpy as np
    from scipy.special import ndtr, ndtri, stdtrit

    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n == 0:
        return float("nan"), float("nan")
    mean = float(x.mean())
    if n == 1:
        return low, high
    if not np.isfinite([low, high]).all():
        reached = float(np.abs(x).max())
        low, high = max(low, -2 * reached), min(high, 2 * reached)
    ordered = np.sort(x)
    equal = np.searchsorted(ordered, ordered + _EQUAL * (high - low), side="right") - np.arange(n)
    reach = (1 - (1 - level) ** (1 / n)) * float(equal.max() / n) ** 2
    z = float(ndtri((1 + level) / 2))
    stretch = float(stdtrit(n - 1, (1 + level) / 2)) / z * np.sqrt(n / (n - 1))
    means = x[rng.integers(0, n, size=(resamples, n))].mean(axis=1)
    away = (x - mean) / (float(np.abs(x - mean).max()) or 1.0)  # in units of the largest: powers of tiny ones vanish
    squares = float((away**2).sum())
    acceleration = float((away**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    bias = float(ndtri(np.clip(((means < mean).mean() + (means <= mean).mean()) / 2, 0.001, 0.999)))
    moved = bias + np.array([-z, z])
    a, b = np.quantile(means, ndtr(bias + moved / (1 - acceleration * moved)))
    below, above = (
        max((mean - float(a)) * stretch, (mean - low) * reach),
        max((float(b) - mean) * stretch, (high - mean) * reach),
    )
    return max(low, mean - below), min(high, mean + above)
