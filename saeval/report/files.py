"""Writes the report files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeval.records import RunResult


def write_reports(run: RunResult, folder: Path) -> list[Path]:
    """Write report.md, leaderboard.csv, leaderboard.parquet and index.html, each atomically.

    Args:
        run: The results.
        folder: `report/` of the run directory; the pages of latents are made from the folder `cells/` beside it.

    Returns:
        The files, except the pages of latents that index.html links to.

    Raises:
        InputError: If the folder cannot be written to or is not saeval's, or a table of a cell cannot be read.
    """
    from saeval._util import claim_inside, write_atomic
    from saeval.report.html import write_html
    from saeval.report.markdown import markdown_report
    from saeval.results import write_csv, write_parquet

    claim_inside(folder, "a report")
    report, leaderboard, table = (folder / name for name in ("report.md", "leaderboard.csv", "leaderboard.parquet"))
    write_atomic(report, markdown_report(run))
    write_csv(run, leaderboard)
    write_parquet(run, table)
    return [report, leaderboard, table, write_html(run, folder.parent, folder)]
