"""Keeps the rows of a streamed dataset as they come, so that a reading that was killed resumes in mid-stream."""

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

_EVERY = 1000  # rows, or
_SECONDS = 5.0  # after which what came is written down

log = logging.getLogger("saeval")


class KeptRows:
    """The rows of a streamed dataset in a folder, with the place in the stream after the last of them.

    Args:
        folder: Where they are kept, and where those of an earlier reading are; nothing is kept without one.
        identity: What rows depend on; those of another one are discarded.
        fields: Fields of rows to keep.
    """

    def __init__(self, folder: Path | None, identity: Sequence[str | None], fields: Sequence[str]):
        self._folder, self._identity, self._fields = folder, content_hash(*identity), fields
        self._waiting: list[str] = []
        self._n = self._bytes = 0
        self._state: Any = None
        self._ended = False

    def read(self, stream: Callable[[], Any]) -> Iterator[Any]:
        """Yield all rows: those that were kept, and then those that the stream has after them.

        Args:
            stream: Opens the `datasets.IterableDataset`; not called as long as kept rows suffice.
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
        """Yield the rows of an earlier reading, and find its place in the stream."""
        if self._folder is None:
            return
        rows = self._folder / "rows.jsonl.gz"
        try:
            known = read_json(self._folder / "state.json")
            if known["identity"] != self._identity or rows.stat().st_size < known["bytes"]:
                raise ValueError("rows of another dataset, or of a damaged file")
            n, size, state, ended = int(known["rows"]), int(known["bytes"]), known["state"], bool(known["ended"])
            with rows.open("r+b") as file:
                file.truncate(size)  # a kill may have left more than was written down
        except (InputError, OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        log.info("the first %d rows of the dataset were kept by an earlier run", n)
        try:
            with gzip.open(rows, "rt", encoding="utf-8") as lines:
                yield from map(json.loads, lines)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise InputError(f"{rows}: was damaged ({error}) and is removed; run the same command again") from None
        self._n, self._bytes, self._state, self._ended = n, size, state, ended

    def _after(self, rows: Any) -> Iterator[Any]:
        """Yield the rows of a stream after those that are known, skipping what cannot be skipped otherwise."""
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
        except TypeError:  # a row of something else than text
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _write(self) -> None:
        """Write down the rows that came, and then the place after them."""
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
        """Return the stream's place as JSON; None where it cannot tell, so that rows are skipped instead."""
        try:
            return json.loads(json.dumps(self._stream.state_dict()))
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            return None
