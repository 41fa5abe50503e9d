"""Prepares the columns and texts of leaderboards for all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from saeval._compare import AgainstBaseline, Leaderboard
from saeval._util import text
from saeval.records import Better, CellResult, Place, RunResult, ScoreRow
from saeval.results import SCORED, Column, Estimate, Line, cell_columns, estimate, score_columns

RunOf = Callable[[CellResult], RunResult]
"""Returns the run of a cell."""
EstimateText = Callable[[Estimate], str]
"""Returns a score and its interval as text."""


GAP = 2
"""Blanks between columns on a terminal."""
_MOST_TESTS = 500  # tests against baseline coders on one page; more would make it large


@dataclass(frozen=True)
class Field:
    """A column of a table as text.

    Attributes:
        head: Column head, possibly of several lines.
        texts: Text of each row.
        column: The column; None for names of cells.
        values: Values behind the texts; empty for names of cells.
        best: Rows of the contestants with the best value.
    """

    head: str
    texts: list[str]
    column: Column | None = None
    values: Sequence[Any] = ()
    best: frozenset[int] = frozenset()


def field_width(field: Field) -> int:
    """Return the width of a field on a terminal, with the gap after it."""
    lines = [line for entry in (field.head, *field.texts) for line in entry.splitlines()]
    return GAP + max(map(text.screen_width, lines), default=0)


def head_and_rows(fields: Sequence[Field]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the column heads and the rows of a table."""
    return [field.head for field in fields], [*zip(*(field.texts for field in fields), strict=True)]


def side_by_side(fields: Sequence[Field], room: int) -> Iterator[list[Field]]:
    """Distribute fields over tables of at most the width `room`; each table has at least one field."""
    table: list[Field] = []
    left = room
    for field in fields:
        width = field_width(field)
        if table and width > left:
            yield table
            table, left = [], room
        table.append(field)
        left -= width
    if table:
        yield table


def score_head(scorer: str, metric: str, rows: Iterable[ScoreRow | None]) -> str:
    """Return the head of a scorer's column: `detection: balanced_accuracy ↑`."""
    return f"{scorer}: {metric} {arrow(rows)}".rstrip()


def arrow(rows: Iterable[ScoreRow | None]) -> str:
    """Return `↑` if higher is better, `↓` if lower is better, and an empty text if neither is."""
    return {"higher": "↑", "lower": "↓", None: ""}[_better(rows)]


def _better(rows: Iterable[ScoreRow | None]) -> Better | None:
    directions = {row.higher_is_better for row in rows if row}
    if None in directions:
        return None
    return "lower" if False in directions else "higher"


def plain_estimate(found: Estimate) -> str:
    """Return a score as `0.612 [0.574, 0.651]`, or the reason why it is missing."""
    if found.value is None:
        return found.missing
    return f"{text.number(found.value)} [{text.interval(found.ci95, between=', ')}]" + found.marks


def short_estimate(found: Estimate) -> str:
    """Return a score as `.612 [.57 .65]`, or the reason why it is missing."""
    if found.value is None:
        return found.missing
    return f"{text.short(found.value)} [{text.short_interval(found.ci95)}]" + found.marks


def roomy_estimate(found: Estimate, *more: str) -> str:
    """Return a score as `0.612 (0.574 to 0.651; more)`, or the reason why it is missing."""
    if found.value is None:
        return found.missing
    between = ("unknown" if found.ci95 is None else text.interval(found.ci95)) + found.marks
    return f"{text.number(found.value)} ({'; '.join([between, *more])})"


def beneath(row: ScoreRow) -> str:
    """Return what pages show beneath a score: its interval with marks, or the reason why the score is missing."""
    found = estimate(row)
    if found.value is None:
        return found.why
    return (text.interval(found.ci95) if found.ci95 else "interval unknown") + found.marks


def marks(run: RunResult) -> list[str]:
    """Return the marks that a run's boards carry beside its name, such as `partial`."""
    flags = {
        "partial": run.partial,
        "synthetic": run.synthetic,
        "recorded": run.recorded,
        "not reproducible": not run.reproducible,
    }
    return [mark for mark, on in flags.items() if on]


def legend(board: Leaderboard) -> str:
    """Return what a narrow board's cells contain, and the column that ranks."""
    if not board.metrics:
        return "no scores"
    return f"mean over latents [95 % interval] n scored/tried; ranked by {board.title}"


def tests_and_notes(board: Leaderboard) -> tuple[Sequence[AgainstBaseline], list[str]]:
    """Return the tests against baseline coders that a page shows, and its notes; a note stands for too many tests."""
    if len(board.against) <= _MOST_TESTS:
        return board.against, board.notes
    instead = f"`saeval leaderboard` prints the {len(board.against):,} tests against baseline coders."
    return (), [*board.notes, instead]


def rank_field(board: Leaderboard) -> Field:
    """Return the column of ranks."""
    return Field("rank", [x.rank_text for x in board.standings])


def cell_fields(board: Leaderboard, run_of: RunOf, place: Place) -> list[Field]:
    """Return the columns about cells for a table with one row per cell."""
    cells = [x.cell for x in board.standings]
    runs = [run_of(cell).model_copy(update={"cells": [cell]}) for cell in cells]
    found = []
    for column in cell_columns(runs, place):
        values = [column.value(Line(run, cell)) for run, cell in zip(runs, cells, strict=True)]
        found.append(_field(board, column, column.head, values, place))
    return found


def score_fields(
    board: Leaderboard,
    run_of: RunOf,
    write: EstimateText,
    head: Callable[[str, str, Sequence[ScoreRow | None]], str] = score_head,
) -> list[Field]:
    """Return the columns about scores for a narrow table with one row per cell, scorer by scorer; n follows scores."""
    found = []
    cells = [x.cell for x in board.standings]
    for scorer, metric in board.shown:
        rows = [board.row(cell, scorer, metric=metric) for cell in cells]
        better = _better(rows)
        for column in score_columns("board"):
            lines = [Line(run_of(c), c, row) if row else None for c, row in zip(cells, rows, strict=True)]
            values = [column.value(line) if line else None for line in lines]
            if column.name == "score":
                texts = [_with_n(line, write) if line else text.MISSING for line in lines]
                best = _best(board, [value and value.value for value in values], better)
                found.append(Field(head(scorer, metric, rows), texts, column, values, best))
            elif any(value is not None for value in values):
                found.append(_field(board, column, f"{scorer}: {column.head}", values, "board"))
    return found


def _with_n(line: Line, write: EstimateText) -> str:
    """Return a score followed by its n: `.612 [.57 .65] n 48/50`."""
    found = estimate(line.score)
    return write(found) if found.value is None else f"{write(found)} {SCORED.head} {SCORED.value(line)}"


def notes(run: RunResult, cell: CellResult, row: ScoreRow) -> list[str]:
    """Return further facts about a score for wide tables: `n 48/50`, `lift +0.211`."""
    line = Line(run, cell, row)
    columns = [column for column in score_columns("report") if column.name != "score"]
    values = [(column, column.value(line)) for column in columns]
    return [f"{column.head} {text.shown(v, column.shown.form('report'))}" for column, v in values if v is not None]


def detail_fields(lines: Sequence[Line], place: Place, write: EstimateText = plain_estimate) -> list[Field]:
    """Return the columns for a table with one row per score."""
    found = []
    for column in score_columns(place):
        values = [column.value(line) for line in lines]
        texts = [
            write(v) if isinstance(v, Estimate) else text.shown(v, column.shown.form(place), column.shown.missing)
            for v in values
        ]
        found.append(Field(column.head, texts, column, values))
    return found


def _field(board: Leaderboard, column: Column, head: str, values: Sequence[Any], place: Place) -> Field:
    texts = [text.shown(value, column.shown.form(place), column.shown.missing) for value in values]
    return Field(head, texts, column, values, _best(board, values, column.shown.better))


def _best(board: Leaderboard, values: Sequence[float | None], better: Better | None) -> frozenset[int]:
    """Return the rows of the contestants with the best value; empty for fewer than two, or without a direction."""
    if better is None:
        return frozenset()
    rivals = {i: v for i, v in enumerate(values) if v is not None and board.standings[i].cell.baseline is None}
    if len(rivals) < 2:
        return frozenset()
    best = (max if better == "higher" else min)(rivals.values())
    return frozenset(i for i, v in rivals.items() if v == best)
