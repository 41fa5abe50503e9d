"""Metrics of binary judgements and of predicted activations, as functions of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Metric:
    """Name, direction, range and chance level of a metric.

    Attributes:
        name: Name in results and reports.
        higher_is_better: Direction; None for a number that is not a score, such as a condition of the measurement: it
            gets no arrow, rank or lift.
        low: Lowest possible value; -inf if there is none.
        high: Highest possible value; inf if there is none.
        chance: Expected value of a judge without any information; None if there is no such value.
        on_board: Whether leaderboards show it although it is not the scorer's headline metric, which they always show.
        wanted: Interval in which its mean should lie; if it does not, all rows of the scorer are marked.
    """

    name: str
    higher_is_better: bool | None = True
    low: float = 0.0
    high: float = 1.0
    chance: float | None = None
    on_board: bool = False
    wanted: tuple[float, float] | None = None

    def meets(self, mean: float) -> bool:
        """Check whether a mean lies in the interval `wanted`; true if there is none."""
        return self.wanted is None or self.wanted[0] <= mean <= self.wanted[1]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isnan(value)


def _is_pair(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))


def _mistake(metric: Metric) -> str | None:
    """Return what is wrong with a metric's fields, and what to write; None if nothing."""
    if not isinstance(metric.name, str) or not metric.name.strip():
        return f"has the name {metric.name!r}; write a text that is not blank"
    for field, none in (("low", "-math.inf"), ("high", "math.inf")):
        if not _is_number(value := getattr(metric, field)):
            return f"has {field}={value!r}; write a number, or {field}={none} if there is no limit"
    if not metric.low < metric.high:
        return f"has low={metric.low} and high={metric.high}; write a low below its high"
    chance = metric.chance
    if chance is not None and not (_is_number(chance) and metric.low <= chance <= metric.high):
        return f"has chance={chance!r}; write a number from {metric.low} to {metric.high}, its low and high, or None"
    wanted: object = metric.wanted
    if wanted is not None and not (_is_pair(wanted) and wanted[0] <= wanted[1]):
        return f"has wanted={wanted!r}; write the ends of an interval, such as wanted=(0.4, 0.6), or None"
    if metric.higher_is_better not in (True, False, None):
        return f"has higher_is_better={metric.higher_is_better!r}; write True, False or None"
    return None


def metrics_mistake(metrics: object) -> str | None:
    """Return what is wrong with the metrics that a scorer declares, and what to write; None if nothing."""
    if not isinstance(metrics, tuple | list) or not metrics or not all(isinstance(m, Metric) for m in metrics):
        return f"has the metrics {metrics!r}, but `metrics` has to be a tuple of one or more Metric"
    for metric in metrics:
        if mistake := _mistake(metric):
            return f"has a metric {metric.name!r} that {mistake}"
    names = [metric.name for metric in metrics]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f"has more than one metric named {twice!r}; write another name for each"
    return None


BALANCED_ACCURACY = Metric("balanced_accuracy", chance=0.5)
AUROC = Metric("auroc", chance=0.5)
F1 = Metric("f1")
PRECISION = Metric("precision")
RECALL = Metric("recall")
ACCURACY = Metric("accuracy")
PEARSON = Metric("pearson", low=-1.0, chance=0.0)

CLASSIFICATION = (BALANCED_ACCURACY, AUROC, F1, PRECISION, RECALL, ACCURACY)
"""Metrics of scorers that judge windows one by one; the first is the headline."""


class Counts(NamedTuple):
    """Numbers of judgements by truth and answer, and the metrics that follow from them; nan where not defined.

    Attributes:
        tp: True positives.
        fp: False positives.
        fn: False negatives.
        tn: True negatives.

    Example:
        >>> Counts.of([True, True, False, False], [True, False, False, False]).balanced_accuracy
        0.75
        >>> Counts.of([True, False, False, False], [False] * 4).balanced_accuracy  # always "no" gives the chance level
        0.5
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, truth: Sequence[bool], predicted: Sequence[bool]) -> Counts:
        """Count judgements.

        Raises:
            ValueError: If the numbers of truths and answers differ.
        """
        if len(truth) != len(predicted):
            raise ValueError(f"{len(truth)} truths for {len(predicted)} predictions")
        found = Counter((bool(t), bool(p)) for t, p in zip(truth, predicted, strict=True))
        return cls(found[True, True], found[False, True], found[True, False], found[False, False])

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the hit rates on positives and on negatives; nan unless both occur."""
        if self.tp + self.fn == 0 or self.tn + self.fp == 0:
            return nan
        return (self.tp / (self.tp + self.fn) + self.tn / (self.tn + self.fp)) / 2

    @property
    def accuracy(self) -> float:
        """Share of correct judgements."""
        return (self.tp + self.tn) / sum(self) if sum(self) else nan

    @property
    def precision(self) -> float:
        """Share of positive answers that are correct."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else nan

    @property
    def recall(self) -> float:
        """Share of positives that are found."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; nan if there are neither positives nor positive answers."""
        found = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / found if found else nan


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
    return pearson(mean_ranks(x), mean_ranks(y))


def mean_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1, ties sharing their mean rank.  [values]

    Equal to `scipy.stats.rankdata`, but without the import of SciPy, which takes longer than a small run computes.
    """
    import numpy as np

    _, place, ties = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(ties) - (ties - 1) / 2)[place]
    return ranks


def classification(
    truth: Sequence[bool], predicted: Sequence[bool], probability: Sequence[float] | None = None
) -> dict[str, float]:
    """Return all `CLASSIFICATION` metrics that are defined for these judgements, by name.

    Args:
        truth: Whether each window activates the latent.
        predicted: The judge's answers.
        probability: The judge's probability of "activates"; without it there is no AUROC.

    Example:
        >>> values = classification([True, False], [True, True])
        >>> values["balanced_accuracy"], values["recall"], values["precision"], "auroc" in values
        (0.5, 1.0, 0.5, False)
    """
    counts = Counts.of(truth, predicted)
    values = {
        "balanced_accuracy": counts.balanced_accuracy,
        "f1": counts.f1,
        "precision": counts.precision,
        "recall": counts.recall,
        "accuracy": counts.accuracy,
    }
    if probability is not None:
        values["auroc"] = auroc(truth, probability)
    return {name: value for name, value in values.items() if value == value}
