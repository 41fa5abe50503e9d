"""Keeps the run's ledger of calls; sums their cost and checks which models answered."""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saeval._util import InputError, LineFile, clean_text, counted, os_reason, refuse_pipe, text_checksum
from saeval.llm.budget import known_dollars
from saeval.llm.cache import compact_json, non_default_fields
from saeval.records import Ledger, Usage

_NOTHING = Usage()
_SAME = 3  # calls with equal prompt token counts that show that the server truncates prompts

log = logging.getLogger("saeval")


@dataclass(frozen=True)
class Call:
    """One line of the ledger, without prompts, answers and API keys. Fields with default values are omitted.

    Attributes:
        role: Role of the spec.
        model: Model as the spec names it.
        request: Hash of the request, independent of the model.
        answer: Key of the answer in the `AnswerCache`.
        status: Outcome of the call.
        cached: Whether the answer came from the cache, or from an equal request in flight.
        attempts: Number of attempts.
        usage: Usage of all attempts together.
        milliseconds: Time from request to answer, including waits.
        reason: Why there is no answer.
        served: Model that answered, as the server names it.
        fingerprint: The server's fingerprint of model and configuration.
        words: Number of words in the prompt.
        probe: Whether the call only tested that the model answers.
        known_usd: Dollars of the attempts of known price, if `usage` has no price because another's is unknown.
    """

    role: str
    model: str
    request: str
    answer: str
    status: Literal["ok", "failed", "refused"] = "ok"
    cached: bool = False
    attempts: int = 1
    usage: Usage = _NOTHING
    milliseconds: float = 0.0
    reason: str = ""
    served: str = ""
    fingerprint: str = ""
    words: int = 0
    probe: bool = False
    known_usd: float = 0.0

    @property
    def dollars(self) -> float:
        """Dollars that the call cost as far as known; 0 for a cached answer."""
        return 0.0 if self.cached else max(known_dollars(self.usage), self.known_usd)


@dataclass(frozen=True)
class LoggedCall(Call):
    """A line of the ledger, as read from the file.

    Attributes:
        time: When the call ended, in seconds since 1970.
        spent: Total dollars that the run had spent by then, as far as prices are known.
    """

    time: float = 0.0
    spent: float = 0.0


_SIGNATURE = ', "crc": "'
"""Start of the last field of a line: the checksum of everything before it."""


def _signed(line: str) -> str:
    """Return a line of JSON with its checksum as the last field."""
    return f'{line[:-1]}{_SIGNATURE}{text_checksum(line[:-1])}"}}'


def ledger_line(call: Call, now: float, spent: float) -> str:
    """Return the line of a call, without the line break.

    Args:
        call: The call.
        now: When it ended, in seconds since 1970.
        spent: Total dollars that the run had spent by then.
    """
    facts = {"time": now, **non_default_fields(call)}
    if spent:
        facts["spent"] = round(spent, 9)
    if call.reason:
        facts["reason"] = clean_text(call.reason)
    return _signed(compact_json(facts))


def _verified(line: bytes) -> bytes:
    """Check a line against its checksum and return it; lines of earlier versions without one pass.

    Raises:
        ValueError: If the checksum does not match.
    """
    body, mark, digest = line.rstrip(b"\n").rpartition(_SIGNATURE.encode())
    if mark and digest != b'%08x"}' % zlib.crc32(body):
        raise ValueError("changed")
    return line


@dataclass
class Served:
    """Which models answered a role according to the server, and how often.

    Attributes:
        models: Number of calls by model name.
        builds: Number of calls by the server's fingerprint. If there were several before, a new one is no change.
    """

    models: Counter[str] = field(default_factory=Counter)
    builds: Counter[str] = field(default_factory=Counter)

    def count(self, call: Call) -> None:
        """Count a call."""
        self.models.update([call.served] if call.served else [])
        self.builds.update([call.fingerprint] if call.fingerprint else [])

    def changes(self, role: str) -> list[str]:
        """Return a warning if more than one model or build answered, else an empty list."""
        for kind, counts in (("models", self.models), ("builds of the model", self.builds)):
            if len(counts) > 1:
                shown = ", ".join(f"{name} ({n:,})" for name, n in counts.most_common())
                return [f"{role}: the server answered with several {kind}: {shown}."]
        return []


class Earlier(NamedTuple):
    """Facts about earlier sessions of a run, from its ledger.

    Attributes:
        tried: Pairs of role and model that were tested and answered.
        priced: Pairs of role and model with at least one call of known price.
        served: Which models answered, by role and the model's name in the spec.
    """

    tried: frozenset[tuple[str, str]]
    priced: frozenset[tuple[str, str]]
    served: dict[tuple[str, str], Served]


class CallLedger:
    """The run's ledger, `calls.jsonl`: one line per call and per answer from the cache.

    Args:
        path: The file; lines are appended.

    Attributes:
        damaged: Number of unreadable lines, when the file was last read.
        expected: Which models answered each role so far, and have to answer it from now on; roles that are missing
            here may be answered by any model.
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
            InputError: If the disk is full, or the file cannot be written to; no line is added then.
        """
        if self._spent is None:
            self._spent = self._known_spent()
        now, lines, spent = round(time.time(), 3), [], self._spent
        for call in calls:
            spent += call.dollars
            lines.append(ledger_line(call, now, spent))
        self._file.append("\n".join(lines))
        self._spent = spent

    def close(self) -> None:
        """Close the file; `add` opens it again."""
        self._file.close()

    def calls(self) -> Iterator[LoggedCall]:
        """Yield the calls in the file; count lines that are truncated (by a kill) or damaged in `damaged`.

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
        """Return calls, tokens and cost per role and model over all sessions; cached answers cost nothing."""
        return self.account()[0]

    def account(self, models: Collection[tuple[str, str]] | None = None) -> tuple[list[Ledger], list[str]]:
        """Return what `totals` returns, and warnings about unusual calls, from one pass over the file.

        Args:
            models: Pairs of role and model that the spec asks, which the warnings are about; None for all. Others are
                marked as `earlier`.
        """
        totals, oddities = _Totals(), _Oddities()
        for call in self.calls():
            totals.add(call)
            if models is None or (call.role, call.model) in models:
                oddities.add(call)
        return totals.ledgers(models), oddities.warnings()

    def spent(self) -> float:
        """Return the dollars spent so far, as far as prices are known; warn if damaged lines may hide some."""
        spent = self._known_spent()
        if self.damaged:
            log.warning("%s; the spending limit uses the totals in later lines instead", self.missing())
        return spent

    def _known_spent(self) -> float:
        """Return the dollars spent: the sum over all lines, at least the running total that any line states."""
        spent = 0.0
        for call in self.calls():
            spent = max(spent + call.dollars, call.spent)
        return spent

    def missing(self) -> str:
        """Return a warning (without full stop) that damaged lines are missing in the totals; empty if none are."""
        if not self.damaged:
            return ""
        lines = counted(self.damaged, "line is", "lines are")
        return f"{self.path.name}: {lines} damaged, so the cost of those calls is not counted"

    def earlier(self) -> Earlier:
        """Return which models earlier sessions of the run tested, their prices, and which models answered."""
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
        """Check that the same model answers as before.

        Raises:
            InputError: If another model answers, or another build of it and there was only one build before.
        """
        if (expected := self.expected.get((call.role, call.model))) is None:
            return
        builds = expected.builds if len(expected.builds) == 1 else {}
        for what, before in ((call.served, expected.models), (call.fingerprint, builds)):
            if what and before and what not in before:
                raise InputError(
                    f"{call.role}: {what} answers now, but {', '.join(sorted(before))} answered before; one run should "
                    "not mix them. Choose another --out, or allow it with --allow-model-change"
                )


def ledgers_in(folder: Path) -> list[CallLedger]:
    """Return the ledgers in a run directory: its own, and those of its seeds."""
    files = [*folder.glob("calls.jsonl"), *sorted(folder.glob("seed-*/calls.jsonl"))]
    return [CallLedger(file) for file in files]


class _Totals:
    """Sums calls, tokens and cost by role and model."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, call: Call) -> None:
        """Add a call; a cached answer costs nothing."""
        total = self._sums.setdefault(
            (call.role, call.model), {"calls": 0, "cached": 0, "failed": 0, "usage": Usage(usd=0.0)}
        )
        if call.probe:
            total["usage"] += replace(call.usage, usd=call.usage.usd or 0.0)
            return
        if call.cached:
            total["cached"] += 1
            return
        total["calls"] += 1
        total["failed"] += call.status != "ok"
        total["usage"] += call.usage

    def ledgers(self, models: Collection[tuple[str, str]] | None) -> list[Ledger]:
        """Return the sums; those of other pairs of role and model than these are marked as `earlier`."""
        return [
            Ledger(
                role=role,
                model=model,
                calls=t["calls"],
                cached=t["cached"],
                failed=t["failed"],
                input_tokens=t["usage"].input_tokens,
                cached_tokens=t["usage"].cached_tokens,
                output_tokens=t["usage"].output_tokens,
                usd=t["usage"].usd,
                earlier=models is not None and (role, model) not in models,
            )
            for (role, model), t in self._sums.items()
        ]


class _Oddities:
    """Finds unusual calls: several served models per role, truncated prompts, unusable token counts."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str], Served] = {}
        self._cut: dict[str, Counter[int]] = {}
        self._words: dict[str, list[int]] = {}
        self._estimated: Counter[str] = Counter()

    def add(self, call: Call) -> None:
        """Take a call into account."""
        if call.cached or call.status != "ok" or call.probe:
            return
        self._served.setdefault((call.role, call.model), Served()).count(call)
        self._estimated[call.role] += call.usage.estimated
        if 0 < call.usage.input_tokens < call.words * call.attempts and not call.usage.cached_tokens:
            self._cut.setdefault(call.role, Counter())[call.usage.input_tokens // call.attempts] += 1
            self._words.setdefault(call.role, []).append(call.words)

    def warnings(self) -> list[str]:
        """Return a warning for each kind found."""
        found = [text for (role, _), by in self._served.items() for text in by.changes(role)]
        for role, counts in self._cut.items():
            tokens, times = counts.most_common(1)[0]
            words = self._words[role]
            if times >= max(_SAME, len(words) / 2):
                found.append(
                    f"{role}: the server read {tokens:,} tokens of prompts of {min(words):,} to {max(words):,} words, "
                    "so it truncates them; raise its context (Ollama: `extra: {num_ctx: 8192}`, llama.cpp: "
                    "`--ctx-size`)."
                )
        found += [
            f"{role}: the server gave no usable token counts in {n:,} calls, so their tokens and cost are estimated "
            "from the length of the text."
            for role, n in self._estimated.items()
            if n
        ]
        return found
