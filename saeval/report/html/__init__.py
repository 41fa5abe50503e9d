"""The report as web pages: `index.html` and a page a cell, made from a run's files, opened from disk without a network."""

from __future__ import annotations

from pathlib import Path

from saeval.files import write_atomic
from saeval.results import RunResult

_PER_FILE = 40  # latents; a file of them loads in well under a second


def write_html(run: RunResult, run_dir: Path, folder: Path) -> Path:
    """Write `index.html`, and in `latents/` a page for each cell whose tables are there.

    Args:
        run: The results.
        run_dir: Folder with `cells/` and `spec.yaml`; what is not there is left out of the report.
        folder: Where the pages go; pages of an earlier report that are not written again are removed.

    Returns:
        The file to open.

    Raises:
        InputError: If a table cannot be read or the folder cannot be written to.
    """
    from saeval.report.html import index
    from saeval.report.html.latents import CellTables, Ranked
    from saeval.report.html.pages import latents_page, render
    from saeval.report.html.text import script_json, slug
    from saeval.report.leaderboard import Leaderboard

    board = Leaderboard.of(run)
    directions = {(r.scorer, r.metric): r.higher_is_better for c in run.cells for r in c.scores}
    ranked = [Ranked(s, m, directions.get((s, m), True)) for s, m in board.metrics.items()]
    tables, pages = {}, {}
    for k, cell in enumerate(run.cells):
        if Path(cell.cell).name != cell.cell:
            continue  # such a name could lead out of the run directory
        found = CellTables(cell, run_dir / "cells" / cell.cell, ranked)
        if found.numbers:
            tables[cell.cell], pages[cell.cell] = found, f"{k}-{slug(cell.cell)}"

    written = set()

    def put(place: str, text: str) -> None:
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)
        written.add(file)

    for name, found in tables.items():
        numbers = found.numbers
        for n, begin in enumerate(range(0, len(numbers), _PER_FILE)):
            details = script_json(found.details(numbers[begin : begin + _PER_FILE]))
            put(f"latents/{pages[name]}/{n}.js", f"saevalLatents({n},{details});\n")
        put(f"latents/{pages[name]}.html", latents_page(run, board, found, pages[name], _PER_FILE))
    context = index.context(run, board, tables, {c: f"latents/{p}.html" for c, p in pages.items()}, _spec(run_dir))
    put("index.html", render("index.html.j2", context))
    for old in (folder / "latents").glob("**/*"):
        if old.suffix in (".html", ".js") and old not in written:
            old.unlink()
    return folder / "index.html"


def _spec(run_dir: Path) -> str:
    try:
        return (run_dir / "spec.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
