"""Keeps the run's ledger of calls, and says what they cost and who answered them."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saeval._util import InputError, LineFile, clean_text, os_reason, refuse_pipe, text_checksum
from saeval.llm.budget import known_dollars
from saeval.llm.cache import told_fields
from saeval.records import Ledger, Usage

_NOTHING = Usage()
_SAME = 3  # calls of equal prompt tokens by which a prompt that was cut is known

_JSON = json.JSONEncoder(default=told_fields, separators=(",", ":"))

log = logging.getLogger("saeval")


@dataclass(frozen=True)
class Call:
    """One line of the ledger; prompts and answers are not in it, and no key ever is. Defaults are omitted.

    Attributes:
        role: Role of the spec.
        model: Model as the spec names it.
        request: Hash of what was asked, whatever the model.
        answer: Key of the answer in the `AnswerCache`.
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
    return f'{line[:-1]}{_SIGNATURE}{text_checksum(line[:-1])}"}}'


def ledger_line(call: Call, now: float, spent: float) -> str:
    """Return the line of a call, without its end.

    Args:
        call: The call.
        now: When it had ended, in seconds since 1970.
        spent: Dollars that the run had spent by then.
    """
    facts = {"time": now, **told_fields(call)}
    if spent:
        facts["spent"] = round(spent, 9)
    if call.reason:
        facts["reason"] = clean_text(call.reason)
    return _signed(_JSON.encode(facts))


def _verified(line: bytes) -> bytes:
    """Return a line that its checksum fits, or that an earlier version wrote without one.

    Raises:
        ValueError: If it does not fit.
    """
    body, mark, digest = line.rstrip(b"\n").rpartition(_SIGNATURE.encode())
    if mark and digest != f'{text_checksum(body.decode(errors="replace"))}"}}'.encode():
        raise ValueError("changed")
    return line


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
    """Earlier sittings of a run, from its ledger.

    Attributes:
        tried: Roles and models that were tried, and answered.
        priced: Those of whose calls some price is known.
        served: Who answered, by role and the model's name in the spec.
    """

    tried: frozenset[tuple[str, str]]
    priced: frozenset[tuple[str, str]]
    served: dict[tuple[str, str], Served]


class CallLedger:
    """The run's ledger, `calls.jsonl`: a line for every call made, and for every answer taken from the cache.

    Args:
        path: The file; appended to.

    Attributes:
        damaged: Lines that could not be read, by the last count.
        expected: Who answered each role and model of the spec so far, and has to answer it from now on; empty where
            anybody may.
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
        now, lines, spent = round(time.time(), 3), [], self._spent
        for call in calls:
            spent += 0.0 if call.cached else known_dollars(call.usage)
            lines.append(ledger_line(call, now, spent))
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
                role=role,
                model=model,
                calls=t["calls"],
                cached=t["cached"],
                failed=t["failed"],
                input_tokens=t["usage"].input_tokens,
                cached_tokens=t["usage"].cached_tokens,
                output_tokens=t["usage"].output_tokens,
                usd=t["usage"].usd,
            )
            for (role, model), t in sums.items()
        ]

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
            spent = max(spent + (0.0 if call.cached else known_dollars(call.usage)), call.spent)
        return spent

    def missing(self) -> str:
        """Return what the totals omit, as a sentence without its full stop; empty where all lines can be read."""
        if not self.damaged:
            return ""
        lines = "1 line is" if self.damaged == 1 else f"{self.damaged:,} lines are"
        return f"{self.path.name}: {lines} damaged, and what was spent on those calls is not counted"

    def earlier(self) -> Earlier:
        """Return what the ledger knows about earlier sittings of the run."""
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
                    f"{call.role}: {what} answers now, and {', '.join(sorted(before))} did before; one run should "
                    "not mix them. Choose another --out, or allow it with --allow-model-change"
                )

    def oddities(self) -> list[str]:
        """Return warnings about the calls of a run: several served models per role, or truncated prompts."""
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
                    f"{role}: the server read {tokens:,} tokens of prompts of {min(words[role]):,} to "
                    f"{max(words[role]):,} words, so it cuts them; raise its context (Ollama: `extra: {{num_ctx: "
                    "8192}`, llama.cpp: `--ctx-size`)."
                )
        found += [
            f"{role}: the server gave no sensible token counts in {n:,} calls, so their tokens and bill are estimated "
            "from the length of the text."
            for role, n in estimated.items()
            if n
        ]
        return found

    def answers(self, role: str) -> dict[str, str]:
        """Return, for what a role was asked with success, hash of the request and key of the answer."""
        return {call.request: call.answer for call in self.calls() if call.role == role and call.status == "ok"}
