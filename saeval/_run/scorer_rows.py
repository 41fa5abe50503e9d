"""Summarises one scorer of a cell: the rows of its metrics, for the cell's own explanations and for baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from saeval._compare import (
    Floors,
    KnownJudge,
    ScorerRun,
    correct_for_judge,
    natural_rates,
    prediction_interval,
    score_row,
    standard_error,
)
from saeval._run import judge_checks
from saeval._run.state import CellState, Scored
from saeval._util import content_hash, derive_rng
from saeval.records import MAIN, Metric, ScorerCheck, ScoreRow
from saeval.task import AGAIN, HALVES

if TYPE_CHECKING:
    from saeval.task import StepPart, Task

_BY_WINDOW = ("balanced_accuracy", "accuracy")  # metrics with bounds for unanswered windows


def scorer_rows(
    task: Task, outcome: CellState, label: str, rates: Mapping[int, float], shared: float
) -> Iterator[ScoreRow]:
    """Yield the rows of one scorer: every metric for the cell's own explanations, then for each baseline.

    Args:
        task: The task.
        outcome: The cell.
        label: The scorer's label.
        rates: Share of the corpus's windows in which each latent fires.
        shared: Variance of the shift common to all latents of a run, if steps were repeated; it widens the prediction
            intervals of headline metrics.
    """
    cell = outcome.cell
    step = cell.scorers[label]
    known = None
    if step.role and step.role != task.checks:
        known = judge_checks.of_scorer(judge_checks.find(task.roles[step.role]), step)
    for variant in (MAIN, *cell.alternatives):
        scored = outcome.scored.get((label, variant))
        if scored is None:  # not scored in this task
            continue
        about = _about(task, step, label, variant, scored)
        off = not _conditions_met(scored, step)
        for place, metric in enumerate(step.part.plugin.metrics):
            values = scored.values(metric.name)
            if not values and place > 0:
                continue  # not available in this mode, such as AUROC without probabilities
            rng = derive_rng(task.run.seed, "interval", metric.name, cell.name, label, variant)
            words = _words(outcome, variant, values)
            row = score_row(about, metric, values, rng, words=words, floors=_floors(outcome, label, variant, metric))
            further: dict[str, Any] = {"off": off}
            if place == 0:
                further["bounds"] = scored.bounds if metric.name in _BY_WINDOW else None
                if step.part.plugin.reads_explanation:  # else the rates would be those of another scorer's question
                    further["natural"] = natural_rates(scored.tallies(rates), _known_judge(known), rng)
                further["reliability"] = scored.reliability(metric.name)
            if row.value is not None and row.ci95 is not None:
                extra = shared if place == 0 else 0.0
                further["prediction95"] = prediction_interval(row.value, row.ci95, row.range, extra)
            if known is not None:
                further |= {"verdict": known.verdict, **_corrected(task, row, known)}
            yield row.model_copy(update=further)


def _about(task: Task, step: StepPart[Any], label: str, variant: str, scored: Scored) -> ScorerRun:
    without = Counter(status for status, _ in scored.unscored.values())
    return ScorerRun(
        label,
        step.part.label,
        variant,
        scored.tried,
        without["failed"],
        without["skipped"],
        scored.unparsed,
        scored.windows if scored.answered or scored.unparsed else (0, 0),
        task.roles[step.role].model if step.role else None,
        scored.spent.total.usd,
    )


def _conditions_met(scored: Scored, step: StepPart[Any]) -> bool:
    """Return whether the mean of each of a scorer's metrics lies in its interval `wanted`."""
    for metric in (metric for metric in step.part.plugin.metrics if metric.wanted is not None):
        values = scored.values(metric.name)
        if values and not metric.meets(sum(values.values()) / len(values)):
            return False
    return True


def _words(outcome: CellState, variant: str, latents: Iterable[int]) -> Iterator[int]:
    """Yield the number of words in the explanation of each latent."""
    for latent in latents:
        if (explanation := outcome.explanation(variant, latent)) is not None:
            yield len(explanation.text.split())


def explanation_baselines(outcome: CellState) -> list[str]:
    """Return the names of a cell's explanation baselines; repetitions of its own explainer are none."""
    return [name for name in outcome.cell.alternatives if name not in (AGAIN, *HALVES)]


def _floors(outcome: CellState, label: str, variant: str, metric: Metric) -> Floors | None:
    """Return the baselines' scores for a cell and metric; None if `variant` is itself a baseline."""
    if variant != MAIN:
        return None
    scored = {name: outcome.scored.get((label, name)) for name in explanation_baselines(outcome)}
    values = {name: found.values(metric.name) for name, found in scored.items() if found}
    own = outcome.scored[label, MAIN]
    uninformed = [name for name in outcome.cell.floors if name in values]
    same = {name: own.same(found) for name in uninformed if (found := scored[name])}
    return Floors(values, uninformed, same, {name: _identity(outcome, name, values[name]) for name in uninformed})


def _identity(outcome: CellState, variant: str, values: Mapping[int, float]) -> str:
    """Return a hash of a baseline's scores and of what they depend on besides scorer and judge."""
    texts = {latent: found.text for latent in values if (found := outcome.explanation(variant, latent)) is not None}
    return content_hash(outcome.base, variant, texts, dict(values))


def _known_judge(known: ScorerCheck | None) -> KnownJudge | None:
    if known is None or known.sensitivity is None or known.specificity is None or not known.windows:
        return None
    return KnownJudge(known.sensitivity, known.specificity, known.windows)


def _corrected(task: Task, row: ScoreRow, known: ScorerCheck) -> dict[str, Any]:
    """Return the score corrected for the judge's known errors; empty if not requested or not possible."""
    if not task.correct_for_judge or row.metric != "balanced_accuracy" or row.value is None or row.ci95 is None:
        return {}
    error = standard_error(row.value, row.ci95, *row.range)
    check_error = standard_error(known.balanced_accuracy, known.ci95, 0.0, 1.0)
    found = correct_for_judge((row.value, error), (known.balanced_accuracy, check_error))
    return {} if found is None else {"corrected": found[0], "corrected_ci95": found[1]}
