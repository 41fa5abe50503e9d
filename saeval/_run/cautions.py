"""Writes cautions about cells, warnings about runs, and messages about exceeded limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING

from saeval._compare import at_floor
from saeval._util import counted
from saeval.records import MAIN, CellResult, RunResult, ScoreRow
from saeval.task import said_by

if TYPE_CHECKING:
    from saeval._run.state import CellState
    from saeval.task import Task

RECORDED = (
    "Language models' replies were recorded in an earlier run and are replayed here, so the results are not ranked "
    "with those of live models."
)

_FAR = 1.5  # largest plausible factor between the measured L0 and the one in the coder's files


def finite(value: object) -> float | None:
    """Return a finite number as a float; None for anything else, also for a truth value."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def noted_measures(outcome: CellState) -> Iterator[tuple[str, object]]:
    """Yield the measures that a cell's source and coder declare and noted, whether they are numbers or not."""
    noted = outcome.store.facts.get("measures")
    for measure in outcome.cell.source.measures:
        if isinstance(noted, Mapping) and measure.name in noted:
            yield measure.name, noted[measure.name]


def cautions_of(outcome: CellState) -> list[str]:
    """Return warnings about a cell, such as a coder used differently from its training."""
    cell, store = outcome.cell, outcome.store
    source = cell.source
    said = [*said_by(source.label, source.plugin.cautions), *store.facts.get("warnings", ()), *_score_cautions(outcome)]
    said += [
        f"The measure {name} is {value!r:.40}, not a finite number, so it is omitted."
        for name, value in noted_measures(outcome)
        if finite(value) is None
    ]
    if cell.baseline is not None:
        return list(dict.fromkeys(said))
    if (fvu := store.facts.get("fvu")) is not None and fvu >= 1:
        said.append(
            f"The coder explains no variance (fvu {fvu:.2f}; predicting the mean gives 1): it may belong to another "
            f"hookpoint or model, or the text may differ from its training data."
        )
    expected, l0 = store.facts.get("l0_of_files"), outcome.l0
    if expected and store.latents is None and not expected / _FAR <= l0 <= expected * _FAR:
        said.append(f"{l0:.3g} latents fire per token, but the coder's files say {expected:g}.")
    return list(dict.fromkeys(said))


def warnings_of(
    task: Task, cells: Sequence[CellResult], outcomes: Mapping[str, CellState], *, partial: bool, synthetic: bool
) -> list[str]:
    """Return the warnings about a run's results.

    Args:
        task: The task.
        cells: Its results.
        outcomes: The states of the cells by name.
        partial: Whether latents were omitted.
        synthetic: Whether a part of the run is synthetic.
    """
    found = []
    if synthetic:
        found.append(
            "A part of this run is synthetic (synthetic source, scripted or replayed model): its numbers say nothing "
            "about a real model."
        )
    if partial:
        found.append("This run is partial: latents were omitted by --limit, or it was interrupted.")
    found += _unusual_l0(outcomes)
    for cell in cells:
        if caveat := cell.coder.get("caveat"):
            found.append(f"{cell.cell}: {caveat}")
        found += [f"{cell.cell}: {caution}" for caution in cell.cautions]
        if cell.counts["sampled"] < cell.counts["requested"]:
            found.append(
                f"{cell.cell}: only {cell.counts['sampled']} of {counted(cell.counts['requested'], 'latent')} "
                f"{'has' if cell.counts['sampled'] == 1 else 'have'} enough windows."
            )
        for row in cell.scores:
            if (
                row.variant == MAIN
                and row.tried
                and row.failed / row.tried > task.run.max_failed
                and row is _headline(cell, row)
            ):
                why = _why(outcomes[cell.cell], row.scorer)
                found.append(
                    f"{cell.cell}: {row.scorer} failed on {row.failed} of {counted(row.tried, 'latent')}: "
                    f"{why.rstrip('.')}{_without_failures(row)}"
                )
            if row.variant == MAIN and row.answered < row.windows and row is _headline(cell, row):
                found.append(f"{cell.cell}: {row.scorer}: {_unanswered(row)}")
        if dependent := outcomes[cell.cell].dependent:
            found.append(
                f"{cell.cell}: {counted(dependent, 'latent has', 'latents have')} no other latent that fires "
                "independently, so floors use explanations of latents that fire together with them or avoid them."
            )
        found += _without_probabilities(outcomes[cell.cell])
    return [*found, *_flaws(outcomes.values())]


def over_limits(task: Task, result: RunResult) -> list[str]:
    """Return a message for each score with more failed latents or unanswered windows than the spec allows."""
    found = []
    for cell in result.cells:
        for row in cell.scores:
            place = f"{cell.cell}: {row.scorer}" + ("" if row.variant == MAIN else f" of {row.variant}")
            if row is not _headline(cell, row):
                continue
            if row.tried and row.failed / row.tried > task.run.max_failed:
                found.append(
                    f"{place}: {row.failed} of {counted(row.tried, 'latent')} failed "
                    f"(run.max_failed {task.run.max_failed:g})"
                )
            if row.unanswered > task.run.max_unanswered:
                found.append(
                    f"{place}: {row.unanswered:.0%} of the windows have no answer (run.max_unanswered "
                    f"{task.run.max_unanswered:g})"
                )
    return found


def _score_cautions(outcome: CellState) -> Iterator[str]:
    """Yield the warnings of scorers and sampler about a cell's scores and windows."""
    for label, step in outcome.cell.scorers.items():
        scored = outcome.scores(label)
        if not scored.tried:
            continue
        columns = {name: list(scored.values(name).values()) for name in scored.metrics()}
        means = {name: sum(column) / len(column) for name, column in columns.items() if column}
        for caution in said_by(label, step.part.plugin.cautions, means, outcome.records.latents):
            yield f"{label}: {caution}"
    asked, silent = outcome.cell.sampler.plugin.silent_windows(), outcome.records.silent
    short = [n for n in silent if asked is not None and n < asked]
    if short:
        yield (
            f"{len(short)} of {counted(len(silent), 'latent')} {'has' if len(short) == 1 else 'have'} fewer than the "
            f"{asked} requested non-activating windows, the minimum is {min(short)}."
        )


def _unusual_l0(outcomes: Mapping[str, CellState]) -> Iterator[str]:
    """Yield a warning for each random SAE whose L0 differs from that of every contestant."""
    beside = [o.l0 for o in outcomes.values() if o.cell.baseline is None and o.store.latents is None]
    for name, outcome in outcomes.items():
        l0 = outcome.l0
        random = outcome.cell.baseline is not None and outcome.store.facts.get("architecture") == "random top-k"
        if random and beside and all(not other / _FAR <= l0 <= other * _FAR for other in beside):
            shown = " to ".join(dict.fromkeys(f"{other:.3g}" for other in (min(beside), max(beside))))
            yield (
                f"{name}: {l0:.3g} latents fire per token, but {shown} in the coders that it is a baseline for; set "
                "its option `k`."
            )


def _without_failures(row: ScoreRow) -> str:
    """Return what failures could do to a score, as a further sentence; empty for rows without a score or a floor."""
    floor = at_floor(row)
    if floor is None or row.value is None or row.higher_is_better is None:
        return ""
    level = "chance" if "chance" in row.floor else "the worst value"
    return (
        f". The score {row.value:.3f} and its interval describe only latents that did not fail, which may be the "
        f"easier ones; it would be {floor:.3f} with failures counted as {level}."
    )


def _unanswered(row: ScoreRow) -> str:
    """Return how many windows have no answer, and how much that could change the score."""
    missing = row.windows - row.answered
    without = "has no answer and is" if missing == 1 else "have no answer and are"
    windows = f"{missing} of {counted(row.windows, 'window')} ({missing / row.windows:.0%})"
    text = f"{windows} {without} not in the score"
    if row.bounds is None:
        return f"{text}."
    return (
        f"{text}, which would be {row.bounds[0]:.3f} if all were judged wrongly and {row.bounds[1]:.3f} if correctly."
    )


def _without_probabilities(outcome: CellState) -> Iterator[str]:
    """Yield a warning for each scorer that has no AUROC because the model returned no log-probabilities."""
    for label, step in outcome.cell.scorers.items():
        plugin, have = step.part.plugin, outcome.scores(label).metrics()
        asked = getattr(plugin, "top_logprobs", 0) and any(metric.name == "auroc" for metric in plugin.metrics)
        if asked and have and "auroc" not in have:
            yield (
                f"{outcome.cell.name}: {label}: the model returned no usable log-probabilities, so there is no AUROC."
            )


def _why(outcome: CellState, label: str) -> str:
    """Return the most common reason of a scorer's failures."""
    unscored = outcome.scored[label, MAIN].unscored.values()
    reasons = Counter(reason for status, reason in unscored if status == "failed")
    return reasons.most_common(1)[0][0] if reasons else "no reason given"


def _flaws(outcomes: Iterable[CellState]) -> Iterator[str]:
    """Yield a warning for each declared flaw of a cell's sampler, with the number of affected windows."""
    for outcome in outcomes:
        name, sampler = outcome.cell.name, outcome.cell.sampler.label
        if leak := outcome.records.flaws.get("leak"):
            yield (
                f"{name}: the sampler {sampler} does not separate explaining and scoring: {leak.windows} of "
                f"{leak.of} scored activating windows share text with those that the explainer is shown, so scores "
                "may be too high."
            )
        if unverified := outcome.records.flaws.get("unverified"):
            yield (
                f"{name}: the sampler {sampler} does not verify non-activating windows: the latent fires in "
                f"{unverified.windows} of {unverified.of} of them, so correct answers count as wrong there."
            )


def _headline(cell: CellResult, row: ScoreRow) -> ScoreRow:
    return next(r for r in cell.scores if (r.scorer, r.variant) == (row.scorer, row.variant))
