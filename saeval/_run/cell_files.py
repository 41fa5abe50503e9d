"""Writes the tables of each cell: latents, examples, explanations, scores, judgements and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from saeval._compare import judgement_columns, latent_score_rows
from saeval._run.state import CellState, Results, RunState
from saeval._run.steps import prompt_texts, window_texts
from saeval._run.work import EXPLAIN, part_of
from saeval.activations import histogram, mean_square, portrait, position_dependence, token_share
from saeval.llm import PromptReply, unpack
from saeval.records import MAIN, Example, Explanation, JudgedWindows, LatentId, LatentRecord, Score

_OF_WINDOW = ("decile", "context", "start", "document", "tokens", "activations")
_MOST_PORTRAITS = 10_000  # maximum latents per cell with windows from the whole corpus


def write_cells(state: RunState, journal: Results, folder_of: Callable[[str], Path]) -> None:
    """Write each cell's latents, examples, explanations, scores, judgements and calls, one latent at a time."""
    from saeval.results import cell_tables

    for outcome in state.cells.values():
        scores = [f"score.{label}.{metric}" for label, metrics in _metrics(outcome).items() for metric in metrics]
        with cell_tables(folder_of(outcome.cell.name), scores, directions=any(outcome.directions.values())) as tables:
            for n, record in enumerate(outcome.records):
                latent = record.latent.index
                judged = _judged(state, journal, outcome, latent)
                tables.latents.add([_latent_row(outcome, record, judged)])
                tables.examples.add_columns(_example_columns(record))
                if n < _MOST_PORTRAITS:
                    tables.activations.add_columns(_activation_columns(outcome, record))
                tables.explanations.add(_explanation_rows(outcome, latent))
                for place, score, windows in judged:
                    tables.scores.add(latent_score_rows(latent, *place, score, windows))
                    tables.judgements.add_columns(judgement_columns(latent, *place, windows))
                explained = _asked(state, journal, outcome, latent)
                for calls in _call_columns(outcome, explained, judged, record):
                    tables.calls.add_columns(calls)


class Judged(NamedTuple):
    """A score of a latent.

    Attributes:
        place: Its scorer and variant.
        score: The score, without outcomes.
        windows: Its judged windows.
    """

    place: tuple[str, str]
    score: Score
    windows: JudgedWindows


def _metrics(outcome: CellState) -> dict[str, list[str]]:
    """Return the metrics of each scorer that any latent has: declared ones in their order, then others."""
    found = {}
    for label, step in outcome.cell.scorers.items():
        own = [metric.name for metric in step.part.plugin.metrics]
        found[label] = sorted(
            outcome.scores(label).metrics(), key=lambda name: own.index(name) if name in own else len(own)
        )
    return found


def _explanation_rows(outcome: CellState, latent: int) -> Iterator[dict[str, Any]]:
    for variant in (MAIN, *outcome.cell.alternatives):
        if (found := outcome.explanations.get((variant, latent))) is not None:
            yield {"latent": latent, "variant": variant, **found.model_dump(mode="json", exclude={"asked"})}


def _judged(state: RunState, journal: Results, cell: CellState, latent: int) -> list[Judged]:
    """Return the scores of a latent in full."""
    found = ((place, state.score(journal, cell.item(*place, latent))) for place in cell.scored)
    return [Judged(place, *scored) for place, scored in found if scored is not None]


def _asked(
    state: RunState, journal: Results, cell: CellState, latent: int
) -> Iterator[tuple[tuple[str, str], Explanation | None]]:
    """Yield the full explanations of a latent, without shuffled ones, which belong to other latents."""
    for variant in cell.cell.explainers:
        if (variant, latent) in cell.explanations:
            yield (EXPLAIN, variant), state.explanation(journal, cell.item(EXPLAIN, variant, latent))


def _call_columns(
    outcome: CellState,
    explained: Iterable[tuple[tuple[str, str], Explanation | None]],
    judged: Sequence[Judged],
    record: LatentRecord,
) -> Iterator[dict[str, Sequence[Any]]]:
    """Yield the prompts and replies about a latent as columns, for each result."""
    texts = cache(window_texts)  # scorers share their windows
    for (step, variant), result in (*explained, *((place, score) for place, score, _ in judged)):
        if not result or not result.asked:
            continue
        part = part_of(outcome.cell, step, variant)
        windows = texts(record.explain if step == EXPLAIN else record.score)
        asked = unpack(result.asked, windows, prompt_texts(part.part.plugin))
        n = len(asked)
        columns = {name: [*map(attrgetter(name), asked)] for name in PromptReply._fields}
        columns |= {"latent": [record.latent.index] * n, "step": [step] * n, "variant": [variant] * n}
        yield {**columns, "call": range(n)}


def _latent_row(outcome: CellState, record: LatentRecord, judged: Sequence[Judged]) -> dict[str, Any]:
    index = record.latent.index
    explanation = outcome.explanations.get((MAIN, index))
    scores = {
        f"score.{label}.{metric}": value
        for (label, variant), score, _ in judged
        if variant == MAIN
        for metric, value in score.values.items()
    }
    shape = histogram(outcome.store, index)
    return {
        "latent": index,
        "histogram": list(shape.counts),
        "histogram_top": shape.top,
        "firings": record.firings,
        "windows": record.windows,
        "density": record.density,
        "max_activation": record.explain.max_activation,
        "mean_square": mean_square(outcome.store, index),
        "token_share": token_share(outcome.store, index),
        "position_dependence": position_dependence(outcome.store, index),
        "explanation_words": len(explanation.text.split()) if explanation and explanation.status == "ok" else None,
        "explanation_status": explanation.status if explanation else "skipped",
        **outcome.directions.get(index, {}),
        **scores,
    }


def _activation_columns(outcome: CellState, record: LatentRecord) -> dict[str, list[Any]]:
    """Return windows of a latent from the whole corpus, with the sampler's window length."""
    groups = portrait(outcome.store, record.latent, outcome.cell.sampler.plugin.window)
    return _window_columns(record.latent, "group", groups)


def _example_columns(record: LatentRecord) -> dict[str, list[Any]]:
    """Return the windows that explained or scored a latent, and those of its decoy."""
    windows = {
        role: (*examples.activating, *examples.non_activating)
        for role, examples in (("explain", record.explain), ("score", record.score))
    }
    active = [e.active for side in windows.values() for e in side]
    decoys = record.score.decoy.activating if record.score.decoy else ()
    columns = _window_columns(record.latent, "role", {**windows, "decoy": decoys})
    return {**columns, "active": active + [False] * len(decoys)}


def _window_columns(latent: LatentId, kind: str, windows: Mapping[str, Sequence[Example]]) -> dict[str, list[Any]]:
    """Return the columns of windows by role or group, which goes into the column `kind`."""
    shown = [e for side in windows.values() for e in side]
    columns: dict[str, list[Any]] = {name: [*map(attrgetter(name), shown)] for name in _OF_WINDOW}
    columns["latent"] = [latent.index] * len(shown)
    columns[kind] = [name for name, side in windows.items() for _ in side]
    return columns
