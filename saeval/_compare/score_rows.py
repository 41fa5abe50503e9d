"""Builds rows of tables from the scores of single latents: one row per latent, and means for leaderboards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from saeval._compare.noise import score_noise
from saeval._compare.stats import depends_p, interval_method, least_error, mean_interval, mean_of
from saeval.records import MAIN, FloorSample, JudgedWindows, Metric, Score, ScoreRow, WrittenText

if TYPE_CHECKING:
    import numpy as np

Values = Mapping[int, float]
"""Values of a metric by latent."""


@dataclass(frozen=True)
class ScorerRun:
    """Facts about one scorer's run on one variant of a cell's explanations, besides the values.

    Attributes:
        scorer: The scorer's label.
        plugin: Full name and version of the plugin.
        variant: Variant of the explanations that were scored.
        tried: Latents that the scorer was run on.
        failed: Latents whose explanation or score failed; not those for which only this metric is undefined.
        skipped: Latents skipped for a stated reason.
        unparsed: Judged windows without an answer.
        windows: Windows asked about, and windows answered; 0 for scorers without answers per window.
        judge: Model that judged; None if there was no judge.
        usd: Dollars spent; None when unknown.
    """

    scorer: str
    plugin: str
    variant: str = MAIN
    tried: int = 0
    failed: int = 0
    skipped: int = 0
    unparsed: int = 0
    windows: tuple[int, int] = (0, 0)
    judge: str | None = None
    usd: float | None = None


@dataclass(frozen=True)
class Floors:
    """The same metric for baselines' explanations of the same cell.

    Attributes:
        values: The metric by baseline and latent.
        uninformed: Uninformed baselines; lift is measured from the first that has values.
        same: By uninformed baseline: number of windows with the same answer as under the latent's own explanation, and
            number of windows compared.
        shared: By uninformed baseline: identity of its scores, equal for cells that share them.
    """

    values: Mapping[str, Values] = field(default_factory=dict)
    uninformed: Sequence[str] = ()
    same: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


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
        scoring: Facts about the scorer's run.
        metric: The metric.
        values: The metric by latent, in the order in which it is resampled.
        rng: Random generator for the interval's resamples.
        words: Number of words of each scored explanation, if known.
        floors: Floors besides chance; None for rows of baselines. `lift_rows.with_lifts` adds lifts to the
            rows when all cells are done.
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
        failed=scoring.failed,
        skipped=scoring.skipped,
        unparsed=scoring.unparsed,
        coverage=n / scoring.tried if scoring.tried else 0.0,
        windows=scoring.windows[0],
        answered=scoring.windows[1],
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
    return {
        "value": mean_of(values.values()),
        "median": float(np.median(x)),
        "ci95": known,
        "method": interval_method(len(x)),
    }


def _means(metric: Metric, floors: Floors | None) -> dict[str, float]:
    """Return the metric of each baseline, and of chance."""
    if floors is None:
        return {}
    found = {name: mean_of(values.values()) for name, values in floors.values.items() if values}
    return found if metric.chance is None else {**found, "chance": metric.chance}


def latent_score_rows(
    latent: int, scorer: str, variant: str, score: Score, judged: JudgedWindows
) -> Iterator[dict[str, Any]]:
    """Yield a latent's rows of `scores.parquet`, one per metric; without values, one row with the reason.

    Args:
        latent: The latent.
        scorer: The scorer's label.
        variant: Variant of the explanation that was scored.
        score: The score; its headline metric has an interval if it has judged windows.
        judged: Its judged windows.
    """
    place = {"latent": latent, "scorer": scorer, "variant": variant, "status": score.status, "reason": score.reason}
    noise = score_noise(score, judged)
    for column, (metric, value) in enumerate([*score.values.items()] or [(None, None)]):
        low, high = noise.interval if noise is not None and column == 0 else (None, None)
        yield {**place, "metric": metric, "value": value, "low": low, "high": high}


def judgement_columns(latent: int, scorer: str, variant: str, judged: JudgedWindows) -> dict[str, Sequence[Any]]:
    """Return the columns of a latent's rows in `judgements.parquet`, one entry per window.

    Windows have tokens and activations if their text was written for the question.
    """
    n = len(judged.example)
    columns = judged._asdict()
    written = columns.pop("written")
    for name in WrittenText.model_fields:
        columns[name] = [(text or {}).get(name) for text in written]
    return {"latent": [latent] * n, "scorer": [scorer] * n, "variant": [variant] * n, **columns}


def _sample(metric: Metric, values: Values, floors: Floors, rng: np.random.Generator) -> FloorSample | None:
    """Return the first uninformed baseline's scores on the latents that have both."""
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
            own=mean_of(own),
            value=mean_of(floor),
            covariance=(float(a @ a / df), float(b @ b / df), float(a @ b / df)),
            least_error=least_error(better, metric.low, metric.high),
            p=depends_p(better, rng),
            same=same / answers if answers else None,
            answers=answers,
            shared=floors.shared.get(name, ""),
        )
    return None


def _mean(numbers: list[int]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
