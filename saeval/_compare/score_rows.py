"""Builds the rows of a leaderboard from the scores of single latents."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from saeval._compare.stats import interval_method, mean_interval
from saeval.records import MAIN, Metric, ScoreRow

if TYPE_CHECKING:
    import numpy as np

Values = Mapping[int, float]
"""A metric by latent."""


@dataclass(frozen=True)
class ScorerRun:
    """What one scorer found of one variant of a cell's explanations, beside its values.

    Attributes:
        scorer: The scorer's label.
        plugin: Full name and version of the plugin.
        variant: What was scored.
        tried: Latents that the scorer was to be run on.
        skipped: Latents that it passed over for a stated reason.
        unparsed: Judged windows without an answer.
        judge: Model that judged; None for none.
        usd: Dollars spent; None when unknown.
    """

    scorer: str
    plugin: str
    variant: str = MAIN
    tried: int = 0
    skipped: int = 0
    unparsed: int = 0
    judge: str | None = None
    usd: float | None = None


@dataclass(frozen=True)
class Floors:
    """The same metric for baselines' explanations of the same cell.

    Attributes:
        values: The metric by baseline and latent.
        uninformed: Baselines that know nothing of the latent; lift is measured from the highest of them and chance.
    """

    values: Mapping[str, Values] = field(default_factory=dict)
    uninformed: Collection[str] = ()


def score_row(
    scoring: ScorerRun, metric: Metric, values: Values, rng: np.random.Generator, *, words: Iterable[int] = (),
    floors: Floors | None = None,
) -> ScoreRow:  # fmt: skip
    """Return the row of one metric.

    Args:
        scoring: What the scorer found beside this metric's values.
        metric: What the values mean.
        values: The metric by latent, in the order in which it is summed.
        rng: Source of the interval's resamples.
        words: Number of words of each explanation scored, as far as known.
        floors: What the values are held against, beside chance; None for no floor and no lift, as in rows of baselines.
    """
    n = len(values)
    floor, lift = _floor(metric, values, floors) if floors is not None else ({}, None)
    return ScoreRow(
        scorer=scoring.scorer, variant=scoring.variant, plugin=scoring.plugin, metric=metric.name,
        higher_is_better=metric.higher_is_better, on_board=metric.on_board, range=(_bound(metric.low), _bound(metric.high)),
        **_distribution(values, metric, rng), n=n, tried=scoring.tried, failed=scoring.tried - n - scoring.skipped,
        skipped=scoring.skipped, unparsed=scoring.unparsed, coverage=n / scoring.tried if scoring.tried else 0.0,
        floor=floor, lift=lift, judge=scoring.judge, explanation_words=_mean([*words]), usd=scoring.usd,
    )  # fmt: skip


def _bound(bound: float) -> float | None:
    return bound if isfinite(bound) else None


def _distribution(values: Values, metric: Metric, rng: np.random.Generator) -> dict[str, Any]:
    if not values:
        return {"value": None, "median": None, "ci95": None}
    import numpy as np

    x = np.fromiter(values.values(), dtype=np.float64, count=len(values))
    interval = mean_interval(x, rng, low=metric.low, high=metric.high)
    known = interval if np.isfinite(interval).all() else None
    return {"value": float(np.mean(x)), "median": float(np.median(x)), "ci95": known, "method": interval_method(len(x))}


def _floor(metric: Metric, values: Values, floors: Floors) -> tuple[dict[str, float], float | None]:
    """Return the metric of each baseline, and the lift over the highest one that knows nothing of the latent.

    A baseline is compared on the latents that it shares with the explanations, since latents differ in difficulty.
    """
    floor: dict[str, float] = {}
    lifts: list[float] = []
    for name, others in floors.values.items():
        if others:
            floor[name] = sum(others.values()) / len(others)
        if name in floors.uninformed and (common := values.keys() & others.keys()):
            lifts.append(sum(values[i] - others[i] for i in common) / len(common))
    if metric.chance is not None:
        floor["chance"] = metric.chance
        if values:
            lifts.append(sum(values.values()) / len(values) - metric.chance)
    sign = 1 if metric.higher_is_better else -1
    return floor, min((sign * x for x in lifts), default=None)


def _mean(numbers: list[int]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
