"""Writes the report as web pages, `index.html` and one page per cell, that open from disk without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._util import InputError, claim, is_empty, is_ours, os_reason, write_atomic
from saeval.records import RunResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from saeval._compare import Leaderboard
    from saeval.report.html.figure import PlotFormat
    from saeval.report.html.latents import CellTables
    from saeval.report.html.plots import Series

_PER_FILE = 40  # latents per file, which loads in well under a second
_PER_FILE_OF_LARGE = 100  # latents per file of a large cell, which would otherwise have tens of thousands of files


def write_html(run: RunResult, run_dir: Path, folder: Path) -> Path:
    """Write `index.html`, and in `latents/` a page for each cell that has tables.

    Args:
        run: The results.
        run_dir: Folder with `cells/` and `spec.yaml`; the report skips missing files.
        folder: Folder of the pages; outdated pages of an earlier report are removed.

    Returns:
        The file to open.

    Raises:
        InputError: If a table cannot be read or the folder cannot be written to.
    """
    from saeval.report.html import index
    from saeval.report.html.paged import LARGE, PER_FOLDER
    from saeval.report.html.pages import latents_page, render
    from saeval.report.html.text import dense, dense_json, dense_packed, script_json, utf16

    board, tables, pages = _gathered(run, run_dir)
    written = set()

    def put(place: str, content: str | bytes) -> None:
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)
        written.add(file)

    for name, found in tables.items():
        numbers, page = found.numbers, pages[name]
        large = len(numbers) >= LARGE
        per_file = _PER_FILE_OF_LARGE if large else _PER_FILE
        for n, begin in enumerate(range(0, len(numbers), per_file)):
            some = numbers[begin : begin + per_file]
            place = f"latents/{page}/{n // PER_FOLDER}/{n}" if large else f"latents/{page}/{n}"
            details, tokens = found.details(some)
            put(f"{place}.js", utf16(f'saevalLatents({n},"{dense_json(details)}","{dense_packed(tokens)}");\n'))
            if found.has_calls:
                places, calls = found.calls(some)
                put(f"{place}.calls.js", utf16(f'saevalCalls({n},"{dense_json(places)}","{dense(calls)}");\n'))
        text, parts = latents_page(run, board, found, page, per_file, large=large)
        put(f"latents/{page}.html", text)
        for part, content in parts:
            put(f"latents/{page}/{part}.js", content)
    if tables:
        put("latents/search.js", f"saevalSearch({script_json(_explanations(tables, pages))});\n")
    addresses = {c: f"latents/{p}.html" for c, p in pages.items()}
    put("index.html", render("index.html.j2", index.context(run, board, tables, addresses, _spec(run_dir))))
    for old in (folder / "latents").glob("**/*"):
        if old.suffix in (".html", ".js") and old not in written:
            old.unlink()
    return folder / "index.html"


def write_plots(run: RunResult, run_dir: Path, folder: Path, format_: PlotFormat = "svg") -> list[Path]:
    """Write the plots of the report as files for papers, each with its legend.

    Args:
        run: The results.
        run_dir: Folder with `cells/`.
        folder: Folder of the files.
        format_: `svg`, `pdf` (vectors, text as text) or `png` (300 dots per inch at 9 cm).

    Returns:
        The files.

    Raises:
        InputError: If a table cannot be read, the folder cannot be written to, or the package required for PDF or PNG
            is not installed.
    """
    from saeval.report.html.figure import as_file

    made = {
        folder / f"{name}.{format_}": as_file(drawing, legend, format_)
        for name, drawing, legend in figures_of(run, run_dir)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_empty(folder):
            claim(folder, "plots")
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({os_reason(error)})") from error
    taken = [] if is_ours(folder) else [file for file in made if file.exists() or file.is_symlink()]
    if taken:
        raise InputError(f"{taken[0]}: already exists and is not saeval's; choose another directory for plots")
    for file, content in made.items():
        write_atomic(file, content)
    return list(made)


def _explanations(tables: Mapping[str, CellTables], pages: Mapping[str, str]) -> list[list[Any]]:
    """Return, for each cell, its name, its page, and each latent's number, explanation and first score.

    Large cells have an index of words instead; see `paged`.
    """
    from saeval.report.html.paged import LARGE

    found: list[list[Any]] = []
    for name, cell in tables.items():
        if len(cell.numbers) >= LARGE:
            found.append([name, pages[name], None])
            continue
        scores = cell.column(cell.ranked[0].key) if cell.ranked else [None] * len(cell.numbers)
        own = [cell.own(latent) for latent in cell.numbers]
        texts = [row.get("text", "") if row else "" for row in own]
        lines = [list(line) for line in zip(cell.numbers, texts, scores, strict=True) if line[1]]
        found.append([name, pages[name], lines])
    return found


def figures_of(run: RunResult, run_dir: Path) -> list[tuple[str, Markup, Sequence[Series]]]:
    """Return the plots of the report: name, drawing, and the cells that its legend names.

    Raises:
        InputError: If a table cannot be read.
    """
    from saeval.report.html import index

    board, tables, _ = _gathered(run, run_dir)
    return index.figures(index.context(run, board, tables, {}, ""))


def _gathered(run: RunResult, run_dir: Path) -> tuple[Leaderboard, dict[str, CellTables], dict[str, str]]:
    """Return the board, and by cell, for cells with tables, the tables and the name of the page."""
    from saeval._compare import Leaderboard
    from saeval.report.html.latents import CellTables, Ranked
    from saeval.report.html.text import page_name

    board = Leaderboard.of(run)
    directions = {(r.scorer, r.metric): r.higher_is_better for c in run.cells for r in c.scores}
    ranked = [Ranked(s, m, directions.get((s, m), True)) for s, m in board.metrics.items()]
    tables: dict[str, CellTables] = {}
    pages: dict[str, str] = {}
    for k, cell in enumerate(run.cells):
        if Path(cell.cell).name != cell.cell:
            continue  # such a name could lead out of the run directory
        found = CellTables(cell, run_dir / "cells" / cell.cell, ranked)
        if found.numbers:
            tables[cell.cell], pages[cell.cell] = found, page_name(k, cell.cell)
    return board, tables, pages


def _spec(run_dir: Path) -> str:
    try:
        return (run_dir / "spec.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
