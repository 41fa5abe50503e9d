"""Joins cells of several runs on one board; refuses or marks runs that are not comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from saeval._compare.leaderboard import Leaderboard
from saeval._compare.lift_rows import Key, Lifted, with_lifts
from saeval._compare.settings import differing_settings
from saeval._compare.weighting import Weights, weighted_note, with_weights
from saeval._util import (
    WIDTH,
    InputError,
    aligned,
    counted,
    did_you_mean,
    fold,
    interval,
    number,
    refuse_text,
    sort_key,
    with_home,
)
from saeval.records import MAIN, CellResult, RunResult, read_result, split_ranking
from saeval.results import RunCell, estimate

_SHOWN = 40  # cells that the text of a joined board lists


@dataclass(frozen=True)
class Entry:
    """A cell of one of the runs.

    Attributes:
        run: Its run, reduced to this cell.
        cell: The cell, called `run:cell`.
        facts: Facts about run, coder and models, which decide whether numbers are comparable.
        facets: Values to filter, group and distinguish cells by: axes, and the facts whose names no axis has.
        folder: The run directory.
        number: Index of the cell in its run, from 0.
    """

    run: RunResult
    cell: CellResult
    facts: dict[str, str]
    facets: dict[str, str]
    folder: Path
    number: int


@dataclass(frozen=True)
class Joined:
    """Cells of several runs that share a board.

    Attributes:
        entries: The cells, by name.
        rank_by: Column that ranks, `scorer.metric`.
        differs: Differences that make the runs' numbers incomparable; empty unless these were allowed.
        notes: Other notes for the reader.
        pool: The cells that floors are pooled over, by name: those shown, and those that filters hide.
    """

    entries: dict[str, Entry]
    rank_by: str
    differs: tuple[str, ...]
    notes: tuple[str, ...]
    pool: dict[str, Entry]

    def __repr__(self) -> str:
        """Return the board as text: one line per cell, with its rank and the ranking column."""
        board = next(iter(self.groups(None).values()))
        column = split_ranking(self.rank_by)[0]
        scorer, _, metric = column.rpartition(".")
        names = self.telling()
        rows = []
        for x in board.standings[:_SHOWN]:
            row = board.row(x.cell, scorer, metric=metric)
            score, lift, n = "–", "–", "–"
            if row is not None:
                score = f"{number(row.value)} [{interval(row.ci95, between=', ')}]"
                score = estimate(row).missing if row.value is None else score
                lift, n = number(row.lift, "+.3f"), f"{row.n}/{row.tried}"
            facets = self.entries[x.cell.cell].facets
            rows.append([x.rank_text, *(facets.get(name, "–") for name in names), score, n, lift])
        more = len(board.standings) - len(rows)
        mark = f" — MIXED: {'; '.join(self.differs)}" if self.differs else ""
        lines = [fold(f"{counted(len(self.entries), 'cell')}, ranked by {board.title}{mark}")]
        lines.append(aligned(["rank", *names, column, "n", "lift"], rows, WIDTH))
        return "\n".join([*lines, *([f"… and {more} more"] if more else [])])

    def groups(self, facet: str | None) -> dict[str, Leaderboard]:
        """Return one board per value of a facet, or a single one; ranks hold within a board.

        Floors are pooled over the cells with the same value, those that filters hide included.

        Raises:
            InputError: If no cell has such a facet.
        """
        return {value: boards[self.rank_by] for value, boards in self.boards(facet, [self.rank_by]).items()}

    def boards(self, facet: str | None, columns: Sequence[str]) -> dict[str, dict[str, Leaderboard]]:
        """Return the boards of `groups` by each of several ranking columns.

        Raises:
            InputError: If no cell has such a facet.
        """
        if facet is not None:
            _known(facet, self.entries.values(), "--group-by")
        values, pools = (_by_facet(entries.values(), facet) for entries in (self.entries, self.pool))
        ordered = sorted(values, key=sort_key)
        return {value: Leaderboard.of_columns(pools[value], columns, self.entries.keys()) for value in ordered}

    def run_of(self, cell: CellResult) -> RunResult:
        """Return the run of one of the cells."""
        return self.entries[cell.cell].run

    def families(self, facet: str) -> dict[str, list[CellResult]]:
        """Return the contestants of each family of coders, after checking that they differ only in sparsity.

        Raises:
            InputError: If no cell has such a facet, or they also differ in subject, place, corpus, explainer, judge or
                width.
        """
        _known(facet, self.entries.values(), "--family")
        return _families([e for e in self.entries.values() if e.cell.baseline is None], facet)

    def telling(self) -> list[str]:
        """Return the smallest set of facets that distinguishes the cells; `cell` if none does."""
        shown = ["run", "task", "version", "synthetic", "subject", "corpus", "explainer", "judge"]
        axes = dict.fromkeys(axis for e in self.entries.values() for axis in e.cell.axes)
        wanted = [
            f for f in dict.fromkeys([*shown, *axes]) if len({e.facets.get(f) for e in self.entries.values()}) > 1
        ]
        apart = {tuple(e.facets.get(f) for f in wanted) for e in self.entries.values()}
        return wanted if len(apart) == len(self.entries) else [*wanted, "cell"]


def join(
    runs: Sequence[str | Path],
    *,
    rank_by: str | None = None,
    keep: Sequence[str] = (),
    mixed: bool = False,
    weights: Weights | None = None,
) -> Joined:
    """Join the cells of runs on one board, after checking that their numbers are comparable.

    Runs of different tasks or versions, synthetic results beside real ones, and (for one subject) different corpora are
    refused. Runs whose corpus is not recorded, and different judges or versions of scorers, are noted.

    Args:
        runs: Run directories, or `results.json` files.
        rank_by: `scorer.metric`, or a scorer for its headline; default: what the runs rank by.
        keep: Filters, `facet=value` each; values of one facet are alternatives, and a cell must match every facet.
            They choose what is shown and ranked. Floors also come from the hidden cells, except those of runs that are
            not comparable with the cells shown.
        mixed: Whether to join incomparable runs and mark the board.
        weights: Also show means weighted by `firing_rate` or `energy`.

    Raises:
        InputError: If a run cannot be read, the runs are not comparable, or a facet or column does not exist.

    Example:
        >>> board = saeval.join(["mine"], mixed=True).groups(None)[""]
        >>> [(standing.rank_text, standing.cell.cell) for standing in board.standings]
        [('1', 'mine:all')]
    """
    refuse_text("runs", runs)
    refuse_text("keep", keep)
    if not runs:
        raise InputError("there are no runs to join; give one or more run directories")
    folders = map(with_home, runs)
    results = [(path, read_result(path)) for path in folders]
    names = _run_names(results)
    entries = [
        _entry(name, run, path if path.is_dir() else path.parent, number)
        for name, (path, run) in zip(names, results, strict=True)
        for number in range(len(run.cells))
    ]
    if not entries:
        raise InputError(f"{', '.join(names)}: no cell has results yet")
    every, entries = entries, _kept(entries, keep)
    differs = _differences(entries)
    if differs and not mixed:
        raise InputError(
            f"these runs cannot share a board: {'; '.join(differs)}. Omit some runs, select cells with --filter, "
            "or show them on a board marked as mixed with --mixed"
        )
    pool = every if mixed else _comparable(every, entries)
    entries, lifted = _with_common_lifts(entries, pool)
    notes = [*_notes(entries), *_hidden_note(entries, lifted)]
    if weights is not None:
        entries = [_with_weights(entry, weights) for entry in entries]
        notes = [*notes, weighted_note(weights)]
    shown = {e.cell.cell: e for e in entries}
    pooled = {e.cell.cell: shown.get(e.cell.cell, e) for e in pool}
    return Joined(shown, _rank_by(entries, rank_by), tuple(differs), tuple(notes), pooled)


def _with_common_lifts(shown: Sequence[Entry], pooled: Sequence[Entry]) -> tuple[list[Entry], Mapping[Key, Lifted]]:
    """Return the entries shown, and lifts by column, with floors pooled over all cells of `pooled`.

    So all formats show the same lifts, with any filter.
    """
    cells, lifted = with_lifts([e.cell for e in pooled])
    by_name = {cell.cell: cell for cell in cells}
    found = []
    for e in shown:
        cell = by_name[e.cell.cell]
        alone = cell.model_copy(update={"cell": e.facts["cell"]})
        found.append(replace(e, run=e.run.model_copy(update={"cells": [alone]}), cell=cell))
    return found, lifted


def _comparable(entries: Sequence[Entry], shown: Sequence[Entry]) -> Sequence[Entry]:
    """Return the entries without hidden ones of runs that are not comparable with those shown; order is kept."""
    if len(shown) == len(entries) or not _differences(entries):
        return entries
    by_run: dict[str, list[Entry]] = {}
    for e in entries:
        by_run.setdefault(e.facts["run"], []).append(e)
    found = {run for run, cells in by_run.items() if not _differences([*shown, *cells])}
    names = {e.cell.cell for e in shown}
    return [e for e in entries if e.facts["run"] in found or e.cell.cell in names]


def _hidden_note(shown: Sequence[Entry], lifted: Mapping[Key, Lifted]) -> list[str]:
    """Return a note on hidden cells that lifts depend on; empty if there are none."""
    names = {e.cell.cell for e in shown}
    pooled = [set(of.cells) for of in lifted.values() if not names.isdisjoint(of.cells)]
    hidden = set().union(*pooled) - names
    if not hidden:
        return []
    return [
        f"Floors, and whether a judge reads explanations, also come from {counted(len(hidden), 'hidden cell')}; ranks, "
        "tests and minimum detectable differences are about the cells shown."
    ]


def _with_weights(entry: Entry, weights: Weights) -> Entry:
    (cell,) = entry.run.cells
    weighted = with_weights(RunCell(cell, entry.folder / "cells" / cell.cell, entry.run.seeds), weights)
    run = entry.run.model_copy(update={"cells": [weighted]})
    return replace(entry, run=run, cell=weighted.model_copy(update={"cell": entry.cell.cell}))


def _run_names(results: Sequence[tuple[Path, RunResult]]) -> list[str]:
    """Return a name per run: its id, or its path if two runs share an id."""
    ids = [run.run_id for _, run in results]
    names = [str(path) if ids.count(run.run_id) > 1 else run.run_id for path, run in results]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{twice[0]}: is given twice; give each run once")
    return names


def _entry(name: str, run: RunResult, folder: Path, number: int) -> Entry:
    cell = run.cells[number]
    judges = dict.fromkeys(row.judge for row in cell.scores if row.judge)
    facts = {
        "run": name, "cell": cell.cell, "task": run.task, "version": run.task_version,
        "synthetic": "yes" if run.synthetic else "no", "partial": "yes" if run.partial else "no",
        "baseline": cell.baseline or "no", "subject": cell.subject, "corpus": cell.corpus[:8] or "unknown",
        "hookpoint": str(cell.coder.get("hookpoint", "")), "architecture": str(cell.coder.get("architecture", "")),
        "explainer": cell.explainer, "judge": ", ".join(judges),
    }  # fmt: skip
    renamed = cell.model_copy(update={"cell": f"{name}:{cell.cell}"})
    one = run.model_copy(update={"run_id": name, "cells": [cell]})
    return Entry(one, renamed, facts, {**facts, **cell.axes}, folder, number)


def _by_facet(entries: Iterable[Entry], facet: str | None) -> dict[str, list[CellResult]]:
    found: dict[str, list[CellResult]] = {}
    for entry in entries:
        found.setdefault((entry.facets.get(facet) or "–") if facet else "", []).append(entry.cell)
    return found


def _known(facet: str, entries: Any, option: str) -> None:
    known = list(dict.fromkeys(f for e in entries for f in e.facets))
    if facet not in known:
        raise InputError(f"{option} {facet}: no cell has it{did_you_mean(facet, known)}; available: {', '.join(known)}")


def _kept(entries: list[Entry], keep: Sequence[str]) -> list[Entry]:
    wanted: dict[str, set[str]] = {}
    for text in keep:
        facet, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--filter {text}: write it as name=value, such as layer=9")
        _known(facet, entries, "--filter")
        wanted.setdefault(facet, set()).add(value)
    found = [e for e in entries if all(e.facets.get(facet) in values for facet, values in wanted.items())]
    if not found:
        known = {f: sorted({e.facets.get(f, "–") for e in entries}, key=sort_key) for f in wanted}
        values = "; ".join(f"{f}: {', '.join(having)}" for f, having in known.items())
        raise InputError(f"--filter {' '.join(keep)}: no cell matches" + (f"; available: {values}" if values else ""))
    return found


def _differences(entries: Sequence[Entry]) -> list[str]:
    """Return the differences that make the runs' numbers incomparable."""
    found = []
    for what, of in (
        ("task", lambda e: f"{e.run.task} {e.run.task_version}"),
        ("synthetic", lambda e: "made up" if e.run.synthetic else "real"),
        ("recorded", lambda e: "recorded" if e.run.recorded else "live"),
    ):
        values = _by_value(entries, of)
        if len(values) > 1:
            found.append(_said(what, values))
    for subject in dict.fromkeys(e.cell.subject for e in entries):
        # A run may use several corpora on purpose, so runs are compared by their sets of corpora.
        corpora: dict[str, set[str]] = {}
        for e in entries:
            if e.cell.subject == subject and e.cell.corpus:
                corpora.setdefault(e.facts["run"], set()).add(e.facts["corpus"])
        if len({frozenset(v) for v in corpora.values()}) > 1:
            values = {", ".join(sorted(v)): [r for r in corpora if corpora[r] == v] for v in corpora.values()}
            found.append(_said(f"corpus of {subject or 'the subject'}", values))
    return found


def _by_value(entries: Sequence[Entry], of: Callable[[Entry], str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for entry in entries:
        runs = values.setdefault(of(entry), [])
        if entry.facts["run"] not in runs:
            runs.append(entry.facts["run"])
    return values


def _said(what: str, values: dict[str, list[str]]) -> str:
    return f"{what} differs: " + ", ".join(f"{value} ({' '.join(runs)})" for value, runs in values.items())


def _notes(entries: Sequence[Entry]) -> list[str]:
    found = []
    unknown = list(dict.fromkeys(e.facts["run"] for e in entries if not e.cell.corpus))
    if unknown and len({e.facts["run"] for e in entries}) > 1:
        found.append(f"The corpus is not recorded in {', '.join(unknown)}; make sure that it is the same.")
    for mark in ("partial", "synthetic"):
        if marked := list(dict.fromkeys(e.facts["run"] for e in entries if e.facts[mark] == "yes")):
            found.append(f"{mark.capitalize()}: {', '.join(marked)}.")
    for scorer in dict.fromkeys(row.scorer for e in entries for row in e.cell.scores):
        having = [e for e in entries if any(r.scorer == scorer for r in e.cell.scores)]
        known = all(f"scorers.{scorer}" in e.cell.settings for e in having)
        for what in ("judge",) if known else ("judge", "plugin"):
            values = _by_value(having, partial(_fact_of_scorer, scorer=scorer, what=what))
            if len(values) > 1:
                found.append(f"{scorer}: {_said(what, values)}; this may cause part of a difference.")
    cells: dict[str, list[CellResult]] = {}
    for e in entries:
        cells.setdefault(e.facts["run"], []).append(e.cell)
    return [*found, *(f"{text}; this may cause part of a difference." for text in differing_settings(cells))]


def _fact_of_scorer(entry: Entry, scorer: str, what: str) -> str:
    return str(next(getattr(row, what) for row in entry.cell.scores if row.scorer == scorer))


def _fact(entry: Entry, name: str) -> str:
    return entry.facts[name]


def _rank_by(entries: Sequence[Entry], wanted: str | None) -> str:
    columns = list(dict.fromkeys(f"{r.scorer}.{r.metric}" for e in entries for r in e.cell.scores if r.variant == MAIN))
    if not columns:
        raise InputError("there are no scores to rank: the runs contain explanations only")
    if wanted is None:
        ranked = list(dict.fromkeys(e.run.rank_by for e in entries))
        if len(ranked) > 1:
            raise InputError(f"the runs rank by different columns ({', '.join(ranked)}); choose one with --rank-by")
        wanted = ranked[0]
    column, ranking = split_ranking(wanted)
    headline = next((c for c in columns if c.rpartition(".")[0] == column), None)
    if found := column if column in columns else headline:
        return f"{found}.{ranking}" if ranking else found
    raise InputError(
        f"--rank-by {wanted}: no such column{did_you_mean(wanted, columns)}; available: {', '.join(columns)}"
    )


def _families(contestants: Sequence[Entry], family: str) -> dict[str, list[CellResult]]:
    for what in ("subject", "hookpoint", "corpus", "explainer", "judge"):
        values = _by_value(contestants, partial(_fact, name=what))
        if what != family and len(values) > 1:
            raise InputError(
                f"--match-l0 compares coders that differ only in {family} and L0, but {_said(what, values)}; "
                "select cells with --filter"
            )
    widths = {e.cell.measures["d_sae"] for e in contestants if "d_sae" in e.cell.measures}
    if len(widths) > 1:
        shown = ", ".join(f"{w:g}" for w in sorted(widths))
        raise InputError(
            f"--match-l0 compares coders of one width, but d_sae differs: {shown}; select cells with --filter"
        )
    found: dict[str, list[CellResult]] = {}
    for e in contestants:
        found.setdefault(e.facets.get(family) or "unknown", []).append(e.cell)
    return found
