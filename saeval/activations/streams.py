"""Saves the rows of a streamed dataset while reading, so that an interrupted reading resumes."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saeval._util import InputError, content_hash, read_json, write_atomic

_EVERY = 1000  # rows between two writes to disk, or
_SECONDS = 5.0  # seconds between them

log = logging.getLogger("saeval")


class KeptRows:
    """The saved rows of a streamed dataset, and the position in the stream after the last of them.

    Args:
        folder: Folder of the saved rows, also of an earlier reading; None to save nothing.
        identity: Everything that the rows depend on; saved rows with another identity are discarded.
        fields: Fields of the rows to save.
    """

    def __init__(self, folder: Path | None, identity: Sequence[str | None], fields: Sequence[str]):
        self._folder, self._identity, self._fields = folder, content_hash(*identity), fields
        self._waiting: list[str] = []
        self._n = self._bytes = 0
        self._state: Any = None
        self._ended = False

    def read(self, stream: Callable[[], Any]) -> Iterator[Any]:
        """Yield all rows: first the saved ones, then the rest of the stream.

        Args:
            stream: Opens the `datasets.IterableDataset`; not called as long as the saved rows suffice.
        """
        yield from self._kept()
        if self._ended:
            return
        rows = self._after(stream())
        try:
            written = time.monotonic()
            for row in rows:
                self._take(row)
                yield row
                if len(self._waiting) >= _EVERY or time.monotonic() - written > _SECONDS:
                    self._write()
                    written = time.monotonic()
            self._ended = True
        finally:
            self._write()

    def _kept(self) -> Iterator[Any]:
        """Yield the rows that an earlier reading saved, and restore its position in the stream."""
        if self._folder is None:
            return
        rows = self._folder / "rows.jsonl.gz"
        try:
            known = read_json(self._folder / "state.json")
            if known["identity"] != self._identity or rows.stat().st_size < known["bytes"]:
                raise ValueError("rows of another dataset, or of a damaged file")
            n, size, state, ended = int(known["rows"]), int(known["bytes"]), known["state"], bool(known["ended"])
            with rows.open("r+b") as file:
                file.truncate(size)  # after a kill the file may be longer than the state says
        except (InputError, OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        log.info("an earlier run saved the first %d rows of the dataset", n)
        try:
            with gzip.open(rows, "rt", encoding="utf-8") as lines:
                yield from map(json.loads, lines)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise InputError(f"{rows}: was damaged ({error}) and is deleted; run the same command again") from None
        self._n, self._bytes, self._state, self._ended = n, size, state, ended

    def _after(self, rows: Any) -> Iterator[Any]:
        """Return the rows of the stream after the saved ones, from the saved state or else by skipping rows."""
        self._stream = rows
        if self._n and self._state is not None:
            rows.load_state_dict(self._state)
        elif self._n:
            self._stream = rows = rows.skip(self._n)
        return iter(rows)

    def _take(self, row: Any) -> None:
        if self._folder is None:
            return
        try:
            self._waiting.append(json.dumps({name: row[name] for name in self._fields if name in row}))
        except TypeError:  # the row contains values that JSON cannot store
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _write(self) -> None:
        """Write new rows to disk, and then the position after them."""
        if self._folder is None or not (self._waiting or self._ended):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "rows.jsonl.gz").open("ab") as file:
            self._bytes += file.write(gzip.compress("".join(f"{line}\n" for line in self._waiting).encode(), 1))
        self._n += len(self._waiting)
        self._waiting = []
        state = {"identity": self._identity, "rows": self._n, "bytes": self._bytes, "ended": self._ended}
        write_atomic(self._folder / "state.json", json.dumps({**state, "state": self._place()}))

    def _place(self) -> Any:
        """Return the state of the stream as JSON; None if it has none, so that resuming skips rows instead."""
        try:
            return json.loads(json.dumps(self._stream.state_dict()))
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            return None
