"""Index by key for an append-only table, stored as sorted runs that are merged (like an LSM tree)."""

from __future__ import annotations

import hashlib
import math
import re
import sqlite3
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Key = bytes | str
"""A key as the table stores it: 16 bytes for 32 hexadecimal digits, any other text unchanged."""

_RECENT = 1 << 15  # rows indexed in memory before they are written as a run
_LARGEST = 1 << 22  # runs of more rows are not merged: that would lock the file for too long
_PER_PART = 64  # places per part of a run; one look-up reads one part per run
_PART = 40  # bits for the number of a part
_HEX = re.compile(r"[0-9a-f]{32}")


def stored_key(key: str) -> Key:
    """Return a key as the table stores it."""
    return bytes.fromhex(key) if _HEX.fullmatch(key) else key


def key_text(stored: Key) -> str:
    """Return the key from its stored form; the inverse of `stored_key`."""
    return stored.hex() if isinstance(stored, bytes) else stored


class _Run(NamedTuple):
    """A sorted run: the places of some rows, in parts by the first bits of their keys.

    Attributes:
        run: Number of the run.
        bits: Number of leading key bits that select the part.
        rows: Number of rows.
        last: Number of its last row; all rows before it are in this run or in earlier ones.
    """

    run: int
    bits: int
    rows: int
    last: int


class KeyIndex:
    """Finds the rows of `kept` (`n`, `key`, …) by key.

    SQLite's own index of random keys writes a page of 4 kB, twice, for nearly every row. This index keeps the places
    of recent rows in memory only. Every 32,768 rows it writes them as a run, and it merges runs of equal size. Each
    row therefore costs about 12 bytes, written twice, per doubling of the table. Every process has its own memory of
    recent rows and reads what others add. Each look-up compares the row's own key, so a wrong place costs time and a
    missing place costs one more call, but neither returns a wrong answer.

    Args:
        database: The connection; the caller has to hold a lock on it.
    """

    def __init__(self, database: sqlite3.Connection):
        self._db = database
        self._runs: list[_Run] = []
        self._recent: dict[Key, int] = {}
        self._seen = 0
        self._version: int | None = None
        self._refreshed = -math.inf

    def lay_out(self) -> None:
        """Create the tables of the index; call it within a transaction."""
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY, bits INTEGER, rows INTEGER, last INTEGER)"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS parts (part INTEGER PRIMARY KEY, places BLOB NOT NULL)")

    def find(self, key: Key) -> int | None:
        """Return the number of a key's row as of the last `refresh`, or None."""
        if (n := self._recent.get(key)) is not None and self._holds(n, key):
            return n
        head = _head(key)
        first = int.from_bytes(head, "big")
        for run in reversed(self._runs):
            part = (run.run << _PART) | (first >> (64 - run.bits))
            row = self._db.execute("SELECT places FROM parts WHERE part = ?", (part,)).fetchone()
            for n in _places(row[0], head) if row is not None else ():
                if self._holds(n, key):
                    return n
        return None

    def _holds(self, n: int, key: Key) -> bool:
        """Whether a row is still the key's: others delete rows, and reuse the numbers of the last ones."""
        return self._db.execute("SELECT 1 FROM kept WHERE n = ? AND key = ?", (n, key)).fetchone() is not None

    def refresh(self, *, own: bool = False, age: float = 0.0) -> None:
        """Read rows that other processes, or this one (`own`), have added, unless done in the last `age` seconds."""
        now = time.monotonic()
        if now < self._refreshed + age:
            return
        self._refreshed = now
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version and not own:
            return
        self._version = version
        runs = [_Run(*row) for row in self._db.execute("SELECT run, bits, rows, last FROM runs ORDER BY run")]
        newest = self._db.execute("SELECT MAX(n) FROM kept").fetchone()[0] or 0
        last = max((run.last for run in runs), default=0)
        if newest < self._seen or self._seen < last:
            self._recent, self._seen = {}, last
        elif runs != self._runs:
            self._recent = {key: n for key, n in self._recent.items() if n > last}
        self._runs = runs
        for n, key in self._db.execute("SELECT n, key FROM kept WHERE n > ?", (self._seen,)):
            self._recent[key] = self._seen = n

    def fold(self) -> None:
        """Write recent rows as a run if there are enough, merged with earlier runs, in a separate transaction."""
        if len(self._recent) < _RECENT:
            return
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self.refresh(own=True)  # another process may just have done it
            if len(self._recent) < _RECENT:
                return
            places = _of_rows(self._recent)
            merged = []
            for run in reversed(self._runs):
                if run.rows > len(places) or run.rows + len(places) > _LARGEST:
                    break
                places = _joined(self._read(run), places)
                merged.append(run)
            self._write(places, merged)
        self.refresh(own=True)

    def rebuild(self) -> None:
        """Rebuild the index from the existing rows; call it within a transaction."""
        self.refresh(own=True)
        rows: dict[Key, int] = dict(self._db.execute("SELECT key, n FROM kept"))
        self._write(_of_rows(rows), self._runs)

    def _write(self, places: NDArray[np.void], instead: list[_Run]) -> None:
        """Write places as a new run that replaces the runs `instead`; write no run if there are no places."""
        import numpy as np

        number = 1 + max((run.run for run in self._runs), default=0)
        for run in instead:
            begin = run.run << _PART
            self._db.execute("DELETE FROM parts WHERE part >= ? AND part < ?", (begin, begin + (1 << _PART)))
            self._db.execute("DELETE FROM runs WHERE run = ?", (run.run,))
        if not len(places):
            return
        bits = max(1, (len(places) // _PER_PART).bit_length())
        part = places["key"].astype(np.uint64) >> np.uint64(64 - bits)
        order = np.argsort(part, kind="stable")
        places, part = places[order], part[order]
        names, begins = np.unique(part, return_index=True)
        ends = [*begins[1:].tolist(), len(places)]
        self._db.executemany(
            "INSERT INTO parts VALUES (?, ?)",
            (
                ((number << _PART) | name, places[begin:end].tobytes())
                for name, begin, end in zip(names.tolist(), begins.tolist(), ends, strict=True)
            ),
        )
        last = int(places["n"].max(initial=0))
        self._db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (number, bits, len(places), last))

    def _read(self, run: _Run) -> NDArray[np.void]:
        import numpy as np

        begin = run.run << _PART
        query = "SELECT places FROM parts WHERE part >= ? AND part < ?"
        parts = [row[0] for row in self._db.execute(query, (begin, begin + (1 << _PART)))]
        size = _kind().itemsize
        return np.frombuffer(b"".join(part[: len(part) // size * size] for part in parts), _kind())


def _kind() -> np.dtype[np.void]:
    """Return the dtype of a place: the key's first eight bytes, and the row number."""
    import numpy as np

    return np.dtype([("key", ">u8"), ("n", "<u4")])


def _head(key: Key) -> bytes:
    """Return the eight bytes that the index stores for a key."""
    return key[:8] if isinstance(key, bytes) else hashlib.blake2b(key.encode(), digest_size=8).digest()


def _places(part: bytes, head: bytes) -> Iterator[int]:
    """Yield the numbers of rows whose stored eight bytes equal `head`."""
    at, size = part.find(head), 12
    while at >= 0:
        if at % size == 0:
            yield int.from_bytes(part[at + 8 : at + size], "little")
        at = part.find(head, at + 1)


def _of_rows(rows: dict[Key, int]) -> NDArray[np.void]:
    import numpy as np

    places = np.empty(len(rows), _kind())
    places["key"] = np.frombuffer(b"".join(map(_head, rows)), ">u8")
    places["n"] = np.fromiter(rows.values(), np.int64, len(rows))
    return places


def _joined(earlier: NDArray[np.void], later: NDArray[np.void]) -> NDArray[np.void]:
    import numpy as np

    return np.concatenate([earlier, later]).astype(_kind())  # concatenate returns native byte order
