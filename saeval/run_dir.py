"""A run on disk: its journal of finished work, which resuming trusts, and the files around it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from saeval.errors import InputError
from saeval.files import write_atomic


class RunDir:
    """The directory of one run, locked for as long as it is open.

    Layout: `run.json` (status, provenance), `spec.yaml` (resolved, runs as it is), `journal.jsonl`, `calls.jsonl`,
    `cells/<cell>/…`, `results.json`, `report/`, `logs/run.log`.

    Args:
        path: The directory; made when it is not there.

    Raises:
        InputError: If it cannot be written to, or another process is running in it.
    """

    def __init__(self, path: Path):
        from filelock import FileLock, Timeout

        self.path = path
        try:
            for folder in (path, path / "cells", path / "report", path / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path / "logs" / ".writable", b"")
            (path / "logs" / ".writable").unlink()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written to ({error.strerror or error}); choose another --out"
            ) from None
        # The operating system drops the lock when the process dies, however it dies.
        self._lock = FileLock(path / "logs" / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{path}: another saeval process is running in this directory") from None
        self._done = dict(self._read_journal())
        self._journal: IO[str] | None = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._lock.release()

    @property
    def _journal_file(self) -> Path:
        return self.path / "journal.jsonl"

    def _read_journal(self) -> Iterator[tuple[str, Any]]:
        """Yield finished work; a last line that a kill cut short is dropped from the file."""
        if not self._journal_file.exists():
            return
        whole = 0
        with self._journal_file.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    yield entry["key"], entry["value"]
                except (ValueError, KeyError, TypeError):
                    if not line.endswith(b"\n"):
                        break
                whole += len(line)
        if whole < self._journal_file.stat().st_size:
            os.truncate(self._journal_file, whole)

    def finished(self, key: str) -> Any | None:
        """Return the value of a finished work item, or None."""
        return self._done.get(key)

    def finish(self, key: str, value: Any) -> None:
        """Write down a finished work item; it survives a kill from here on."""
        if self._journal is None:
            self._journal = self._journal_file.open("a", encoding="utf-8")
        self._journal.write(json.dumps({"key": key, "value": value}) + "\n")
        self._journal.flush()
        self._done[key] = value

    def cell(self, name: str) -> Path:
        """Return the folder of a cell, made when it is not there."""
        folder = self.path / "cells" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_atomic(self.path / name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    @contextmanager
    def log(self) -> Iterator[Any]:
        """Send what saeval logs to `logs/run.log` while the run lasts."""
        import logging

        logger = logging.getLogger("saeval")
        handler = logging.FileHandler(self.path / "logs" / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield logger
        finally:
            logger.removeHandler(handler)
            handler.close()
