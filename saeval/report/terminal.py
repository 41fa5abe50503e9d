"""Prints the leaderboard on a terminal, with interval, floor, n and coverage beside every score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import TYPE_CHECKING

from saeval._compare import Leaderboard, strata_texts
from saeval._util import safe_text, text
from saeval.records import MAIN, CellResult, Finding, RunResult, ScoreRow
from saeval.report.boards import (
    GAP,
    Field,
    arrow,
    cell_fields,
    detail_fields,
    field_width,
    legend,
    marks,
    rank_field,
    score_fields,
    short_estimate,
    side_by_side,
)
from saeval.results import Line

if TYPE_CHECKING:
    from rich.console import Console

_LEAST = 8  # width below which no name is folded
_NAMES = 14  # width above which a name is folded to make room for more columns of numbers


def render(run: RunResult, console: Console | None = None) -> None:
    """Print the leaderboard, as plain text 80 columns wide if there is no terminal.

    Args:
        run: The run.
        console: Console to print on; default: standard output.
    """
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = text.WIDTH
    board = Leaderboard.of(run)
    axes, common = _axes(run.cells)

    def say(line: str, style: str = "") -> None:
        console.print(Text(safe_text(line), style=style))

    say("  ".join([f"{run.task} {run.task_version}", *common, *map(str.upper, marks(run))]), "bold")
    judges = [_judge(row) for cell in run.cells for row in cell.scores]
    for title, values in (
        ("subject", [c.subject for c in run.cells]),
        ("explainer", [c.explainer for c in run.cells]),
        ("judge", judges),
    ):
        if names := ", ".join(dict.fromkeys(v for v in values if v)):
            say(f"{title:10}{names}")
    say(legend(board))
    _print_board(console, board, run, axes)
    for scorer, metric in board.shown:
        _print_details(console, board, run, axes, scorer, metric)

    if run.findings:
        console.print(Text("\nfindings", style="bold"))
    for finding in run.findings:
        say(finding_line(finding))

    if run.controls:
        console.print(Text("\ntrained against controls", style="bold"))
    for sentence in strata_texts(run.controls):
        say(sentence)

    console.print()
    if board.against:
        console.print(Text("against baseline coders", style="bold"))
    for found in board.against:
        say(found.text)
    for note in board.notes:
        say(note)
    for warning in run.warnings:
        say(f"! {warning}", "yellow")


def _judge(row: ScoreRow) -> str | None:
    """Return a judge's name, with the verdict of its check for this scorer."""
    if row.judge is None:
        return None
    return f"{row.judge} ({row.scorer}: {row.verdict})" if row.verdict else f"{row.judge} (unchecked)"


def finding_line(found: Finding) -> str:
    """Return a claim, its outcome in this run, and the numbers behind it."""
    n = " and ".join(map(str, found.n))
    facts = [] if found.difference is None else [text.number(found.difference, "+.3f")]
    facts += [] if found.ci95 is None else [f"[{text.interval(found.ci95, '+.3f', ' ')}]"]
    facts += [] if found.p is None else [f"p {text.number(found.p, '.2g')}"]
    facts += [f"n {n}"] if n else []
    return f"{found.outcome}: {found.claim} ({found.reason or ', '.join(facts)})"


def _print_board(console: Console, board: Leaderboard, run: RunResult, axes: Sequence[str]) -> None:
    """Print one line per cell; scorers that do not fit beside each other go into further tables."""
    cells = [x.cell for x in board.standings]
    names, rank = _axis_fields(cells, axes), rank_field(board)
    facts = cell_fields(board, lambda _: run, "board")
    scores = score_fields(board, lambda _: run, short_estimate, _heading)
    dim = [cell.baseline is not None for cell in cells]
    room = console.width - field_width(rank)
    beside = sum(map(field_width, facts))
    if beside + max(map(field_width, scores), default=0) > room - sum(map(_least, names)):
        facts, scores, beside = [], [*facts, *scores], 0  # facts go into a table of their own
    for some, folded in _tables(names, scores, room - beside):
        _print_table(console, "", [rank, *folded, *facts, *some], dim)


def _print_details(
    console: Console, board: Leaderboard, run: RunResult, axes: Sequence[str], scorer: str, metric: str
) -> None:
    """Print a line per cell and explanation for one scorer."""
    found = [
        (x.cell, variant, row)
        for x in board.standings
        for variant in (MAIN, *board.variants)
        if (row := board.row(x.cell, scorer, variant, metric))
    ]
    chance = _chance(row for _, _, row in found)
    others = [variant != MAIN for _, variant, _ in found]
    title = f"{scorer}: {metric}" + ("" if chance is None else f", chance {text.short(chance)}")
    title += "; indented: other explanations" * any(others)
    cells = [", ".join(cell.axes.get(axis, text.MISSING) for axis in axes) for cell, _, _ in found]
    if axes == ["cell"]:
        cells = [cell.cell for cell, _, _ in found]
    variants = [f"  {variant.removesuffix('_explanation')}" for _, variant, _ in found]
    names = [variant if other else cell for cell, variant, other in zip(cells, variants, others, strict=True)]
    lines = [Line(run, cell, row) for cell, _, row in found]
    fields = [field for field in detail_fields(lines, "scores", short_estimate) if _has_content(field)]
    for some, folded in _tables([Field(", ".join(axes), names)], fields, console.width):
        _print_table(console, title, [*folded, *some], others)


def _has_content(field: Field) -> bool:
    """Return whether a column has any text; a column of prices must also have one that is not 0."""
    is_price = field.column is not None and field.column.shown.unit == "$"
    return any(field.texts) and not (is_price and all(value == 0 for value in field.values))


def _tables(
    names: Sequence[Field], numbers: Sequence[Field], room: int
) -> Iterator[tuple[Sequence[Field], Sequence[Field]]]:
    """Distribute columns of numbers over tables that fit the width `room`; each table begins with the folded names.

    On very narrow terminals, numbers are folded between words, too.
    """
    room += GAP  # there is no gap after the last column
    least = [max(_whole(field), min(field_width(field), GAP + _NAMES)) for field in names]
    narrow = room - sum(map(_least, names))
    numbers = [field if field_width(field) <= narrow else _in_words(field, narrow - GAP) for field in numbers]
    for some in side_by_side(numbers, room - sum(least)):
        yield some, _folded(names, room - sum(map(field_width, some)))


def _whole(names: Field) -> int:
    """Return the minimum width of a column of names at which no word is cut, including the gap after it."""
    indent = max((len(name) - len(name.lstrip()) for name in names.texts), default=0)
    return GAP + max(text.whole_width([names.head]), indent + text.whole_width(names.texts))


def _least(names: Field) -> int:
    """Return the width to which a column of names is folded at most, even within words, including the gap."""
    return min(field_width(names), GAP + _LEAST)


def _in_words(numbers: Field, width: int) -> Field:
    """Fold a column of numbers to a width between words; no number is cut."""
    texts = ["\n".join(wrap(entry, max(1, width), break_long_words=False)) for entry in numbers.texts]
    least = max([width, *(text.screen_width(line) for entry in texts for line in entry.splitlines())])
    head = [line for part in numbers.head.splitlines() for line in text.folded_name(part, least)]
    return replace(numbers, head="\n".join(head), texts=texts)


def _folded(names: Sequence[Field], room: int) -> list[Field]:
    """Fold columns of names to fit the width `room`: between words, and within words only if necessary."""
    widths = [field_width(field) for field in names]
    for least in ([_whole(field) for field in names], [_least(field) for field in names]):
        while sum(widths) > room and any(w > low for w, low in zip(widths, least, strict=True)):
            widest = max((i for i, low in enumerate(least) if widths[i] > low), key=lambda i: widths[i])
            widths[widest] -= 1
    return [_in_lines(field, width - GAP) for field, width in zip(names, widths, strict=True)]


def _in_lines(names: Field, width: int) -> Field:
    def lines(name: str) -> str:
        indent = " " * (len(name) - len(name.lstrip()))
        return "\n".join(indent + line for line in text.folded_name(safe_text(name), width - len(indent)))

    return Field("\n".join(text.folded_name(safe_text(names.head), width)), [*map(lines, names.texts)])


def _axes(cells: Sequence[CellResult]) -> tuple[list[str], list[str]]:
    """Return the axes that distinguish cells (`cell` if there are none), and the other axes as `name=value`."""
    axes = dict.fromkeys(axis for c in cells for axis in c.axes)
    values = {axis: {c.axes.get(axis) for c in cells} for axis in axes}
    telling = [axis for axis in axes if len(values[axis]) > 1]
    if len({tuple(c.axes.get(a) for a in telling) for c in cells}) < len(cells) or not telling:
        return ["cell"], []
    return telling, [f"{axis}={v}" for axis in axes if axis not in telling for v in values[axis]]


def _axis_fields(cells: Sequence[CellResult], axes: Sequence[str]) -> list[Field]:
    if axes == ["cell"]:
        return [Field("cell", [cell.cell for cell in cells])]
    return [Field(axis, [cell.axes.get(axis, text.MISSING) for cell in cells]) for axis in axes]


def _heading(scorer: str, metric: str, rows: Sequence[ScoreRow | None]) -> str:
    chance = _chance(rows)
    facts = [] if chance is None else [f"chance {text.short(chance)}"]
    return "\n".join(
        [*text.folded_name(safe_text(scorer), 20), *text.folded_name(f"{safe_text(metric)} {arrow(rows)}", 20), *facts]
    )


def _chance(rows: Iterable[ScoreRow | None]) -> float | None:
    return next((row.floor["chance"] for row in rows if row and "chance" in row.floor), None)


def _print_table(console: Console, title: str, fields: Sequence[Field], dim: Sequence[bool]) -> None:
    """Print a table whose columns are already laid out."""
    from rich.table import Table
    from rich.text import Text

    def entry(lines: str) -> Text:  # as Text, so that markup in names has no effect
        return Text("\n".join(line[: len(line) - len(line.lstrip())] + safe_text(line) for line in lines.splitlines()))

    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for field in fields:
        table.add_column(entry(field.head), no_wrap=True, overflow="fold", vertical="top")
    for row, is_dim in zip(zip(*(field.texts for field in fields), strict=True), dim, strict=True):
        table.add_row(*map(entry, row), style="dim" if is_dim else "")
    console.print()
    if title:
        console.print(Text(safe_text(title), style="bold"))
    width = sum(map(field_width, fields)) - GAP
    table.width = width if width > console.width else None
    console.print(table, crop=False)  # a table that is too wide is continued on the next line of the terminal, not cut
