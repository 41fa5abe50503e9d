"""Writes and verifies checksums of a run's published files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saeval._util.errors import InputError
from saeval._util.files import read_json, write_atomic

CHECKSUMS = "checksums.json"
_FORMAT = "saeval.checksums/1"
_TABLES = ("*.parquet", "explanations.jsonl")  # in the folder of each cell


def write_checksums(folder: Path) -> None:
    """Write the checksums of a run's results and of the tables of its cells.

    Raises:
        InputError: If a file cannot be read, or the list cannot be written.
    """
    try:
        listed = {file.relative_to(folder).as_posix(): _checksum(file) for file in _published(folder)}
    except OSError as error:
        raise InputError(f"{folder}: its files cannot be read ({error.strerror or error})") from None
    write_atomic(folder / CHECKSUMS, json.dumps({"format": _FORMAT, "blake2b": listed}, indent=1) + "\n")


def remove_checksums(folder: Path) -> None:
    """Delete the checksums before writing new results, so that a killed run has no checksums rather than wrong ones."""
    (folder / CHECKSUMS).unlink(missing_ok=True)


def changed_files(folder: Path) -> list[str]:
    """Return the files that differ from a run's checksums: changed, missing or unlisted; empty without checksums.

    Runs of earlier versions and runs in progress have no checksums.
    """
    if not (folder / CHECKSUMS).is_file():
        return []
    try:
        kept = read_json(folder / CHECKSUMS)
        listed: Any = kept["blake2b"] if kept["format"] == _FORMAT else None
        there = {file.relative_to(folder).as_posix(): file for file in _published(folder)}
        names = sorted({*there, *listed})
        return [name for name in names if name not in there or _checksum(there[name]) != listed.get(name)]
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return [CHECKSUMS]


def _published(folder: Path) -> Iterable[Path]:
    tables = [file for cell in sorted(folder.glob("cells/*")) for file in cell_tables_in(cell)]
    return [*(file for file in [folder / "results.json"] if file.is_file()), *tables]


def cell_tables_in(folder: Path) -> list[Path]:
    """Return the files in the folder of a cell that are published."""
    return [file for pattern in _TABLES for file in sorted(folder.glob(pattern)) if file.is_file()]


def _checksum(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
