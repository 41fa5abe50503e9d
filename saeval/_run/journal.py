"""A run on disk: its journal of finished work, which resuming trusts, and the files around it."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from saeval._util import InputError, LineFile, claim, os_reason, parse_json, read_json, without_secrets, write_atomic


class RunDir:
    """The directory of one run, locked for as long as it is open.

    Layout: `run.json` (status, provenance), `spec.yaml` (resolved, runs as it is), `journal.jsonl`, `calls.jsonl`,
    `cells/<cell>/…`, `results.json`, `report/`, `logs/run.log`.

    Args:
        path: The directory; made when it is not there.

    Raises:
        InputError: If it cannot be written to, holds links or files that are not saeval's, or another process is running in it.
    """

    def __init__(self, path: Path):
        from filelock import FileLock, Timeout

        self.path = path
        claim(path)
        try:
            for folder in (path, path / "cells", path / "report", path / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path / "logs" / ".writable", b"")
            (path / "logs" / ".writable").unlink()
        except OSError as error:
            raise InputError(f"{path}: cannot be written to ({os_reason(error)}); choose another --out") from None
        # The operating system drops the lock when the process dies, however it dies.
        self._lock = FileLock(path / "logs" / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{path}: another saeval process is running in this directory") from None
        self._journal = LineFile(path / "journal.jsonl")
        self._places = dict(self._read_journal())
        self._kept: dict[str, Any] = {}

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()
        self._lock.release()

    def _read_journal(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield where finished work stands; a line that a kill cut short, or that has changed since, is to be done again."""
        if not self._journal.path.exists():
            return
        place = 0
        try:
            with self._journal.path.open("rb") as lines:
                for line in lines:
                    entry = _entry(line)
                    if entry is not None:
                        yield entry["key"], (place, len(line))
                    place += len(line)
        except OSError as error:
            raise InputError(f"{self._journal.path}: cannot be read ({os_reason(error)})") from None

    def finished(self, key: str) -> Any | None:
        """Return the value of a finished work item, read from the journal, or None."""
        place = self._places.get(key)
        entry = _entry(self._journal.line_at(*place)) if place else None
        return None if entry is None else entry["value"]

    def finish(self, key: str, value: Any) -> None:
        """Write down a finished work item; it survives a kill from here on.

        Raises:
            InputError: If there is no room, or the directory cannot be written to any more.
        """
        text = json.dumps({"key": key, "value": value})
        line = f"{_digest(text.encode()).decode()} {text}"
        self._places[key] = self._journal.append(line), len(line) + 1
        self._kept.pop(key, None)

    def keep(self, key: str, value: Any) -> None:
        """Hold an item that may not count as finished: this sitting's reports show it, the next sitting does it again."""
        self._kept[key] = value

    def made(self, key: str) -> Any | None:
        """Return the value of a work item, finished or kept, or None."""
        return self._kept[key] if key in self._kept else self.finished(key)

    def cell(self, name: str) -> Path:
        """Return the folder of a cell, made when it is not there."""
        folder = self.path / "cells" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_atomic(self.path / name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run; an empty mapping where there is none, or none that can be read."""
        try:
            found = read_json(self.path / name)
        except InputError:
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def log(self) -> Iterator[Any]:
        """Send what saeval logs to `logs/run.log` while the run lasts."""
        logger = logging.getLogger("saeval")
        handler = logging.FileHandler(self.path / "logs" / "run.log", encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield logger
        finally:
            logger.removeHandler(handler)
            handler.close()


class _Formatter(logging.Formatter):
    """Leaves keys out: tracebacks quote what libraries and plugins say."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _entry(line: bytes) -> Any | None:
    """Return what a line of the journal holds, or None where its checksum does not fit or it is no entry."""
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
    """A checksum, by which a changed line of the journal is known."""
    return b"%08x" % zlib.crc32(line)
