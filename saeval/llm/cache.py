"""Keeps answers of language models on disk, by the content of their requests."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saeval._util import StoreError, parse_json, shortage, text_checksum
from saeval.llm.leases import Leases

_SCHEMA = 2
_JSON = json.JSONEncoder(default=vars)  # dataclasses are objects of their fields

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
            self._share()
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "PRAGMA wal_autocheckpoint=4000"
            )  # pages; a checkpoint flushes to disk, and all wait for it
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, 1, _SCHEMA):
                raise StoreError(f"{path}: cache of another saeval (version {version}); move it away")
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
        """Make the table; an older one gets the columns that say whose an answer is, and whether it can be read."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
        )
        have = {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}
        for column, default in (("model", ""), ("status", "ok")):
            if column not in have:
                self._db.execute(f"ALTER TABLE answers ADD COLUMN {column} TEXT NOT NULL DEFAULT '{default}'")
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
            row = self._db.execute("SELECT CAST(answer AS BLOB), status FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None or row[1] != "ok":
            return None
        text, _, digest = row[0].decode(errors="replace").partition("\n")  # there is no line break in JSON
        if digest != text_checksum(text):
            log.warning("%s: the answer %s is damaged, and is asked for again", self.path, key[:12])
            return None
        return parse_json(text)  # answers that earlier versions kept may hold halves of surrogate pairs

    def put(self, answers: Mapping[str, object], model: str = "") -> None:
        """Keep a model's answers by their keys, all or none; they survive a kill from here on."""
        texts = {key: _JSON.encode(answer) for key, answer in answers.items()}
        rows = [(key, f"{text}\n{text_checksum(text)}", model) for key, text in texts.items()]
        with self._database(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, 'ok')", rows)

    def mark(self, key: str, status: AnswerStatus) -> None:
        """Say what an answer is good for; one that is not `ok` is not used again."""
        with self._database(), self._db:
            self._db.execute("UPDATE answers SET status = ? WHERE key = ?", (status, key))

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listed(self, keys: Collection[str] | None = None) -> list[Kept]:
        """Return the number and bytes of answers by model and status, optionally of some keys only."""
        with self._database():
            rows = self._db.execute("SELECT key, model, status, LENGTH(answer) FROM answers").fetchall()
        found: dict[tuple[str, str], list[int]] = {}
        for key, model, status, size in rows:
            if keys is None or key in keys:
                found.setdefault((model, status), []).append(size)
        return [Kept(*whose, len(sizes), sum(sizes)) for whose, sizes in sorted(found.items())]

    def find(self, model: str | None = None, status: str | None = None) -> set[str]:
        """Return the keys of answers, of one model or status where one is given."""
        query = "SELECT key FROM answers WHERE (?1 IS NULL OR model = ?1) AND (?2 IS NULL OR status = ?2)"
        with self._database():
            return {row[0] for row in self._db.execute(query, (model, status))}

    def clear(self, keys: Iterable[str]) -> int:
        """Delete answers, and give their room back to the disk; return how many there were."""
        with self._database():
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                before = self._db.total_changes
                self._db.executemany("DELETE FROM answers WHERE key = ?", ((key,) for key in keys))
                deleted = self._db.total_changes - before
            self._db.execute("VACUUM")
        return deleted

    def close(self) -> None:
        """Close the file, and give all leases back."""
        self.leases.close()
        with self._lock:
            self._db.close()


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
