"""The directory of a run: its lock, log and files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import fsum, isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from saeval._run.journal import Journal
from saeval._util import (
    InputError,
    cell_tables_in,
    claim,
    os_reason,
    read_json,
    remove_checksums,
    without_secrets,
    write_atomic,
    write_checksums,
)
from saeval.llm import ledgers_in
from saeval.records import LOCK

if TYPE_CHECKING:
    from saeval.records import RunResult
    from saeval.task import Task

_PATIENCE = 0.5  # seconds for which to try to lock a directory: `is_locked` holds the lock for an instant


class RunDir:
    """The directory of one run, locked while it is open.

    Layout: `run.json` (status, provenance), `spec.yaml` (resolved, can be run), `journal.jsonl`, `calls.jsonl`,
    `cells/<cell>/…`, `results.json`, `report/`, `logs/run.log`.

    Args:
        path: The directory; created if it does not exist.

    Attributes:
        journal: Results of finished work, which resuming reuses.

    Raises:
        InputError: If it cannot be written to, contains links, files that saeval did not create, or a run that was
            imported or fetched, or another process is running in it.
    """

    def __init__(self, path: Path):
        from filelock import FileLock, Timeout

        self.path = path
        claim(path)
        self._refuse_foreign()
        try:
            for folder in (path, path / "cells", path / "report", path / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path / "logs" / ".writable", b"")
            (path / "logs" / ".writable").unlink()
        except OSError as error:
            raise InputError(f"{path}: cannot be written to ({os_reason(error)}); choose another --out") from None
        # The operating system releases the lock if the process dies.
        self._lock = FileLock(path / LOCK, timeout=_PATIENCE)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{path}: another saeval process is running in this directory") from None
        self.journal = Journal(path / "journal.jsonl")

    def _refuse_foreign(self) -> None:
        """Refuse a run that was imported or fetched, since nothing here could make its results again."""
        from saeval.results import made_elsewhere

        if made_elsewhere(self.path):
            raise InputError(
                f"{self.path}: contains an imported or fetched run, which would be overwritten; choose another --out"
            )

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()
        self._lock.release()

    def cell(self, name: str) -> Path:
        """Return the folder of a cell, created if it does not exist."""
        folder = self.path / "cells" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_results(self, keep: Iterable[str] = ()) -> None:
        """Delete the checksums, and the tables of all cells but some, which no new result describes any more."""
        remove_checksums(self.path)
        kept = set(keep)
        for folder in (self.path / "cells").iterdir():
            if folder.name not in kept and folder.is_dir():
                for file in cell_tables_in(folder):
                    file.unlink()
                with suppress(OSError):  # it contains files of somebody else
                    folder.rmdir()

    def write_results(self, task: Task, result: RunResult) -> None:
        """Write the results of a task, with its spec, checksums of the results and tables, and reports."""
        from saeval.report import write_reports

        self.write_spec(task)
        self.write_json("results.json", result.model_dump(mode="json", by_alias=True))
        write_checksums(self.path)
        write_reports(result, self.path / "report")

    def write_spec(self, task: Task) -> None:
        """Write the resolved spec, which can be run; keep an equal file, since it may contain comments."""
        import yaml

        from saeval.task import plain

        spec = plain(task.resolved, absolute=True)
        if not _holds(self.path / "spec.yaml", spec):
            write_atomic(self.path / "spec.yaml", yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, atomically; numbers that JSON does not have (nan, infinity) become null."""
        try:
            text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        except ValueError:  # plugins' options and facts may contain any number
            text = json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self.path / name, text + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run; an empty mapping if it is missing or unreadable."""
        try:
            found = read_json(self.path / name)
        except InputError:
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def log(self) -> Iterator[Any]:
        """Within this context, write saeval's log messages to `logs/run.log`."""
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
            with suppress(OSError):  # on a full disk, closing fails as well
                handler.close()


def _holds(file: Path, spec: Any) -> bool:
    """Return whether a YAML file contains exactly this spec."""
    import yaml

    try:
        return bool(yaml.safe_load(file.read_text(encoding="utf-8")) == spec)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False


def _finite(value: Any) -> Any:
    """Return a JSON value with null in place of nan and infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def spent_in(folder: Path) -> float:
    """Return the dollars spent in a run directory, over all its sessions and seeds, as far as prices are known."""
    return fsum(ledger.spent() for ledger in ledgers_in(folder))


class SharedLimit:
    """What runs under one spending limit have spent.

    Args:
        folders: Their run directories; empty if each has a limit of its own.
    """

    def __init__(self, folders: Iterable[Path]):
        self._spent = {folder: spent_in(folder) for folder in folders}

    def elsewhere(self, folder: Path) -> float:
        """Return the dollars spent in the other directories, in earlier sessions and in this one."""
        return fsum(dollars for other, dollars in self._spent.items() if other != folder)

    def update(self, folder: Path) -> None:
        """Read again what was spent in a directory, after a run there."""
        if folder in self._spent:
            self._spent[folder] = spent_in(folder)


class _Formatter(logging.Formatter):
    """Removes credentials, since tracebacks quote messages of libraries and plugins."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))
