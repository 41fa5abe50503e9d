"""Writes a self-contained page of joined runs, with filters, groups, ranks and plots."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

import saeval
from saeval._compare import AgainstBaseline, Entry, Joined, Leaderboard
from saeval._util import MISSING, interval, number, rounded, shown, sort_key
from saeval.records import MAIN, CellResult, ScoreRow
from saeval.report.boards import beneath, notes, tests_and_notes
from saeval.report.html.pages import render
from saeval.report.html.text import page_name, script_json
from saeval.report.method import named
from saeval.results import Column, Line, cell_columns

_LIFT = ".lift"  # ends the names of columns of lifts, as in `rank_by`


def joined_page(joined: Joined, group_by: str | None = None, place: Path | None = None) -> str:
    """Return the page.

    Args:
        joined: The cells from `join`, comparable or with their differences marked.
        group_by: Facet by which cells are grouped when the page opens.
        place: File that the page is written to, from which it links to reports of the runs; default: no links.

    Raises:
        InputError: If no cell has such a facet.
    """
    board = joined.groups(None)[""]
    entries = list(joined.entries.values())
    facets = list(dict.fromkeys(f for e in entries for f in e.facets))
    rows = [row for e in entries for row in e.cell.scores if row.variant == MAIN]
    measures = _columns(entries)
    headlines = {r.scorer: f"{r.scorer}.{r.metric}" for r in reversed(rows)}
    headlines_shown = [headlines[row.scorer] for row in rows]
    pages = [_latents_page(e, place) for e in entries]
    cells = [{**_cell(e, measures), "page": page} for e, page in zip(entries, pages, strict=True)]
    columns_of_scores = [f"{r.scorer}.{r.metric}" for r in rows]
    on_board = [f"{r.scorer}.{r.metric}" for r in rows if r.on_board]
    lifts = [f"{r.scorer}.{r.metric}{_LIFT}" for r in rows if r.lift is not None]
    columns = list(dict.fromkeys([*columns_of_scores, *lifts]))
    shown_facets = [name for name in facets if name != "cell" and _differs(entries, name)]
    values = {name: _values(entries, name) for name in shown_facets}
    boards = _Boards(joined, columns, _ranked_by(board))
    boards_shown = {group: boards.of(group) for group in dict.fromkeys(["", group_by or "", *shown_facets])}
    data = {
        "rank": _ranked_by(board), "group": group_by or "", "telling": joined.telling(),
        "columns": columns,
        "shown": list(dict.fromkeys([*headlines_shown, *on_board])),
        "facets": shown_facets,
        "values": values,
        "measures": [[column.key, column.head] for column in measures],
        "cells": cells,
        "boards": boards_shown,
        "pooled": boards.pooled,
        "notes": list(boards.notes),
        "heads": AgainstBaseline.HEADS,
        "searches": _searches(entries, pages),
    }  # fmt: skip
    tasks = named(f"{e.run.task} {e.run.task_version}" for e in entries)
    runs = list(dict.fromkeys(e.facts["run"] for e in entries))
    context = {
        "tasks": tasks, "cells": len(entries), "runs": runs,
        "subject": named(e.cell.subject for e in entries),
        "judge": named(e.facts["judge"] for e in entries), "differs": joined.differs,
        "notes": joined.notes,
        "version": saeval.__version__, "data": script_json(data), "search": bool(data["searches"]),
    }  # fmt: skip
    return render("joined.html.j2", context)


def _latents_page(entry: Entry, place: Path | None) -> str:
    """Return the address of a cell's latents in its run's report, relative to a page; empty if there are none."""
    name = page_name(entry.number, entry.facts["cell"])
    found = entry.folder / "report" / "latents" / f"{name}.html"
    if place is None or not found.is_file():
        return ""
    try:
        return quote(Path(relpath(found.resolve(), place.resolve().parent)).as_posix())
    except ValueError:  # another drive
        return ""


def _searches(entries: Sequence[Entry], pages: Sequence[str]) -> list[list[str]]:
    """Return the runs with searchable pages of latents, and the folders of these pages."""
    found = {}
    for entry, page in zip(entries, pages, strict=True):
        if page and (entry.folder / "report" / "latents" / "search.js").is_file():
            found[page.rpartition("/")[0] + "/"] = entry.facts["run"]
    return [[folder, run] for folder, run in found.items()]


def _differs(entries: Sequence[Entry], facet: str) -> bool:
    return len({e.facets.get(facet) for e in entries}) > 1


def _values(entries: Sequence[Entry], facet: str) -> list[str]:
    return sorted({e.facets.get(facet) or MISSING for e in entries}, key=sort_key)


def _ranked_by(board: Leaderboard) -> str:
    return f"{board.ranked_by}{_LIFT}" if board.ranking == "lift" else board.ranked_by


class _Boards:
    """The boards that the page can show, by facet and ranking column, as data for it.

    Attributes:
        pooled: By facet and number of the cell, the scores that differ within groups, since floors are pooled there.
        notes: Notes on boards, as the keys of a dictionary; boards refer to them by number.
    """

    def __init__(self, joined: Joined, columns: Sequence[str], default: str) -> None:
        self.pooled: dict[str, dict[int, dict[str, Any]]] = {}
        self.notes: dict[str, int] = {}
        self._joined = joined
        self._requests = {c: f"{c}.raw" if f"{c}{_LIFT}" in columns else c for c in columns}
        self._requests[default] = joined.rank_by
        self._number = {name: n for n, name in enumerate(joined.entries)}
        self._scores = [_scores(e, e.cell) for e in joined.entries.values()]

    def of(self, facet: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the boards of each value of a facet by ranking column; for an empty facet, those of all cells."""
        found = []
        for value, boards in self._joined.boards(facet or None, list(self._requests.values())).items():
            found.append((value, {c: self._board(boards[request]) for c, request in self._requests.items()}))
            self._add_pooled(facet, next(iter(boards.values())))
        return found

    def _add_pooled(self, facet: str, board: Leaderboard) -> None:
        for x in board.standings:
            n = self._number[x.cell.cell]
            scores = _scores(self._joined.entries[x.cell.cell], x.cell)
            changed = {column: score for column, score in scores.items() if score != self._scores[n].get(column)}
            if changed:
                self.pooled.setdefault(facet, {})[n] = changed

    def _board(self, board: Leaderboard) -> dict[str, Any]:
        order = [self._number[x.cell.cell] for x in board.standings]
        ranks = [x.rank_text for x in board.standings]
        tests, texts = tests_and_notes(board)
        against = [self._against(found) for found in tests]
        notes = [self.notes.setdefault(note, len(self.notes)) for note in texts]
        return {"by": _ranked_by(board), "order": order, "ranks": ranks, "notes": notes, "against": against}

    def _against(self, found: AgainstBaseline) -> list[Any]:
        cell, said, baseline, *rest = found.texts
        return [self._number[cell], said, self._number[baseline], *rest]


def _columns(entries: Sequence[Entry]) -> list[Column]:
    """Return the measures to show: those of narrow boards, and others that distinguish cells."""
    lines = [Line(e.run, e.cell) for e in entries]
    found = cell_columns([e.run for e in entries], "report")
    return [c for c in found if "board" in c.shown.where or len({c.value(line) for line in lines}) > 1]


def _cell(entry: Entry, columns: Sequence[Column]) -> dict[str, Any]:
    lines = {column.key: column.value(Line(entry.run, entry.cell)) for column in columns}
    texts = {c.key: shown(lines[c.key], c.shown.form("report"), c.shown.missing) for c in columns}
    return {
        "cell": entry.cell.cell,
        "baseline": entry.cell.baseline is not None,
        "facets": entry.facets,
        "measures": {key: rounded(value) for key, value in lines.items() if value is not None},
        "texts": texts,
        "scores": _scores(entry, entry.cell),
    }


def _scores(entry: Entry, cell: CellResult) -> dict[str, Any]:
    """Return scores and lifts by column; the cell may have lifts that are pooled over a group."""
    own = [row for row in cell.scores if row.variant == MAIN]
    scores = {f"{r.scorer}.{r.metric}": _score(entry, r) for r in own}
    return scores | {f"{r.scorer}.{r.metric}{_LIFT}": _lift(r) for r in own if r.lift is not None}


def _score(entry: Entry, row: ScoreRow) -> dict[str, Any]:
    return {
        "value": rounded(row.value, 9),
        "ci": row.ci95 and [rounded(v, 9) for v in row.ci95],
        "higher": row.higher_is_better,
        "range": row.range,
        "floor": {k: rounded(v) for k, v in row.floor.items()},
        "text": number(row.value),
        "between": beneath(row),
        "notes": notes(entry.run, entry.cell, row),
    }


def _lift(row: ScoreRow) -> dict[str, Any]:
    """Return a row's lift in the form of a score."""
    return {
        "value": rounded(row.lift, 9),
        "ci": row.lift_ci95 and [rounded(v, 9) for v in row.lift_ci95],
        "higher": True,
        "range": (None, None),
        "floor": {},
        "text": number(row.lift, "+.3f"),
        "between": interval(row.lift_ci95, "+.3f") + "*" * row.lift_few if row.lift_ci95 else "interval unknown",
        "notes": [],
    }
