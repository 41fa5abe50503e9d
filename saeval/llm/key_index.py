"""Finds rows of a table that only grows by their keys, with an index written in sorted runs."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Key = bytes | str
"""A key as the table holds it: 16 bytes for 32 hexadecimal digits, other texts as they are."""

_RECENT = 1 << 15  # rows that are looked for in memory before they become a run
_LARGEST = 1 << 22  # rows of a run that is merged no further: it would hold the lock of the file for too long
_PER_PART = 64  # places in a part of a run, which is read for one look-up
_PART = 40  # bits of a part's number
_HEX = re.compile(r"[0-9a-f]{32}")


def stored_key(key: str) -> Key:
    """Return a key as the table holds it."""
    return bytes.fromhex(key) if _HEX.fullmatch(key) else key


def key_text(stored: Key) -> str:
    """Return the key that `stored_key` was given."""
    return stored.hex() if isinstance(stored, bytes) else stored


class _Run(NamedTuple):
    """Some rows' places, ordered by the first bits of their keys.

    Attributes:
        run: Its number.
        bits: Bits of a key that say in which part its place is.
        rows: How many rows.
        last: Last row of those in it; all rows before are in it or in earlier runs.
    """

    run: int
    bits: int
    rows: int
    last: int


class KeyIndex:
    """Finds the rows of `kept` (`n`, `key`, …) by key.

    An index of random keys as SQLite keeps it writes a page of 4 kB, twice, for nearly every row. Here the places of
    recent rows are in memory only; of every 32,768 rows they are written as a run, and runs of equal size are merged.
    So a row costs about 12 bytes for each doubling of the table, twice. Every process has its own memory of recent
    rows and takes note of what others add. A place that is wrong or missing costs a look-up or an answer, never gives
    a wrong one: the row's own key decides.

    Args:
        database: The connection; its user holds a lock.
    """

    def __init__(self, database: sqlite3.Connection):
        self._db = database
        self._runs: list[_Run] = []
        self._recent: dict[Key, int] = {}
        self._seen = 0
        self._version: int | None = None

    def lay_out(self) -> None:
        """Make the tables of the index, within a transaction."""
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY, bits INTEGER, rows INTEGER, last INTEGER)"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS parts (part INTEGER PRIMARY KEY, places BLOB NOT NULL)")

    def find(self, key: Key) -> int | None:
        """Return the number of a key's row, or None."""
        self.refresh()
        if (n := self._recent.get(key)) is not None:
            return n
        head = _head(key)
        first = int.from_bytes(head, "big")
        for run in reversed(self._runs):
            part = (run.run << _PART) | (first >> (64 - run.bits))
            row = self._db.execute("SELECT places FROM parts WHERE part = ?", (part,)).fetchone()
            for n in _places(row[0], head) if row is not None else ():
                if self._db.execute("SELECT 1 FROM kept WHERE n = ? AND key = ?", (n, key)).fetchone():
                    return n
        return None

    def refresh(self, *, own: bool = False) -> None:
        """Take note of rows that were added by other processes, or by this one (`own`)."""
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
        """Write recent rows as a run if there are many, and merge it with earlier ones, in a transaction of its own."""
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
        """Make the index again from the rows that there are, within a transaction."""
        self.refresh(own=True)
        rows: dict[Key, int] = dict(self._db.execute("SELECT key, n FROM kept"))
        self._write(_of_rows(rows), self._runs)

    def _write(self, places: NDArray[np.void], instead: list[_Run]) -> None:
        """Write places as a new run, in place of others; none makes none."""
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
    """Type of a place: the key's first eight bytes, and the row's number."""
    import numpy as np

    return np.dtype([("key", ">u8"), ("n", "<u4")])


def _head(key: Key) -> bytes:
    """Return eight bytes by which a key is looked for."""
    return key[:8] if isinstance(key, bytes) else hashlib.blake2b(key.encode(), digest_size=8).digest()


def _places(part: bytes, head: bytes) -> Iterator[int]:
    """Yield the rows whose keys may begin so."""
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

    return np.concatenate([earlier, later]).astype(_kind())  # which makes the order of bytes that of the machine
