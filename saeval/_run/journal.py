"""The journal of a run: results of finished work items by key, saved as soon as they are made."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from saeval._run.journal_entries import compact, expanded
from saeval._util import InputError, LineFile, os_reason, parse_json


class Journal:
    """Results by key of their work item. Finished items survive a kill; resuming trusts them.

    Only the places of entries are held in memory; the entries are read from the file when wanted.

    Args:
        path: The file, one entry per line, each with a checksum.

    The file is read with the first entry that is asked for; an `InputError` says that it cannot be.
    """

    def __init__(self, path: Path):
        self._file = LineFile(path)
        self._kept: dict[str, Any] = {}

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where entries are; read when the first one is wanted, since a run that has finished wants none."""
        return dict(self._read())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the positions of entries; a truncated or changed line is skipped, and its work is done again."""
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
        """Return the value of a finished work item, read from the file, or None."""
        place = self._places.get(key)
        entry = _entry(self._file.line_at(*place)) if place else None
        return None if entry is None else expanded(entry["value"])

    def finish(self, key: str, value: Any) -> None:
        """Save a finished work item, which then survives a kill.

        Raises:
            InputError: If there is no room, or the directory cannot be written to any more.
        """
        text = json.dumps({"key": key, "value": compact(value)}, separators=(",", ":"))
        line = f"{_digest(text.encode()).decode()} {text}"
        self._places[key] = self._file.append(line), len(line) + 1
        self._kept.pop(key, None)

    def keep(self, key: str, value: Any) -> None:
        """Hold an item in memory only: the reports of this sitting show it, and the next sitting does it again."""
        self._kept[key] = value

    @property
    def whole(self) -> bool:
        """Whether everything that was made is written down."""
        return not self._kept

    def made(self, key: str) -> Any | None:
        """Return the value of a work item, finished or kept, or None."""
        return self._kept[key] if key in self._kept else self.finished(key)


def _entry(line: bytes) -> Any | None:
    """Return the entry on a line, or None if its checksum does not fit or it is no entry."""
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
