"""Cells of many runs on one page that stands by itself: filtered, grouped, ranked and drawn by whatever its reader chooses."""

from __future__ import annotations

from typing import Any

import saeval
from saeval._compare import Entry, Joined
from saeval.records import MAIN, ScoreRow
from saeval.report.html.pages import render
from saeval.report.html.text import number, script_json
from saeval.report.method import named


def joined_page(joined: Joined, group_by: str | None = None) -> str:
    """Return the page.

    Args:
        joined: The cells, after `join` saw that they can be compared, or marked in what they differ.
        group_by: Facet by which cells are grouped when the page is opened.

    Raises:
        InputError: If no cell has such a facet.
    """
    joined.groups(group_by)
    entries = list(joined.entries.values())
    facets = list(dict.fromkeys(f for e in entries for f in e.facets))
    rows = [row for e in entries for row in e.cell.scores if row.variant == MAIN]
    measures = dict.fromkeys(m for e in entries for m in e.cell.measures)
    headlines = {r.scorer: f"{r.scorer}.{r.metric}" for r in reversed(rows)}
    data = {
        "rank": joined.rank_by, "group": group_by or "", "telling": joined.telling(),
        "columns": list(dict.fromkeys(f"{r.scorer}.{r.metric}" for r in rows)),
        "headlines": list(dict.fromkeys(headlines[r.scorer] for r in rows)),
        "facets": [f for f in facets if f != "cell" and len({e.facets.get(f) for e in entries}) > 1],
        "measures": [m for m in measures if m == "l0" or len({e.cell.measures.get(m) for e in entries}) > 1],
        "cells": [_cell(e) for e in entries],
    }  # fmt: skip
    context = {
        "tasks": named(f"{e.run.task} {e.run.task_version}" for e in entries), "cells": len(entries),
        "runs": list(dict.fromkeys(e.facets["run"] for e in entries)), "subject": named(e.cell.subject for e in entries),
        "judge": named(e.facets["judge"] for e in entries), "differs": joined.differs, "notes": joined.notes,
        "version": saeval.__version__, "data": script_json(data),
    }  # fmt: skip
    return render("joined.html.j2", context)


def _cell(entry: Entry) -> dict[str, Any]:
    return {
        "cell": entry.cell.cell, "baseline": entry.cell.baseline is not None, "facets": entry.facets,
        "measures": {k: number(v) for k, v in entry.cell.measures.items()},
        "scores": {f"{r.scorer}.{r.metric}": _score(r) for r in entry.cell.scores if r.variant == MAIN},
    }  # fmt: skip


def _score(row: ScoreRow) -> dict[str, Any]:
    return {
        "value": number(row.value, 9), "ci": row.ci95 and [number(v, 9) for v in row.ci95], "n": row.n, "tried": row.tried,
        "higher": row.higher_is_better, "range": row.range, "lift": number(row.lift), "floor": {k: number(v) for k, v in row.floor.items()},
    }  # fmt: skip
