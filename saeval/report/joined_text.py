"""Writes joined boards as text, Markdown, LaTeX, CSV, JSON and Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from saeval._compare import AgainstBaseline, Joined, Leaderboard, Matched, Standing, at_l0
from saeval._util import (
    MISSING,
    WIDTH,
    InputError,
    aligned,
    escape_markdown,
    fold,
    interval,
    latex_table,
    markdown_table,
    number,
    safe_text,
    whole_width,
)
from saeval.records import CellResult, ScoreRow, split_ranking
from saeval.report.boards import (
    Field,
    arrow,
    cell_fields,
    detail_fields,
    field_width,
    head_and_rows,
    plain_estimate,
    rank_field,
    score_fields,
    side_by_side,
)
from saeval.results import Line, csv_text, json_row, table_bytes, tidy

BOARD_FORMATS = ("text", "markdown", "latex", "csv", "json", "parquet")
"""Formats of a joined board; CSV and Parquet are tidy, one row per cell, scorer, explanation and metric."""
_FOLDED = 16  # width reserved for a name when scorers are placed beside each other; longer names are folded


def written(
    joined: Joined,
    format_: str,
    *,
    group_by: str | None = None,
    match_l0: float | None = None,
    family: str = "architecture",
    width: int = WIDTH,
) -> str | bytes:
    """Return the board in a format.

    Args:
        joined: The cells.
        format_: One of `BOARD_FORMATS`.
        group_by: Facet; each of its values gets its own board.
        match_l0: L0 at which to compare families of coders, instead of cells.
        family: Facet whose values are families.
        width: Maximum width of text. Names and heads are folded, and scorers distributed over several tables.

    Raises:
        InputError: If a facet does not exist, a family's range of L0 does not include the requested one, or the format
            does not support the options.
    """
    if format_ in ("csv", "parquet"):
        if match_l0 is not None or group_by is not None:
            raise InputError(f"{format_} contains every cell; use --group-by and --match-l0 with another format")
        return _tidy(joined, format_)
    if match_l0 is not None:
        if group_by is not None:
            raise InputError("use either --group-by or --match-l0; to choose cells, use --filter")
        found = at_l0(joined.families(family), match_l0, split_ranking(joined.rank_by)[0])
        return _matched(joined, found, match_l0, family, format_)
    boards = joined.groups(group_by)
    if format_ == "json":
        return _json(joined, {"group_by": group_by, "boards": [_board(joined, v, b) for v, b in boards.items()]})
    parts = [_title(joined, format_)]
    for value, board in boards.items():
        if group_by:
            parts.append(_heading(f"{group_by}: {value}", format_))
        parts.append(_long(joined, board) if format_ == "markdown" else _wide(joined, board, format_, width))
        if board.against:
            parts.append(_tables(width)[format_](AgainstBaseline.HEADS, [found.texts for found in board.against]))
        parts += [_line(note, format_) for note in board.notes]
    parts += [_line(note, format_) for note in joined.notes]
    return "\n\n".join(parts) + "\n"


def _tables(width: int) -> dict[str, Callable[[Sequence[str], Sequence[Sequence[object]]], str]]:
    """Return the function that writes a table, by format."""
    return {"text": partial(aligned, width=width), "latex": latex_table, "markdown": markdown_table}


def _title(joined: Joined, format_: str) -> str:
    tasks = dict.fromkeys(f"{e.run.task} {e.run.task_version}" for e in joined.entries.values())
    mark = f" — MIXED: {'; '.join(joined.differs)}" if joined.differs else ""
    return _heading(f"{', '.join(tasks)}, ranked by {_ranked_by(joined)}{mark}", format_)


def _ranked_by(joined: Joined) -> str:
    return next((board.title for board in joined.groups(None).values()), joined.rank_by)


def _heading(text: str, format_: str) -> str:
    return f"## {escape_markdown(text)}" if format_ == "markdown" else _line(text, format_)


def _line(text: str, format_: str) -> str:
    if format_ == "latex":
        return f"% {safe_text(text)}"
    return escape_markdown(text) if format_ == "markdown" else fold(text)


def _names(joined: Joined, cells: Sequence[CellResult]) -> list[Field]:
    """Return the facets that distinguish cells, as columns."""
    facets = [joined.entries[cell.cell].facets for cell in cells]
    return [Field(name, [found.get(name) or MISSING for found in facets]) for name in joined.telling()]


def _wide(joined: Joined, board: Leaderboard, format_: str, width: int) -> str:
    """Return a table with one row per cell and one column per scorer; in LaTeX, the best values are bold."""
    cells = [x.cell for x in board.standings]
    names, facts = _names(joined, cells), cell_fields(board, joined.run_of, "board")
    fixed = [rank_field(board), *names, *facts]
    if format_ == "text":
        scores = score_fields(board, joined.run_of, plain_estimate, _narrow_head)
        least = [max(whole_width([name.head, *name.texts]), min(field_width(name), _FOLDED)) for name in names]
        room = width - sum(map(field_width, [fixed[0], *facts])) - sum(least)
        tables = [head_and_rows([*fixed, *some]) for some in side_by_side(scores, room)]
        return "\n\n".join(aligned(head, rows, width) for head, rows in tables)
    fields = [*fixed, *score_fields(board, joined.run_of, plain_estimate)]
    head, rows = head_and_rows(fields)
    numbers = [field.column is not None for field in fields]
    return latex_table(head, rows, numbers, [(i, j) for j, field in enumerate(fields) for i in field.best])


def _narrow_head(scorer: str, metric: str, rows: Sequence[ScoreRow | None]) -> str:
    return f"{scorer}:\n{metric} {arrow(rows)}"


def _long(joined: Joined, board: Leaderboard) -> str:
    """Return a table with one row per cell and scorer, as in tables of language-model harnesses."""
    ranks = rank_field(board).texts
    facts = [*_names(joined, [x.cell for x in board.standings]), *cell_fields(board, joined.run_of, "board")]
    lines, places = [], []
    for place, x in enumerate(board.standings):
        for scorer, metric in board.shown:
            if (row := board.row(x.cell, scorer, metric=metric)) is not None:
                lines.append(Line(joined.run_of(x.cell), x.cell, row))
                places.append(place)
    rows = [line.score for line in lines]
    facts = [Field("rank", ranks), *facts]
    fields = [Field(fact.head, [fact.texts[place] for place in places]) for fact in facts]
    fields += [
        Field("scorer", [row.scorer for row in rows]),
        Field("metric", [row.metric for row in rows]),
    ]
    fields += [Field("", [arrow([row]) for row in rows]), *detail_fields(lines, "details")]
    fields += [field for field in detail_fields(lines, "requested") if any(field.texts)]
    return markdown_table(*head_and_rows(fields))


def _json(joined: Joined, content: dict[str, Any]) -> str:
    shared = {"rank_by": joined.rank_by, "mixed": list(joined.differs), "notes": list(joined.notes)}
    return json.dumps({**shared, **content}, indent=1, ensure_ascii=False) + "\n"


def _board(joined: Joined, value: str, board: Leaderboard) -> dict[str, Any]:
    def row(x: Standing) -> dict[str, Any]:
        scores = [r for scorer, metric in board.shown if (r := board.row(x.cell, scorer, metric=metric))]
        return {
            "cell": x.cell.cell,
            "rank": x.rank,
            "facets": joined.entries[x.cell.cell].facets,
            "measures": x.cell.measures,
            "scores": [json_row(Line(joined.run_of(x.cell), x.cell, r)) for r in scores],
        }

    return {
        "group": value or None,
        "ranked_by": board.title,
        "notes": board.notes,
        "against": [asdict(found) for found in board.against],
        "smallest_difference": board.smallest_difference,
        "smallest_against": board.smallest_against,
        "rows": [row(x) for x in board.standings],
    }


def _tidy(joined: Joined, format_: str) -> str | bytes:
    runs = [entry.run for entry in joined.entries.values()]
    if format_ == "csv":
        return csv_text(*runs)
    columns, rows = tidy(*runs)
    return table_bytes(rows, columns)


def _matched(joined: Joined, found: Sequence[Matched], l0: float, family: str, format_: str) -> str:
    if format_ == "json":
        return _json(joined, {"match_l0": l0, "family": family, "rows": [vars(m) for m in found]})
    head = ["rank", family, f"{joined.rank_by} at L0 {l0:g}", "95 % CI", "between"]
    rows = [
        [m.rank_text, m.family, number(m.value), interval(m.ci95, between=", "), " and ".join(m.between)] for m in found
    ]
    table = _tables(WIDTH)[format_](head, rows)
    note = (
        "Scores between two cells of a family are interpolated linearly over log L0. The intervals combine "
        "those of the cells' means. If a family has a third cell, at least half as far from the two in log L0 as they "
        "are from each other, they also include the bend of its curve. Otherwise the error of the interpolation is not "
        "included, and families whose cells lie at different L0 may be distinguished by it alone."
    )
    return "\n\n".join([_title(joined, format_), table, *(_line(n, format_) for n in (note, *joined.notes))]) + "\n"
