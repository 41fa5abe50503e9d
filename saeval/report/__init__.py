"""Reports, made from the files of a run alone: no plugin needs to be installed, no model is asked."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeval.results import RunResult

_DANGEROUS = {"Cc", "Cf", "Cs", "Co"}  # control, format (bidi marks among them), surrogates, private use
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # strings: titles, links, clipboard
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)


def safe_text(text: object) -> str:
    """Return text of a model or corpus as one line that can do nothing to a terminal or to the text around it."""
    line = " ".join(_ESCAPES.sub("", str(text)).split())
    return "".join(c for c in line if unicodedata.category(c) not in _DANGEROUS)


def measured(value: float | None) -> str:
    """Return a measure as text: a count in full, anything else to four digits, – where it is unknown."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def write_reports(run: RunResult, folder: Path) -> list[Path]:
    """Write report.md, leaderboard.csv, leaderboard.parquet and index.html, each whole or not at all.

    Args:
        run: The results.
        folder: Where they go, `report/` of the run directory; pages of latents are made from `cells/` beside it.

    Returns:
        The files, without the pages of latents that index.html links to.

    Raises:
        InputError: If the folder cannot be written to, is not saeval's, or a table of a cell cannot be read.
    """
    from saeval._util.owned_dirs import claim_inside
    from saeval.files import write_atomic
    from saeval.report.html import write_html
    from saeval.report.markdown import markdown
    from saeval.report.tables import write_csv, write_parquet

    claim_inside(folder, "a report")
    report, leaderboard, table = (folder / name for name in ("report.md", "leaderboard.csv", "leaderboard.parquet"))
    write_atomic(report, markdown(run))
    write_csv(run, leaderboard)
    write_parquet(run, table)
    return [report, leaderboard, table, write_html(run, folder.parent, folder)]
