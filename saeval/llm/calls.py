"""What calls to language models leave behind: answers to be used again, a ledger of what they took, and a budget."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saeval._util import (
    BudgetExceeded,
    InputError,
    LineFile,
    SaevalError,
    StoreError,
    clean_text,
    os_reason,
    parse_json,
    refuse_pipe,
    shortage,
    write_atomic,
)
from saeval.llm.leases import Leases
from saeval.records import Ledger, Usage

_SCHEMA = 2
_SAME = 3  # calls of equal prompt tokens by which a prompt that was cut is known

_JSON = json.JSONEncoder(default=vars)  # dataclasses are objects of their fields

AnswerStatus = Literal["ok", "unreadable"]
"""Whether a reply may be used again: one that held no answer for whoever asked is asked for again by the next run."""

log = logging.getLogger("saeval")


class Kept(NamedTuple):
    """Answers of one model and status in the cache."""

    model: str
    status: str
    answers: int
    bytes: int


class CallStore:
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
        """Return the answer kept under a key, or None; one that nobody could read, or that has changed on disk, is none."""
        with self._database():
            row = self._db.execute("SELECT CAST(answer AS BLOB), status FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None or row[1] != "ok":
            return None
        text, _, digest = row[0].decode(errors="replace").partition("\n")  # there is no line break in JSON
        if digest != _digest(text):
            log.warning("%s: the answer %s is damaged, and is asked for again", self.path, key[:12])
            return None
        return parse_json(text)  # answers that earlier versions kept may hold halves of surrogate pairs

    def put(self, answers: Mapping[str, object], model: str = "") -> None:
        """Keep a model's answers by their keys, all or none; they survive a kill from here on."""
        texts = {key: _JSON.encode(answer) for key, answer in answers.items()}
        rows = [(key, f"{text}\n{_digest(text)}", model) for key, text in texts.items()]
        with self._database(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, 'ok')", rows)

    def mark(self, key: str, status: AnswerStatus) -> None:
        """Say what an answer is good for; one that is not `ok` is not used again."""
        with self._database(), self._db:
            self._db.execute("UPDATE answers SET status = ? WHERE key = ?", (status, key))

    def __enter__(self) -> CallStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listed(self, keys: Collection[str] | None = None) -> list[Kept]:
        """Return how many answers are kept, and their bytes, by model and status; of these keys where they are given."""
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


def _digest(text: str) -> str:
    """A checksum, by which a changed answer is known; SQLite itself has none."""
    return f"{zlib.crc32(text.encode()):08x}"


@dataclass(frozen=True)
class Call:
    """One line of the ledger; prompts and answers are not in it, and no key ever is.

    Attributes:
        role: Role of the spec.
        model: Model as the spec names it.
        request: Hash of what was asked, whatever the model.
        answer: Key of the answer in the `CallStore`.
        status: How it ended.
        cached: Whether the answer was there already, or was being waited for.
        attempts: Times the model was asked.
        usage: What all attempts took.
        milliseconds: From asking to answer, waits included.
        reason: Why there is no answer.
        served: Model that answered, as the server named it.
        fingerprint: The server's mark of model and configuration.
        words: Words of the prompt.
        probe: Whether the call only tried whether the model answers.
    """

    role: str
    model: str
    request: str
    answer: str
    status: Literal["ok", "failed", "refused"]
    cached: bool
    attempts: int
    usage: Usage
    milliseconds: float
    reason: str = ""
    served: str = ""
    fingerprint: str = ""
    words: int = 0
    probe: bool = False


@dataclass(frozen=True)
class LoggedCall(Call):
    """A line of the ledger as it was read back.

    Attributes:
        time: When the call had ended, in seconds since 1970.
        spent: Dollars that the run had spent by then, as far as prices are known.
    """

    time: float = 0.0
    spent: float = 0.0


_SIGNATURE = ', "crc": "'
"""What begins the last field of a line: the checksum of all before it."""


def _signed(line: str) -> str:
    """Return a line of JSON with its checksum as the last field."""
    return f'{line[:-1]}{_SIGNATURE}{_digest(line[:-1])}"}}'


def _verified(line: bytes) -> bytes:
    """Return a line that its checksum fits, or that an earlier version wrote without one.

    Raises:
        ValueError: If it does not fit.
    """
    body, mark, digest = line.rstrip(b"\n").rpartition(_SIGNATURE.encode())
    if mark and digest != f'{_digest(body.decode(errors="replace"))}"}}'.encode():
        raise ValueError("changed")
    return line


def _dollars(usage: Usage) -> float:
    """Return what a call cost, as far as it is known; no answer gives money back."""
    return usage.usd if usage.usd is not None and 0.0 < usage.usd < math.inf else 0.0


@dataclass
class Served:
    """Who answered a role, as the server says, and how often.

    Attributes:
        models: Calls by the model's name.
        builds: Calls by the server's mark of model and configuration. Where there are several, they mean no change.
    """

    models: Counter[str] = field(default_factory=Counter)
    builds: Counter[str] = field(default_factory=Counter)

    def count(self, call: Call) -> None:
        """Count a call."""
        self.models.update([call.served] if call.served else [])
        self.builds.update([call.fingerprint] if call.fingerprint else [])

    def changes(self, role: str) -> list[str]:
        """Return a sentence where more than one answered."""
        for kind, counts in (("models", self.models), ("builds of the model", self.builds)):
            if len(counts) > 1:
                shown = ", ".join(f"{name} ({n:,})" for name, n in counts.most_common())
                return [f"{role}: the server answered with several {kind}: {shown}."]
        return []


class Earlier(NamedTuple):
    """What the ledger tells of earlier sittings of a run.

    Attributes:
        tried: Roles and models that were tried, and answered.
        priced: Those of whose calls some price is known.
        served: Who answered, by role and the model's name in the spec.
    """

    tried: frozenset[tuple[str, str]]
    priced: frozenset[tuple[str, str]]
    served: dict[tuple[str, str], Served]


class CallLog:
    """The run's ledger, `calls.jsonl`: a line for every call made, and for every answer taken from the cache.

    Args:
        path: The file; appended to.

    Attributes:
        damaged: Lines that could not be read, by the last count.
        expected: Who answered each role and model of the spec so far, and has to answer it from now on; empty where anybody may.
    """

    def __init__(self, path: Path):
        self.path = path
        self.damaged = 0
        self.expected: dict[tuple[str, str], Served] = {}
        self._file = LineFile(path)
        self._spent: float | None = None

    def add(self, *calls: Call) -> None:
        """Append a line for each call.

        Raises:
            InputError: If there is no room, or the file cannot be written to; no line is added then.
        """
        if self._spent is None:
            self._spent = self._known_spent()
        now, lines, spent = time.time(), [], self._spent
        for call in calls:
            spent += 0.0 if call.cached else _dollars(call.usage)
            facts = {"time": now, **vars(call), "reason": clean_text(call.reason), "spent": round(spent, 9)}
            lines.append(_signed(_JSON.encode(facts)))
        self._file.append("\n".join(lines))
        self._spent = spent

    def close(self) -> None:
        """Close the file; another line opens it again."""
        self._file.close()

    def calls(self) -> Iterator[LoggedCall]:
        """Yield what is in the file; lines that a kill cut short, or that are damaged, are counted in `damaged`.

        Raises:
            InputError: If the file cannot be read.
        """
        from pydantic import TypeAdapter, ValidationError

        if not self.path.exists():
            return
        entry = TypeAdapter(LoggedCall)
        damaged = 0
        refuse_pipe(self.path)
        try:
            with self.path.open("rb") as lines:
                for line in lines:
                    try:
                        call = entry.validate_json(_verified(line))
                    except (ValidationError, ValueError):
                        damaged += 1
                        continue
                    yield call
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({os_reason(error)})") from None
        self.damaged = damaged

    def totals(self) -> list[Ledger]:
        """Return what each role's model took, over all sittings of the run; cached answers cost nothing."""
        sums: dict[tuple[str, str], dict[str, Any]] = {}
        for call in self.calls():
            total = sums.setdefault(
                (call.role, call.model), {"calls": 0, "cached": 0, "failed": 0, "usage": Usage(usd=0.0)}
            )
            if call.probe:
                total["usage"] += replace(call.usage, usd=call.usage.usd or 0.0)
                continue
            if call.cached:
                total["cached"] += 1
                continue
            total["calls"] += 1
            total["failed"] += call.status != "ok"
            total["usage"] += call.usage
        return [
            Ledger(
                role=role, model=model, calls=t["calls"], cached=t["cached"], failed=t["failed"],
                input_tokens=t["usage"].input_tokens, cached_tokens=t["usage"].cached_tokens,
                output_tokens=t["usage"].output_tokens, usd=t["usage"].usd,
            )
            for (role, model), t in sums.items()
        ]  # fmt: skip

    def spent(self) -> float:
        """Return the dollars spent so far as far as prices are known; say if some may be missing."""
        spent = self._known_spent()
        if self.damaged:
            log.warning("%s; the spending limit counts what later lines say was spent", self.missing())
        return spent

    def _known_spent(self) -> float:
        """Return the dollars spent: the lines' own, and never less than a later line says was spent by then."""
        spent = 0.0
        for call in self.calls():
            spent = max(spent + (0.0 if call.cached else _dollars(call.usage)), call.spent)
        return spent

    def missing(self) -> str:
        """Return what the totals leave out, as a sentence without its full stop; empty where all lines can be read."""
        if not self.damaged:
            return ""
        lines = "1 line is" if self.damaged == 1 else f"{self.damaged:,} lines are"
        return f"{self.path.name}: {lines} damaged, and what was spent on those calls is not counted"

    def earlier(self) -> Earlier:
        """Return what the ledger tells of earlier sittings of the run."""
        tried: set[tuple[str, str]] = set()
        priced: set[tuple[str, str]] = set()
        served: dict[tuple[str, str], Served] = {}
        for call in self.calls():
            if call.cached or call.status != "ok":
                continue
            tried |= {(call.role, call.model)} if call.probe else set()
            priced |= {(call.role, call.model)} if call.usage.usd is not None else set()
            if not call.probe:
                served.setdefault((call.role, call.model), Served()).count(call)
        return Earlier(frozenset(tried), frozenset(priced), served)

    def refuse_change(self, call: Call) -> None:
        """See that who answers is who answered before.

        Raises:
            InputError: If it is another model, or another build of it where there was one.
        """
        if (expected := self.expected.get((call.role, call.model))) is None:
            return
        builds = expected.builds if len(expected.builds) == 1 else {}
        for what, before in ((call.served, expected.models), (call.fingerprint, builds)):
            if what and before and what not in before:
                raise InputError(
                    f"{call.role}: {what} answers now, and {', '.join(sorted(before))} did before; one run should not mix "
                    "them. Choose another --out, or allow it with --allow-model-change"
                )

    def oddities(self) -> list[str]:
        """Return sentences on what the calls of the run show: several models behind one role, or prompts that were cut."""
        served: dict[tuple[str, str], Served] = {}
        cut: dict[str, Counter[int]] = {}
        words: dict[str, list[int]] = {}
        estimated: Counter[str] = Counter()
        for call in self.calls():
            if call.cached or call.status != "ok" or call.probe:
                continue
            served.setdefault((call.role, call.model), Served()).count(call)
            estimated[call.role] += call.usage.estimated
            if 0 < call.usage.input_tokens < call.words * call.attempts and not call.usage.cached_tokens:
                cut.setdefault(call.role, Counter())[call.usage.input_tokens // call.attempts] += 1
                words.setdefault(call.role, []).append(call.words)
        found = [text for (role, _), by in served.items() for text in by.changes(role)]
        for role, counts in cut.items():
            tokens, times = counts.most_common(1)[0]
            if times >= max(_SAME, len(words[role]) / 2):
                found.append(
                    f"{role}: the server read {tokens:,} tokens of prompts of {min(words[role]):,} to {max(words[role]):,} "
                    "words, so it cuts them; raise its context (Ollama: `extra: {num_ctx: 8192}`, llama.cpp: `--ctx-size`)."
                )
        found += [
            f"{role}: the server gave no sensible token counts in {n:,} calls, so their tokens and bill are estimated from the "
            "length of the text."
            for role, n in estimated.items()
            if n
        ]
        return found

    def answers(self, role: str) -> dict[str, str]:
        """Return, for what a role was asked with success, hash of the request and key of the answer."""
        return {call.request: call.answer for call in self.calls() if call.role == role and call.status == "ok"}


class _Answered(NamedTuple):
    key: str
    answer: object
    call: Call
    kept: asyncio.Future[None]


class Bookkeeper:
    """Keeps answers and writes their lines of the ledger, for those of one turn of the event loop at once.

    With hundreds of calls in flight, a transaction each would take longer than all else that is done about an answer.

    Args:
        store: Where answers are kept.
        log: The ledger.
        model: The model whose answers they are.
    """

    def __init__(self, store: CallStore, log: CallLog, model: str):
        self._store, self._log, self._model = store, log, model
        self._answered: list[_Answered] = []

    async def keep(self, key: str, answer: object, call: Call) -> None:
        """Return when the answer is kept and its line written, both of which survive a kill.

        Raises:
            StoreError: If the answer cannot be kept; what it took is in the ledger all the same.
            InputError: If the ledger cannot be written to.
        """
        loop = asyncio.get_running_loop()
        if not self._answered:
            loop.call_soon(self._write)
        kept: asyncio.Future[None] = loop.create_future()
        self._answered.append(_Answered(key, answer, call, kept))
        await kept

    def _expected(self, answered: _Answered) -> bool:
        """Whether who answered may; an answer of another model is written down as failed, and not kept."""
        try:
            self._log.refuse_change(answered.call)
            return True
        except InputError as error:
            self._log.add(replace(answered.call, status="failed", reason=str(error)))
            if not answered.kept.done():
                answered.kept.set_exception(error)
            return False

    def _write(self) -> None:
        answered, self._answered = [a for a in self._answered if self._expected(a)], []
        calls = [a.call for a in answered]
        error: SaevalError | None = None
        try:
            self._store.put({a.key: a.answer for a in answered}, self._model)
        except StoreError as found:
            error = found
            calls = [replace(call, status="failed", reason=str(found)) for call in calls]
        try:
            self._log.add(*calls)
        except InputError as found:
            error = error or found
        for kept in (a.kept for a in answered if not a.kept.done()):
            if error is None:
                kept.set_result(None)
            else:
                kept.set_exception(error)


def export_replay(log: CallLog, store: CallStore, role: str, path: Path) -> int:
    """Write the replies that a role was given in a run as a recording, which the model `replay/PATH` plays back.

    Args:
        log: The run's ledger.
        store: Where the answers are kept.
        role: Role of the spec.
        path: The recording to write; continuations that were scored are left out.

    Returns:
        The number of replies.

    Raises:
        InputError: If there are none.
    """
    kept = {request: store.get(key) for request, key in log.answers(role).items()}
    lines = [
        json.dumps({"key": request, "text": answer["text"], "logprobs": answer["logprobs"]}, ensure_ascii=False) + "\n"
        for request, answer in kept.items()
        if answer and "text" in answer
    ]
    if not lines:
        raise InputError(
            f"{log.path}: the role {role!r} was given no reply that is still kept, so there is none to record"
        )
    write_atomic(path, "".join(lines))
    return len(lines)


class Budget:
    """The spending limit of a run, shared by all its roles.

    Args:
        limit: Dollars; None for no limit.
        spent: Dollars spent in earlier sittings of the run.

    Attributes:
        calls: Calls of this sitting.
        unknown: Calls whose price is not known, which no limit can hold.
    """

    def __init__(self, limit: float | None, spent: float = 0.0):
        self.limit = limit
        self.spent = spent
        self.calls = 0
        self.unknown = 0

    def check(self) -> None:
        """See whether another call may be made.

        Raises:
            BudgetExceeded: If what is spent has reached the limit.
        """
        if self.limit is not None and self.spent >= self.limit:
            raise BudgetExceeded(
                f"${self.spent:.4f} spent of ${self.limit:.4f} allowed; run again with a higher --max-cost to go on"
            )

    def add(self, usage: Usage, model: str) -> None:
        """Count what a call to a model took; where a price is unknown, say once that the limit cannot hold it."""
        self.calls += 1
        self.spent += _dollars(usage)
        if usage.usd is None or not 0.0 <= usage.usd < math.inf:
            self.unknown += 1
            if self.unknown == 1 and self.limit is not None:
                log.warning(
                    "%s: its price is unknown, so the spending limit cannot hold it; "
                    "give the role usd_per_million_input and usd_per_million_output",
                    model,
                )
