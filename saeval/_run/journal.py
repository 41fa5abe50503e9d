"""The journal of a run: results of finished work items by key, saved immediately."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from saeval._util import InputError, LineFile, os_reason, parse_json


class Journal:
    """Results by key of their work item. Finished items survive a kill, and resuming reuses them.

    Only the offsets of entries are held in memory; entries are read from the file on request. The file is scanned at
    the first request, which raises an `InputError` if the file cannot be read.

    Args:
        path: The file, one entry per line, each with a checksum.
    """

    def __init__(self, path: Path):
        self._file = LineFile(path)
        self._kept: dict[str, Any] = {}

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Offset and length of each entry; read lazily, since a finished run needs none."""
        return dict(self._read())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield key, offset and length of entries; skip truncated or changed lines, whose work is redone."""
        if not self._file.path.exists():
            return
        place = 0
        try:
            with self._file.path.open("rb") as lines:
                for line in lines:
                    entry = _entry(line)
                    if entry is not None:
                        yield entry["key"], (place, len(line))
                    place += len(line)
        except OSError as error:
            raise InputError(f"{self._file.path}: cannot be read ({os_reason(error)})") from None

    def finished(self, key: str) -> Any | None:
        """Return the value of a finished work item from the file; None if it is not finished."""
        place = self._places.get(key)
        entry = _entry(self._file.line_at(*place)) if place else None
        return None if entry is None else entry["value"]

    def finish(self, key: str, value: Any) -> None:
        """Save a finished work item, which then survives a kill.

        Raises:
            InputError: If the disk is full, or the directory cannot be written to.
        """
        text = json.dumps({"key": key, "value": value}, separators=(",", ":"))
        line = f"{_digest(text.encode()).decode()} {text}"
        self._places[key] = self._file.append(line), len(line) + 1
        self._kept.pop(key, None)

    def keep(self, key: str, value: Any) -> None:
        """Keep an item in memory only: this session's reports show it, but the next session redoes it."""
        self._kept[key] = value

    @property
    def whole(self) -> bool:
        """Whether all results are saved in the file."""
        return not self._kept

    def made(self, key: str) -> Any | None:
        """Return the value of a work item from file or memory; None if there is none."""
        return self._kept[key] if key in self._kept else self.finished(key)


def _entry(line: bytes) -> Any | None:
    """Return the entry on a line; None if its checksum does not match or it is not an entry."""
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if digest != _digest(text):
        return None
    try:
        entry = parse_json(text.decode())
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entry, dict) and isinstance(entry.get("key"), str) and "value" in entry
    return entry if whole else None


def _digest(line: bytes) -> bytes:
    """Return a checksum that detects a changed line."""
    return b"%08x" % zlib.crc32(line)
