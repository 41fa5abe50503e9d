"""Reports, made from `results.json` alone: no plugin needs to be installed, no model is asked."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeval.results import RunResult

_DANGEROUS = {"Cc", "Cf", "Cs", "Co"}  # control, format (bidi marks among them), surrogates, private use


def safe_text(text: object) -> str:
    """Return text of a model or corpus as one line that can do nothing to a terminal or to the text around it."""
    line = " ".join(str(text).split())
    return "".join(c for c in line if unicodedata.category(c) not in _DANGEROUS)


def write_reports(run: RunResult, folder: Path) -> list[Path]:
    """Write report.md, leaderboard.csv and leaderboard.parquet, each whole or not at all.

    Returns:
        The files.

    Raises:
        InputError: If the folder cannot be written to.
    """
    from saeval.files import write_atomic
    from saeval.report.markdown import markdown
    from saeval.report.tables import write_csv, write_parquet

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("report.md", "leaderboard.csv", "leaderboard.parquet")]
    write_atomic(files[0], markdown(run))
    write_csv(run, files[1])
    write_parquet(run, files[2])
    return files
