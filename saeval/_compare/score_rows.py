"""Builds the rows of a leaderboard from the scores of single latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from saeval._compare.stats import depends_p, interval_method, least_error, mean_interval
from saeval.records import MAIN, FloorSample, Metric, ScoreRow

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
        windows: Windows asked about, and windows answered; for scorers that give no answers window by window, none.
        bounds: The headline metric with everything unanswered judged wrong, and judged right; None where unknown.
        judge: Model that judged; None for none.
        usd: Dollars spent; None when unknown.
    """

    scorer: str
    plugin: str
    variant: str = MAIN
    tried: int = 0
    skipped: int = 0
    unparsed: int = 0
    windows: tuple[int, int] = (0, 0)
    bounds: tuple[float, float] | None = None
    judge: str | None = None
    usd: float | None = None


@dataclass(frozen=True)
class Floors:
    """The same metric for baselines' explanations of the same cell.

    Attributes:
        values: The metric by baseline and latent.
        uninformed: Uninformed baselines; lift is measured from the first that has values.
        same: For such a baseline, windows that got the same answer as under the latent's own explanation, of how many.
    """

    values: Mapping[str, Values] = field(default_factory=dict)
    uninformed: Sequence[str] = ()
    same: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def score_row(
    scoring: ScorerRun,
    metric: Metric,
    values: Values,
    rng: np.random.Generator,
    *,
    words: Iterable[int] = (),
    floors: Floors | None = None,
) -> ScoreRow:
    """Return the row of one metric.

    Args:
        scoring: What the scorer found beside this metric's values.
        metric: What the values mean.
        values: The metric by latent, in the order in which it is summed.
        rng: Source of the interval's resamples.
        words: Number of words of each explanation scored, as far as known.
        floors: What the values are compared with, beside chance; None for no floor, as in rows of baselines. Lifts are
            put into rows by `lift_rows.with_lifts`, once all cells are there.
    """
    n = len(values)
    floors = floors if metric.higher_is_better is not None else None
    distribution = _distribution(values, metric, rng)
    sample = _sample(metric, values, floors, rng) if floors is not None else None
    return ScoreRow(
        scorer=scoring.scorer,
        variant=scoring.variant,
        plugin=scoring.plugin,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        on_board=metric.on_board,
        range=(_bound(metric.low), _bound(metric.high)),
        **distribution,
        n=n,
        tried=scoring.tried,
        failed=scoring.tried - n - scoring.skipped,
        skipped=scoring.skipped,
        unparsed=scoring.unparsed,
        coverage=n / scoring.tried if scoring.tried else 0.0,
        windows=scoring.windows[0],
        answered=scoring.windows[1],
        bounds=scoring.bounds,
        floor=_means(metric, floors),
        against=sample,
        lift=None,
        judge=scoring.judge,
        explanation_words=_mean([*words]),
        usd=scoring.usd,
    )


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


def _means(metric: Metric, floors: Floors | None) -> dict[str, float]:
    """Return the metric of each baseline, and of chance."""
    if floors is None:
        return {}
    found = {name: sum(values.values()) / len(values) for name, values in floors.values.items() if values}
    return found if metric.chance is None else {**found, "chance": metric.chance}


def _sample(metric: Metric, values: Values, floors: Floors, rng: np.random.Generator) -> FloorSample | None:
    """Return what the first uninformed baseline got on the latents that have both."""
    import numpy as np

    for name in floors.uninformed:
        others = floors.values.get(name, {})
        common = [latent for latent in values if latent in others]
        if not common:
            continue
        own, floor = (np.array([side[latent] for latent in common]) for side in (values, others))
        better = own - floor if metric.higher_is_better else floor - own
        a, b = own - own.mean(), floor - floor.mean()
        df = max(len(common) - 1, 1)
        same, answers = floors.same.get(name, (0, 0))
        return FloorSample(
            variant=name,
            n=len(common),
            own=float(own.mean()),
            value=float(floor.mean()),
            covariance=(float(a @ a / df), float(b @ b / df), float(a @ b / df)),
            least_error=least_error(better, metric.low, metric.high),
            p=depends_p(better, rng),
            same=same / answers if answers else None,
            answers=answers,
        )
    return None


def _mean(numbers: list[int]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
