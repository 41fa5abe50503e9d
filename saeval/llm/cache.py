"""Keeps answers of language models on disk, by the content of their requests."""

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

from saeval._util import StoreError, parse_json, shortage, text_checksum
from saeval.llm.key_index import Key, KeyIndex, key_text, stored_key
from saeval.llm.leases import Leases

_SCHEMA = 3
_OLDER = 2  # answers of its table `answers` are read where they are
_CHECKPOINT = 1 << 24  # bytes
_PAGE = 1024  # bytes; the last page of the table is written again with each transaction

log = logging.getLogger("saeval")

AnswerStatus = Literal["ok", "unreadable"]
"""Whether a reply may be used again: one that held no answer for the caller is asked for again by the next run."""


class Kept(NamedTuple):
    """Answers of one model and status in the cache."""

    model: str
    status: str
    answers: int
    bytes: int


class AnswerCache:
    """Answers by the content of their request, on disk; shared by runs, processes and threads.

    An answer is committed before it is handed out, so a process killed at any moment has lost none that it used.
    Answers are added at the end of a table and found by a `KeyIndex`: keys are random, and rows in their order would
    have a page of their own each. Answers of earlier versions stay in the table they are in, and are used like others.

    Args:
        path: The SQLite file; made when it is not there.

    Attributes:
        leases: Which questions are being asked, by this process or another one.

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
                raise StoreError(f"{path}: cache of another saeval (version {version}); move it away")
            self._index = KeyIndex(self._db)
            self._lay_out()
            self.leases = Leases(path.with_suffix(".leases"))

    def _share(self) -> None:
        """Let readers go on beside a writer; of several processes at a new file, SQLite lets the late ones fail."""
        for waited in range(600):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY) or waited == 599:
                    raise
                time.sleep(0.1)

    def _lay_out(self) -> None:
        """Make the tables; that of an earlier version gets columns that say whose an answer is, and of what status."""
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
        """Hold the lock, and say in one sentence what is wrong with the file."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"{self.path}: the cache of model answers cannot be used {_why(error)}") from None

    def get(self, key: str) -> Any | None:
        """Return the answer kept under a key; None if there is none, it was unreadable, or it is damaged."""
        with self._database():
            row = self._row(key)
        if row is None or row[1] != "ok":
            return None
        text, _, digest = row[0].decode(errors="replace").partition("\n")  # there is no line break in JSON
        if digest != text_checksum(text):
            log.warning("%s: the answer %s is damaged, and is asked for again", self.path, key[:12])
            return None
        return parse_json(text)  # answers that earlier versions kept may hold halves of surrogate pairs

    def _row(self, key: str) -> tuple[bytes, str] | None:
        """Return an answer as it is kept, and its status."""
        n = self._index.find(stored_key(key))
        row = None
        if n is not None:
            row = self._db.execute("SELECT CAST(answer AS BLOB), status FROM kept WHERE n = ?", (n,)).fetchone()
        if row is None and self._has_older:
            row = self._db.execute("SELECT CAST(answer AS BLOB), status FROM answers WHERE key = ?", (key,)).fetchone()
        return row

    def put(self, answers: Mapping[str, object], model: str = "") -> None:
        """Keep a model's answers by their keys, all or none; they survive a kill from here on."""
        texts = {key: answer_json(answer) for key, answer in answers.items()}
        rows = [(stored_key(key), f"{text}\n{text_checksum(text)}") for key, text in texts.items()]
        with self._database():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
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
        """Say what an answer is good for; one that is not `ok` is not used again."""
        with self._database(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
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
        """Return the number and bytes of answers by model and status, optionally of some keys only."""
        found: dict[tuple[str, str], list[int]] = {}
        for key, model, status, size in self._all():
            if keys is None or key in keys:
                found.setdefault((model, status), []).append(size)
        return [Kept(*whose, len(sizes), sum(sizes)) for whose, sizes in sorted(found.items())]

    def find(self, model: str | None = None, status: str | None = None) -> set[str]:
        """Return the keys of answers, of one model or status where one is given."""
        return {key for key, m, s, _ in self._all() if model in (None, m) and status in (None, s)}

    def _all(self) -> list[tuple[str, str, str, int]]:
        """Return key, model, status and bytes of all answers; one that was given again counts as it is now."""
        query = "SELECT key, model, status, LENGTH(answer) FROM "
        with self._database():
            older = self._db.execute(f"{query} answers").fetchall() if self._has_older else []
            rows: list[tuple[Key, str, str, int]] = [*older, *self._db.execute(f"{query} kept")]
        by_key = {key_text(key): (model, status, size) for key, model, status, size in rows}
        return [(key, *row) for key, row in by_key.items()]

    def clear(self, keys: Iterable[str]) -> int:
        """Delete answers, and give their room back to the disk; return how many there were."""
        deleted = set()
        with self._database():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
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
        """Close the file, and give all leases back."""
        self.leases.close()
        with self._lock:
            self._db.close()


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def told_fields(answer: Any) -> dict[str, Any]:
    """Return the fields of an answer or call that are not as they are by default."""
    kind: Any = type(answer)
    usual = _defaults(kind)
    return {name: value for name, value in vars(answer).items() if name not in usual or value != usual[name]}


_JSON = json.JSONEncoder(default=told_fields, separators=(",", ":"))


def answer_json(answer: object) -> str:
    """Return an answer as the cache keeps it."""
    return _JSON.encode(answer)


def _why(error: Exception) -> str:
    """Say what is wrong with the file, and what to do; only one that is damaged may be deleted."""
    if (short := shortage(error)) is not None:
        return f"({short})"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"({error}); move it away, and answers are asked for again"
    if code == sqlite3.SQLITE_CANTOPEN:
        return f"({error}); see that its folder may be written to and that files may be opened (`ulimit -n`)"
    return f"({error}); see that its folder may be written to, or set SAEVAL_CACHE to another one"
