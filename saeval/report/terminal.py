"""The leaderboard on a terminal, with interval, floor, n and coverage beside every score."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from saeval._compare import AgainstBaseline, Leaderboard
from saeval._util import safe_text
from saeval.records import MAIN, CellResult, Finding, RunResult, ScoreRow

if TYPE_CHECKING:
    from rich.console import Console

_NAMES = 14  # columns kept free for each axis when scorers are laid side by side; longer names fold
_GAP = 2


def number(value: float | None, digits: int = 3) -> str:
    """Write a score: `.612`, `-.020`, `1.00`, `23.4`; `–` for none."""
    if value is None:
        return "–"
    if abs(value) >= 10:
        return f"{value:.{digits + 1}g}"
    text = f"{value:.{digits if abs(value) < 1 else digits - 1}f}"
    return re.sub(r"^-(?=\.0*$)", "", re.sub(r"^(-?)0\.", r"\1.", text))


def with_interval(row: ScoreRow | None) -> str:
    """Write a score and its interval: `.612 [.55 .67]`; for a missing one, on how many latents it failed."""
    if row is None:
        return "–"
    if row.value is None:
        return f"– ({row.failed} failed)" if row.failed else "– (skipped)" if row.skipped else "– (none tried)"
    if row.ci95 is None:
        return f"{number(row.value)} [– –]"
    low, high = row.ci95
    digits = 2 if high - low >= 0.02 else 3
    return f"{number(row.value)} [{number(low, digits)} {number(high, digits)}]"


def render(run: RunResult, console: Console | None = None) -> None:
    """Print the leaderboard; plain text, 100 columns wide, where there is no terminal.

    Args:
        run: The run.
        console: Where to; standard output when left out.
    """
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = 100
    board = Leaderboard.of(run)
    axes, common = _axes(run.cells)

    def say(text: str, style: str = "") -> None:
        console.print(Text(safe_text(text), style=style))

    marks = [
        m
        for m, on in (
            ("PARTIAL", run.partial),
            ("SYNTHETIC", run.synthetic),
            ("NOT REPRODUCIBLE", not run.reproducible),
        )
        if on
    ]
    say("  ".join([f"{run.task} {run.task_version}", *common, *marks]), "bold")
    for title, values in (
        ("subject", [c.subject for c in run.cells]),
        ("explainer", [c.explainer for c in run.cells]),
        ("judge", [r.judge for c in run.cells for r in c.scores]),
    ):
        if names := ", ".join(dict.fromkeys(v for v in values if v)):
            say(f"{title:10}{names}")
    what = "lift of" if board.ranking == "lift" else "raw"
    say(f"mean over latents [95 % interval]; ranked by {what} {board.ranked_by}")

    columns = {
        s: [_heading(board, s), *(with_interval(board.row(x.cell, s)) for x in board.standings)] for s in board.metrics
    }
    for scorers in _side_by_side(columns, console.width - sum(_NAMES for _ in axes) - 6 - 8 - 7):
        rows = [
            [
                x.rank_text, *_axis_values(x.cell, axes), _measure(x.cell, "l0", ".1f"), _measure(x.cell, "frac_alive", ".2f"),
                *(columns[s][i + 1] for s in scorers),
            ]
            for i, x in enumerate(board.standings)
        ]  # fmt: skip
        dim = [x.cell.baseline is not None for x in board.standings]
        _print_table(
            console, "", ["rank", *axes, "L0", "alive", *(columns[s][0] for s in scorers)], rows, dim, folding=axes
        )

    for scorer, metric in board.metrics.items():
        found = [
            (x.cell, v, row)
            for x in board.standings
            for v in (MAIN, *board.variants)
            if (row := board.row(x.cell, scorer, v))
        ]
        rows = [
            [*_axis_values(cell, axes), "its own" if v == MAIN else v.removesuffix("_explanation"), *_details(row)]
            for cell, v, row in found
        ]
        title = f"{scorer}: {metric}" + (f", chance {number(chance)}" if (chance := _chance(found)) is not None else "")
        heads = [*axes, "explanation", "words", "score", "n", "fail", "cover", "lift", "$"]
        _print_table(console, title, heads, rows, [v != MAIN for _, v, _ in found], folding=[*axes, "explanation"])

    if run.findings:
        console.print(Text("\nfindings", style="bold"))
    for finding in run.findings:
        say(finding_line(finding))

    console.print()
    for found in board.against:
        say(against_line(found, board))
    for line in board.notes:
        say(line)
    for warning in run.warnings:
        say(f"! {warning}", "yellow")


def against_line(found: AgainstBaseline, board: Leaderboard) -> str:
    """Write how a contestant compares with a baseline coder."""
    verdict = "above" if found.difference > 0 else "below"
    said = verdict if found.p <= 0.05 else "not told apart from"
    what = "lift" if board.ranking == "lift" else "score"
    low, high = found.ci95
    return (
        f"{found.cell}: {said} {found.baseline} ({what} {found.difference:+.3f} [{low:+.3f} {high:+.3f}], "
        f"p {found.p:.2g}, Holm)"
    )


def finding_line(found: Finding) -> str:
    """Write a claim, what the run says of it, and by which numbers."""
    n = " and ".join(map(str, found.n))
    facts = [] if found.difference is None else [f"{found.difference:+.3f}"]
    facts += [] if found.ci95 is None else [f"[{found.ci95[0]:+.3f} {found.ci95[1]:+.3f}]"]
    facts += [] if found.p is None else [f"p {found.p:.2g}"]
    facts += [f"n {n}"] if n else []
    return f"{found.outcome}: {found.claim} ({found.reason or ', '.join(facts)})"


def _axes(cells: Sequence[CellResult]) -> tuple[list[str], list[str]]:
    """Return the axes that tell cells apart, and the others as `name=value`; `cell` when there is none."""
    axes = dict.fromkeys(axis for c in cells for axis in c.axes)
    values = {axis: {c.axes.get(axis) for c in cells} for axis in axes}
    telling = [axis for axis in axes if len(values[axis]) > 1]
    if len({tuple(c.axes.get(a) for a in telling) for c in cells}) < len(cells) or not telling:
        return ["cell"], []
    return telling, [f"{axis}={v}" for axis in axes if axis not in telling for v in values[axis]]


def _axis_values(cell: CellResult, axes: Sequence[str]) -> list[str]:
    return [cell.cell] if axes == ["cell"] else [cell.axes.get(axis, "–") for axis in axes]


def _heading(board: Leaderboard, scorer: str) -> str:
    rows = [row for x in board.standings if (row := board.row(x.cell, scorer))]
    counts = sorted({row.n for row in rows}) or [0]
    n = f"n {counts[0]}" if len(counts) == 1 else f"n {counts[0]}–{counts[-1]}"
    arrow = " ↑" if all(row.higher_is_better for row in rows) else " ↓"
    chance = next((f"chance {number(row.floor['chance'])}, " for row in rows if "chance" in row.floor), "")
    return "\n".join([*wrap(safe_text(scorer), 20), *wrap(safe_text(board.metrics[scorer]) + arrow, 20), chance + n])


def _chance(found: Iterable[tuple[CellResult, str, ScoreRow]]) -> float | None:
    return next((row.floor["chance"] for _, _, row in found if "chance" in row.floor), None)


def _details(row: ScoreRow) -> list[str]:
    lift = "" if row.lift is None else f"{row.lift:+.3f}"
    usd = "?" if row.usd is None else f"{row.usd:.2f}"
    words = "–" if row.explanation_words is None else f"{row.explanation_words:.1f}"
    return [words, with_interval(row), f"{row.n}/{row.tried}", str(row.failed), f"{row.coverage:.0%}", lift, usd]


def _measure(cell: CellResult, name: str, form: str) -> str:
    value = cell.measures.get(name)
    return "–" if value is None else format(value, form)


def _side_by_side(columns: dict[str, list[str]], room: int) -> Iterable[list[str]]:
    """Share columns out over tables so that none is wider than the room; each table gets at least one."""
    table: list[str] = []
    left = room
    for name, texts in columns.items():
        width = _GAP + max(len(line) for text in texts for line in text.splitlines())
        if table and width > left:
            yield table
            table, left = [], room
        table.append(name)
        left -= width
    if table:
        yield table


def _print_table(
    console: Console,
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    dim: Sequence[bool],
    folding: Sequence[str],
) -> None:
    """Print a table in which only names fold, never numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for head in heads:
        lines = Text("\n".join(safe_text(line) for line in head.splitlines()))
        table.add_column(lines, no_wrap=head not in folding, overflow="fold", vertical="top")
    for row, is_dim in zip(rows, dim, strict=True):
        table.add_row(
            *(Text(safe_text(value)) for value in row), style="dim" if is_dim else ""
        )  # Text: no markup is read
    console.print()
    if title:
        console.print(Text(safe_text(title), style="bold"))
    console.print(table)
