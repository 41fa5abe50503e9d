"""Caches answers of language models on disk, keyed by the content of their requests."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic_core import to_json

from saeval._util import StoreError, parse_json, shortage, text_checksum
from saeval.llm.key_index import Key, KeyIndex, key_text, stored_key
from saeval.llm.leases import Leases

_SCHEMA = 3
_OLDER = 2  # this version's table `answers` is still read
_CHECKPOINT = 1 << 24  # bytes
_PAGE = 1024  # bytes; each transaction rewrites the last page of the table

log = logging.getLogger("saeval")

AnswerStatus = Literal["ok", "unreadable"]
"""Whether an answer may be reused; one that could not be parsed (`unreadable`) is asked for again by the next run."""


class Kept(NamedTuple):
    """Count and size of the cached answers of one model and status."""

    model: str
    status: str
    answers: int
    bytes: int


class AnswerCache:
    """An on-disk cache of answers, keyed by the content of their requests; shared by runs, processes and threads.

    An answer is committed before it is returned, so a killed process never loses an answer that it used.
    Answers are appended to a table and found through a `KeyIndex`: keys are random, so a table sorted by key would
    write a separate page for nearly every row. Answers of earlier versions stay in their own table and remain usable.

    Args:
        path: The SQLite file; created if it does not exist.

    Attributes:
        leases: Locks on the requests that this or another process is making.

    Raises:
        StoreError: If it is damaged or of another version.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        with self._database():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self._db.execute(f"PRAGMA page_size={_PAGE}")  # of a new file
            self._share()
            self._db.execute("PRAGMA synchronous=NORMAL")
            size = self._db.execute("PRAGMA page_size").fetchone()[0]
            # A checkpoint flushes to disk, and all wait for it.
            self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT // size}")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in range(_SCHEMA + 1):
                raise StoreError(
                    f"{path}: the cache of model answers was written by a newer saeval (format {version}); use "
                    "that version, or point SAEVAL_CACHE to another folder"
                )
            self._index = KeyIndex(self._db)
            self._lay_out()
            self.leases = Leases(path.with_suffix(".leases"))

    def _share(self) -> None:
        """Switch to WAL, so that reads work during writes; retry, since SQLite fails if processes switch at once."""
        for waited in range(600):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY) or waited == 599:
                    raise
                time.sleep(0.1)

    def _lay_out(self) -> None:
        """Create the tables; add the columns `model` and `status` to the table of an earlier version."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS kept (n INTEGER PRIMARY KEY, key BLOB NOT NULL, answer TEXT NOT NULL, "
            "model TEXT NOT NULL, status TEXT NOT NULL)"
        )
        self._index.lay_out()
        have = {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}
        for column, default in (("model", ""), ("status", "ok")) if have else ():
            if column not in have:
                self._db.execute(f"ALTER TABLE answers ADD COLUMN {column} TEXT NOT NULL DEFAULT '{default}'")
        self._has_older = bool(have and self._db.execute("SELECT 1 FROM answers LIMIT 1").fetchone())
        self._db.execute(f"PRAGMA user_version={_SCHEMA}")
        self._db.execute("COMMIT")

    @contextmanager
    def _database(self) -> Iterator[None]:
        """Hold the lock, and turn errors of the database into a `StoreError` with a remedy."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise self._unusable(error) from None

    def _unusable(self, error: sqlite3.Error | OSError) -> StoreError:
        return StoreError(f"{self.path}: the cache of model answers cannot be used {_why(error)}")

    def get(self, key: str, *, unreadable: bool = False, age: float = 0.0) -> Any | None:
        """Return the answer of a key; None if it is missing or damaged.

        Args:
            key: The key.
            unreadable: Whether to return answers that are marked as unreadable, too, instead of None.
            age: Answers that other processes stored in the last `age` seconds may be missed, which is faster.
        """
        with self._lock:
            try:  # not through `_database`, which takes as long as the query
                self._index.refresh(age=age)
                row = self._row(key)
            except (sqlite3.Error, OSError) as error:
                raise self._unusable(error) from None
        if row is None or not (unreadable or row[1] == "ok"):
            return None
        text, _, digest = row[0].decode(errors="replace").partition("\n")  # the JSON contains no line break
        if digest != text_checksum(text):
            log.warning("%s: the cached answer %s is damaged; the model is asked again", self.path, key[:12])
            return None
        return parse_json(text)  # answers cached by earlier versions may contain unpaired surrogates

    def _row(self, key: str) -> tuple[bytes, str] | None:
        """Return the stored bytes of an answer, and its status."""
        stored = stored_key(key)
        n = self._index.find(stored)
        row = None
        if n is not None:  # another process may just have given the row's number to another key
            query = "SELECT CAST(answer AS BLOB), status FROM kept WHERE n = ? AND key = ?"
            row = self._db.execute(query, (n, stored)).fetchone()
        if row is None and self._has_older:
            row = self._db.execute("SELECT CAST(answer AS BLOB), status FROM answers WHERE key = ?", (key,)).fetchone()
        return row

    def put(self, answers: Mapping[str, object], model: str = "") -> None:
        """Store a model's answers by key in one transaction; they survive a kill once this returns."""
        texts = {key: answer_json(answer) for key, answer in answers.items()}
        rows = [(stored_key(key), f"{text}\n{text_checksum(text)}") for key, text in texts.items()]
        with self._database():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._index.refresh()
                found = [(self._index.find(key), key, text) for key, text in rows]
                self._db.executemany(
                    "UPDATE kept SET answer = ?, model = ?, status = 'ok' WHERE n = ?",
                    [(text, model, n) for n, _, text in found if n is not None],
                )
                self._db.executemany(
                    "INSERT INTO kept (key, answer, model, status) VALUES (?, ?, ?, 'ok')",
                    [(key, text, model) for n, key, text in found if n is None],
                )
            self._index.refresh(own=True)
            self._index.fold()

    def mark(self, key: str, status: AnswerStatus) -> None:
        """Set the status of an answer; answers with a status other than `ok` are not reused."""
        with self._database(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._index.refresh()
            n = self._index.find(stored_key(key))
            if n is not None:
                self._db.execute("UPDATE kept SET status = ? WHERE n = ?", (status, n))
            elif self._has_older:
                self._db.execute("UPDATE answers SET status = ? WHERE key = ?", (status, key))

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listed(self, keys: Collection[str] | None = None) -> list[Kept]:
        """Return the count and bytes of answers by model and status, optionally restricted to some keys."""
        found: dict[tuple[str, str], list[int]] = {}
        for key, model, status, size in self._all():
            if keys is None or key in keys:
                found.setdefault((model, status), []).append(size)
        return [Kept(*whose, len(sizes), sum(sizes)) for whose, sizes in sorted(found.items())]

    def find(self, model: str | None = None, status: str | None = None) -> set[str]:
        """Return the keys of all answers, optionally of one model or status."""
        return {key for key, m, s, _ in self._all() if model in (None, m) and status in (None, s)}

    def _all(self) -> list[tuple[str, str, str, int]]:
        """Return key, model, status and bytes of all answers; a key in both tables counts once, with the newer row."""
        query = "SELECT key, model, status, LENGTH(answer) FROM "
        with self._database():
            older = self._db.execute(f"{query} answers").fetchall() if self._has_older else []
            rows: list[tuple[Key, str, str, int]] = [*older, *self._db.execute(f"{query} kept")]
        by_key = {key_text(key): (model, status, size) for key, model, status, size in rows}
        return [(key, *row) for key, row in by_key.items()]

    def clear(self, keys: Iterable[str]) -> int:
        """Delete answers and free their disk space; return the number deleted."""
        deleted = set()
        with self._database():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._index.refresh()
                for key in keys:
                    n = self._index.find(stored_key(key))
                    gone = self._db.execute("DELETE FROM kept WHERE n = ?", (n,)).rowcount
                    if self._has_older:
                        gone += self._db.execute("DELETE FROM answers WHERE key = ?", (key,)).rowcount
                    deleted |= {key} if gone else set()
                self._index.rebuild()
            self._index.refresh(own=True)
            self._db.execute("VACUUM")
        return len(deleted)

    def close(self) -> None:
        """Close the file and release all leases."""
        self.leases.close()
        with self._lock:
            self._db.close()


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def non_default_fields(answer: Any) -> dict[str, Any]:
    """Return the fields of an answer or call that differ from their defaults, those of its usage likewise."""
    kind: Any = type(answer)
    usual = _defaults(kind)
    found = {name: value for name, value in vars(answer).items() if name not in usual or value != usual[name]}
    if "usage" in found:
        found["usage"] = non_default_fields(found["usage"])
    return found


_JSON = json.JSONEncoder(default=non_default_fields, separators=(",", ":"))


def compact_json(fields: dict[str, Any]) -> str:
    """Return JSON without spaces, in one line of ASCII, so that no line break or control code of a server is in it."""
    try:
        text = to_json(fields)  # twice as fast as the standard library, but leaves other characters as they are
    except ValueError:  # unpaired surrogates
        return _JSON.encode(fields)
    return text.decode() if text.isascii() else _JSON.encode(fields)


def answer_json(answer: object) -> str:
    """Return an answer (a reply, or JSON data) as the JSON that the cache stores."""
    return compact_json(answer if isinstance(answer, dict) else non_default_fields(answer))


def _why(error: Exception) -> str:
    """Return what is wrong with the file and the remedy; suggest moving the file only if it is damaged."""
    if (short := shortage(error)) is not None:
        return f"({short})"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"({error}); move it away, and the models are asked again"
    if code == sqlite3.SQLITE_CANTOPEN:
        return f"({error}); check that its folder is writable and that more files can be opened (`ulimit -n`)"
    return f"({error}); check that its folder is writable, or set SAEVAL_CACHE to another one"
