"""Computes precision, F1 and IoU at the rates at which latents fire in the corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, log2, sqrt
from typing import TYPE_CHECKING, NamedTuple

from saeval.records import NaturalRates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_DRAWS = 4000
_ENOUGH = 10  # minimum latents with nonzero counts for the error of a rate to come from their spread alone


class Tally(NamedTuple):
    """Counts of a judge's answers on one latent's windows under one explanation.

    Attributes:
        rate: Share of the corpus's windows in which the latent fires.
        hits: Activating windows that the judge found.
        positives: Activating windows answered.
        alarms: Total weight of the non-activating windows called activating.
        weight: Total weight of the non-activating windows answered; a window of weight w represents w uniformly drawn
            windows.
        squares: Sum of the squared weights.
    """

    rate: float
    hits: float
    positives: float
    alarms: float
    weight: float
    squares: float


_Side = Callable[[Tally], tuple[float, float, float]]
"""Selects one side of a tally: count, total, and sum of squared weights."""


class KnownJudge(NamedTuple):
    """A judge's error rates as measured by a check.

    Attributes:
        sensitivity: Share of the activating windows that it finds with a true explanation.
        specificity: Share of the others that it rejects.
        windows: Number of non-activating windows that the specificity was measured on.
    """

    sensitivity: float
    specificity: float
    windows: int


def natural_rates(tallies: Sequence[Tally], judge: KnownJudge | None, rng: np.random.Generator) -> NaturalRates | None:
    """Return precision, F1 and IoU at the rate at which latents fire in the corpus.

    With π the share of windows in which a latent fires, recall R and the false positive rate F: precision is
    πR / (πR + (1−π)F), and IoU is πR / (π + (1−π)F). A latent's F is mostly 0 in a few dozen windows, and a mean of
    ratios over latents would be far too high. So rates are pooled over latents with similar π (within a factor of two)
    before ratios are taken; the ratios are averaged, weighted by latents.

    Intervals draw recall and F of each group from beta distributions (Jeffreys) with the number of observations that
    the spread between latents implies. The judge's ceiling is the precision of perfect explanations. If the uncertainty
    of its false alarms exceeds π, a low precision may be due to the judge, so it is marked as not identifiable.

    Returns None if no latent has a rate between 0 and 1 and answers on both kinds of windows.

    Args:
        tallies: One per latent.
        judge: The judge's error rates; None if it was not checked, or there is no judge.
        rng: Random generator for the draws.
    """
    usable = [t for t in tallies if 0 < t.rate < 1 and t.positives and t.weight]
    if not usable:
        return None
    import numpy as np

    groups: dict[int, list[Tally]] = {}
    for tally in usable:
        groups.setdefault(floor(log2(tally.rate)), []).append(tally)
    parts = list(groups.values())
    share = np.array([len(part) for part in parts]) / len(usable)
    rate = np.array([float(np.mean([t.rate for t in part])) for part in parts])
    recall, alarms = (np.array([_pooled(part, side)[0] for part in parts]) for side in (_hits, _alarms))
    drawn = [np.array([_drawn(part, side, rng) for part in parts]) for side in (_hits, _alarms)]
    points = _ratios(rate[:, None], recall[:, None], alarms[:, None])
    spreads = _ratios(rate[:, None], *drawn)
    values = {name: float((share @ found)[0]) for name, found in points.items()}
    ends = {name: np.quantile(share @ found, (0.025, 0.975)) for name, found in spreads.items()}
    ceiling, why = _ceiling(rate, share, judge)
    return NaturalRates(
        rate=float(share @ rate),
        recall=float(share @ recall),
        false_positive_rate=float(share @ alarms),
        **values,
        **{f"{k}_ci95": (min(float(low), values[k]), max(float(high), values[k])) for k, (low, high) in ends.items()},
        ceiling=ceiling,
        not_identifiable=why,
        n=len(usable),
    )


def _hits(tally: Tally) -> tuple[float, float, float]:
    return tally.hits, tally.positives, tally.positives


def _alarms(tally: Tally) -> tuple[float, float, float]:
    return tally.alarms, tally.weight, tally.squares


def _pooled(part: Sequence[Tally], side: _Side) -> tuple[float, float]:
    """Return a pooled rate, and the number of observations that its error corresponds to."""
    import numpy as np

    counted, of, squares = np.array([side(t) for t in part]).T
    rate = float(counted.sum() / of.sum())
    n = float(of.sum() ** 2 / squares.sum())
    m = len(part)
    error2 = float(((counted - rate * of) ** 2).sum()) / float(of.sum()) ** 2 * m / max(m - 1, 1)
    if error2 > 0 and 0 < rate < 1:
        spread = rate * (1 - rate) / error2
        n = spread if (counted > 0).sum() >= _ENOUGH else min(n, spread)
    return rate, n


def _drawn(part: Sequence[Tally], side: _Side, rng: np.random.Generator) -> Floats:
    rate, n = _pooled(part, side)
    found: Floats = rng.beta(rate * n + 0.5, (1 - rate) * n + 0.5, size=_DRAWS)
    return found


def _ratios(rate: Floats, recall: Floats, alarms: Floats) -> dict[str, Floats]:
    """Return precision, F1 and IoU.  [groups, draws] each"""
    import numpy as np

    hits, false = rate * recall, (1 - rate) * alarms
    called = hits + false
    precision = np.divide(hits, called, out=np.zeros_like(called), where=called > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return {"precision": precision, "f1": f1, "iou": hits / (rate + false)}


def _ceiling(rate: Floats, share: Floats, judge: KnownJudge | None) -> tuple[float | None, str]:
    """Return the precision of perfect explanations under a judge, and why a precision is not identifiable."""
    if judge is None:
        return None, "the judge's false alarms are unknown"
    false = (1 - judge.specificity) * judge.windows
    total = judge.windows + 1
    p = (false + 0.5) / total
    half = 1.96 * sqrt(p * (1 - p) / (total + 1))
    ceiling = rate * judge.sensitivity / (rate * judge.sensitivity + (1 - rate) * (1 - judge.specificity))
    found = float(share @ ceiling)
    if half > float(share @ rate):
        return found, f"the judge's false alarms are known to ± {half:.2%} only, and latents fire in {share @ rate:.2%}"
    return found, ""
