"""Prints the leaderboard on a terminal, with interval, floor, n and coverage beside every score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from saeval._compare import Leaderboard
from saeval._util import safe_text, text
from saeval.records import MAIN, CellResult, Finding, RunResult, ScoreRow
from saeval.report.boards import (
    Field,
    arrow,
    cell_fields,
    detail_fields,
    field_width,
    rank_field,
    score_fields,
    short_estimate,
    side_by_side,
)
from saeval.results import Line

if TYPE_CHECKING:
    from rich.console import Console

_NAMES = 14  # columns kept free for each axis when scorers are laid side by side; longer names fold
_GAP = 2


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

    flags = {
        "PARTIAL": run.partial,
        "SYNTHETIC": run.synthetic,
        "RECORDED": run.recorded,
        "NOT REPRODUCIBLE": not run.reproducible,
    }
    say("  ".join([f"{run.task} {run.task_version}", *common, *(mark for mark, on in flags.items() if on)]), "bold")
    judges = [_judge(row) for cell in run.cells for row in cell.scores]
    for title, values in (
        ("subject", [c.subject for c in run.cells]),
        ("explainer", [c.explainer for c in run.cells]),
        ("judge", judges),
    ):
        if names := ", ".join(dict.fromkeys(v for v in values if v)):
            say(f"{title:10}{names}")
    say(f"mean over latents [95 % interval]; ranked by {board.title}")
    _print_board(console, board, run, axes)
    for scorer, metric in board.shown:
        _print_details(console, board, run, axes, scorer, metric)

    if run.findings:
        console.print(Text("\nfindings", style="bold"))
    for finding in run.findings:
        say(finding_line(finding))

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
    """Print one line per cell; scorers that do not fit side by side go into further tables."""
    cells = [x.cell for x in board.standings]
    fixed = [rank_field(board), *_axis_fields(cells, axes), *cell_fields(board, lambda _: run, "board")]
    facts = [field for field in fixed if field.column is not None]
    room = console.width - sum(_NAMES for _ in axes) - sum(field_width(field) for field in [fixed[0], *facts])
    dim = [cell.baseline is not None for cell in cells]
    for scores in side_by_side(score_fields(board, lambda _: run, short_estimate, _heading), room):
        _print_table(console, "", [*fixed, *scores], dim, folding=axes)


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
    title = f"{scorer}: {metric}" + ("" if chance is None else f", chance {text.short(chance)}")
    names = ["its own" if v == MAIN else v.removesuffix("_explanation") for _, v, _ in found]
    lines = [Line(run, cell, row) for cell, _, row in found]
    fields = [*_axis_fields([cell for cell, _, _ in found], axes), Field("explanation", names)]
    fields += detail_fields(lines, "scores", short_estimate)
    _print_table(console, title, fields, [v != MAIN for _, v, _ in found], folding=[*axes, "explanation"])


def _axes(cells: Sequence[CellResult]) -> tuple[list[str], list[str]]:
    """Return the axes that distinguish cells, and the others as `name=value`; `cell` when there is none."""
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
    counts = sorted({row.n for row in rows if row}) or [0]
    n = f"n {counts[0]}" if len(counts) == 1 else f"n {counts[0]}–{counts[-1]}"
    chance = _chance(rows)
    facts = n if chance is None else f"chance {text.short(chance)}, {n}"
    return "\n".join([*wrap(safe_text(scorer), 20), *wrap(f"{safe_text(metric)} {arrow(rows)}", 20), facts])


def _chance(rows: Iterable[ScoreRow | None]) -> float | None:
    return next((row.floor["chance"] for row in rows if row and "chance" in row.floor), None)


def _print_table(
    console: Console, title: str, fields: Sequence[Field], dim: Sequence[bool], folding: Sequence[str]
) -> None:
    """Print a table in which only names fold, never numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for field in fields:
        lines = Text("\n".join(safe_text(line) for line in field.head.splitlines()))
        table.add_column(lines, no_wrap=field.head not in folding, overflow="fold", vertical="top")
    for row, is_dim in zip(zip(*(field.texts for field in fields), strict=True), dim, strict=True):
        table.add_row(
            *(Text(safe_text(entry)) for entry in row), style="dim" if is_dim else ""
        )  # Text: no markup is read
    console.print()
    if title:
        console.print(Text(safe_text(title), style="bold"))
    console.print(table)
