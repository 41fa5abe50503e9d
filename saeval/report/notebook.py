"""Shows runs in notebooks: boards, latents and plots, as HTML and as text."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._compare import Leaderboard
from saeval._util import InputError, counted, did_you_mean, number, safe_text, visible
from saeval.records import MAIN, RunResult, shown_at
from saeval.report.boards import (
    Field,
    cell_fields,
    head_and_rows,
    legend,
    marks,
    plain_estimate,
    rank_field,
    score_fields,
    tests_and_notes,
)
from saeval.results import RunCell

if TYPE_CHECKING:
    from saeval.results import Row

_WINDOWS = 8  # maximum windows in a latent's view
_TABLE = "style='border-collapse:collapse;font-variant-numeric:tabular-nums'"
_CELL = "style='text-align:left;padding:2px 10px 2px 0;vertical-align:top'"


@dataclass(frozen=True)
class NotebookView:
    """A view of a run, shown as HTML in a notebook and as text elsewhere.

    Attributes:
        text: The view as text.
        html: The view as self-contained HTML.
    """

    text: str
    html: str

    def __repr__(self) -> str:
        """Return the text."""
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def leaderboard(run: RunResult) -> NotebookView:
    """Return the board of a run."""
    from rich.console import Console

    from saeval.report.terminal import render

    page = io.StringIO()
    render(run, Console(file=page, width=100, force_jupyter=False))
    return NotebookView(page.getvalue(), board_html(run))


def short(run: RunResult) -> str:
    """Return a run in one line."""
    board = Leaderboard.of(run)
    best = next((x.cell for x in board.standings if x.cell.baseline is None), None)
    scorer, _, metric = board.ranked_by.rpartition(".")
    row = board.row(best, scorer, metric=metric) if best else None
    value = (
        ""
        if row is None or row.value is None
        else f", best {best.cell if best else ''} {board.ranked_by} {row.value:.3f} (n {row.n})"
    )
    partial = ", partial" if run.partial else ""
    cells = counted(len(run.cells), "cell")
    return f"<Run {run.task} {run.task_version}: {cells}{value}{partial}>"


def latent(cells: Sequence[RunCell], index: int, cell: str | None) -> NotebookView:
    """Return one latent of a run: explanations, scores, and windows with activations marked.

    Raises:
        InputError: If there is no such cell or latent, or several cells have it and none is named.
    """
    found = [c for c in cells if cell in (None, c.name) and any(row["latent"] == index for row in c.latents)]
    if cell is not None and cell not in [c.name for c in cells]:
        names = [c.name for c in cells]
        raise InputError(f"no cell {cell!r}{did_you_mean(cell, names)}; there are {'; '.join(names)}")
    if not found:
        raise InputError(f"latent {index} was not explained or scored in this run; see run.latents for those that were")
    if len(found) > 1:
        having = "; ".join(c.name for c in found)
        raise InputError(
            f"latent {index} is in several cells; name one: run.latent({index}, cell={found[0].name!r}) ({having})"
        )
    return _latent(found[0], index)


def plot(run: RunResult, folder: Path, name: str | None) -> NotebookView:
    """Return a plot of the report.

    Raises:
        InputError: If there is no such plot.
    """
    from saeval.report.html import figures_of
    from saeval.report.html.figure import as_file

    figures = {found: (drawing, legend) for found, drawing, legend in figures_of(run, folder)}
    if not figures:
        raise InputError("this run has no plots, because it has no scores")
    chosen = name or next(iter(figures))
    if chosen not in figures:
        raise InputError(f"no plot {chosen!r}{did_you_mean(chosen, [*figures])}; there are {', '.join(figures)}")
    content = b64encode(as_file(*figures[chosen], "svg")).decode()
    image = (
        f"<img alt='{escape(chosen)}' style='max-width:100%;background:white' "
        f"src='data:image/svg+xml;base64,{content}'>"
    )
    return NotebookView(f"plot {chosen}; others: {', '.join(n for n in figures if n != chosen) or 'none'}", image)


def board_html(run: RunResult) -> str:
    """Return the board of a run as an HTML table, with its marks, notes and warnings."""
    board = Leaderboard.of(run)
    cells = [x.cell for x in board.standings]
    axes = list(dict.fromkeys(axis for c in cells for axis in c.axes)) or ["cell"]
    names = [Field(axis, [c.axes.get(axis, {"cell": c.cell}.get(axis, "")) for c in cells]) for axis in axes]
    facts, scores = cell_fields(board, lambda _: run, "board"), score_fields(board, lambda _: run, plain_estimate)
    table = _table(*head_and_rows([rank_field(board), *names, *facts, *scores]))
    title = " · ".join([f"{run.task} {run.task_version}", *marks(run)])
    tests, notes = tests_and_notes(board)
    notes = [*(found.text for found in tests), *notes, *(f"! {warning}" for warning in run.warnings)]
    listed = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<p><b>{_text(title)}</b>, {_text(legend(board))}</p>{table}<ul>{listed}</ul>"


def _latent(cell: RunCell, index: int) -> NotebookView:
    facts = next(row for row in cell.latents if row["latent"] == index)
    said = [row for row in cell.explanations if row["latent"] == index]
    said.sort(key=lambda row: row["variant"] != MAIN)
    explanations = [(row["variant"], row["text"] or row["reason"]) for row in said]
    scores = [(key.removeprefix("score."), number(v)) for key, v in facts.items() if key.startswith("score.")]
    windows = [row for row in cell.examples if row["latent"] == index and row["active"]]
    strongest = sorted(windows, key=lambda row: -max(row["activations"], default=0.0))[:_WINDOWS]
    numbers = [
        ("firings", number(facts["firings"], ".0f")),
        ("density", number(facts["density"], ".2g")),
        ("max activation", number(facts["max_activation"])),
    ]
    title = f"{cell.name}, latent {index}"
    lines = [title, *(f"{name}: {value}" for name, value in [*numbers, *explanations, *scores])]
    lines += [safe_text("".join(row["tokens"])) for row in strongest]
    html = (
        f"<p><b>{_text(title)}</b></p>"
        + _table(["", ""], [*explanations, *scores, *numbers])
        + "".join(f"<p>{_marked(row)}</p>" for row in strongest)
    )
    return NotebookView("\n".join(lines), html)


def _marked(row: Row) -> str:
    """Return a window's tokens, coloured by activation, which is shown on hover."""
    most = max(row["activations"], default=0.0) or 1.0
    values = [0.0] * len(row["tokens"])
    for at, value in zip(shown_at(row["tokens"]), row["activations"], strict=True):
        values[at] = max(values[at], value)
    spans = []
    for token, value in zip(row["tokens"], values, strict=True):
        shade = f" style='background:rgba(255,160,0,{value / most:.2f})' title='{value:.3g}'" if value > 0 else ""
        spans.append(f"<span{shade}>{_text(token)}</span>")
    return "".join(spans)


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    def line(values: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag} {_CELL}>{_text(value)}</{tag}>" for value in values) + "</tr>"

    return (
        "<table "
        f"{_TABLE}><thead>{line(head, 'th')}</thead><tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"
    )


def _text(value: Any) -> str:
    return escape(visible(value))
