"""The probing explainer tests its explanation on texts that it writes, run through the live model, and revises it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from saeval.plugin import (
    Context,
    Example,
    Examples,
    Explainer,
    Explanation,
    LanguageModel,
    LLMError,
    Message,
    Need,
    ParseError,
    Reply,
    Request,
    ask,
    ask_twice,
    one_line,
    shortened,
    show,
    show_plain,
    whole_answer,
)
from saeval_plugins.prompts import load

if TYPE_CHECKING:
    from pydantic import JsonValue

PROPOSE = load("explainer_default.md")
WRITE = load("explainer_probing_write.md")
REVISE = load("explainer_probing_revise.md")
BEGUN = "ACTIVE:"

_LINE = re.compile(r"[\s>#*_`\d.)-]*(ACTIVE|SILENT)[*_]*\s*:[*_]*\s*(\S.*)", re.IGNORECASE)
_LONGEST = 300  # maximum characters per text: a longer one would be split into several contexts


class Probe(NamedTuple):
    """A text written to test an explanation, and the latent's activations on it.

    Attributes:
        text: The text.
        expected: Whether the latent should fire according to the explanation.
        window: The text's tokens and activations.
        active: Whether the latent fired.
    """

    text: str
    expected: bool
    window: Example
    active: bool

    def note(self) -> JsonValue:
        """Return the fields that are stored in the explanation's notes."""
        return {
            "text": self.text,
            "expected": self.expected,
            "active": self.active,
            "max_activation": self.window.max_activation,
        }


class Round(NamedTuple):
    """A tested explanation.

    Attributes:
        explanation: The explanation.
        agreement: See `agreement`, over the texts written to test it.
    """

    explanation: str
    agreement: float


def agreement(probes: Sequence[Probe]) -> float:
    """Return the share of texts on which the latent behaved as expected, averaged over both kinds of text.

    Args:
        probes: Texts on which the latent should fire and texts on which it should not, at least one of each.
    """
    kinds = [[probe.active is kind for probe in probes if probe.expected is kind] for kind in (True, False)]
    return sum(sum(kept) / len(kept) for kept in kinds) / len(kinds)


class Probing(Explainer):
    """Writes texts that test its explanation, reads the latent's activations on them, and revises the explanation.

    The first explanation is made as by `default`. In each round, the language model writes texts on which the latent
    should fire if the explanation is right, and similar texts on which it should not. The live model reads them, and
    the language model sees where the latent fired and revises the explanation. It stops when the latent behaves as
    expected on all texts of a round, when a reply cannot be parsed, or when too few calls are left to revise and test.
    The result is the tested explanation with the highest share of texts on which the latent behaved as expected (mean
    over both kinds of text; ties: the latest). Only explain windows and its own texts are used. Requires a chat model
    and a source that can read any text. Based on SAGE (arXiv 2511.20820), with one hypothesis and a fixed number of
    calls.
    """

    name = "probing"
    llm_role = "explainer"
    prompts = (PROPOSE, WRITE, REVISE)

    calls: int = Field(default=6, ge=4)
    """Maximum calls to the language model, including repeated requests: one to propose, one to test, and two for each
    revision and its test."""
    probes: int = Field(default=5, ge=1, le=20)
    """Maximum texts of each kind per round."""
    active_at: float = Field(default=0.1, ge=0, lt=1)
    """A text counts as active if the activation exceeds this share of the latent's maximum."""
    examples: int = Field(default=20, ge=1)
    """Maximum activating windows to show."""
    shots: int = Field(default=3, ge=0, le=3)
    """Worked examples before the first question."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at or above this share of their window's maximum are marked."""
    prefill: bool = False
    """Whether to prefill answers, as base models need."""

    def needs(self) -> frozenset[Need]:
        """Return the need for a source that reads any text."""
        return frozenset({"text"})

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Propose an explanation, then test and revise it."""
        llm = _Bounded(context.llm, self.calls)
        bounded = replace(context, llm=llm)
        windows = show(examples.activating[: self.examples], examples, self.threshold)
        system, *shots, question = PROPOSE.messages(windows=windows)
        latest = await ask(bounded, (system, *shots[: 2 * self.shots], question), prefill=self.prefill)
        if latest.status != "ok":
            return latest
        rounds, probes = list[Round](), list[Probe]()
        while True:
            try:
                written = await self._write(latest.text, windows, probes, llm)
            except (ParseError, LLMError) as error:
                ended = f"no texts were written: {error}"
                break
            new = await asyncio.to_thread(self._read, written, examples, context)
            probes += new
            rounds.append(Round(latest.text, agreement(new)))
            if rounds[-1].agreement == 1:
                ended = "the latent behaved as expected on all texts of a round"
                break
            if llm.left < 2:
                ended = "all calls are used"
                break
            revised = await ask(bounded, self._revision(latest.text, windows, probes, examples), prefill=self.prefill)
            if revised.status != "ok":
                ended = f"the last revision failed: {revised.reason}"
                break
            latest = revised
        best = max(reversed(rounds), key=lambda tested: tested.agreement, default=Round(latest.text, 0.0))
        notes: dict[str, JsonValue] = {
            "rounds": [tested._asdict() for tested in rounds],
            "probes": [probe.note() for probe in probes],
            "calls": self.calls - llm.left,
            "ended": ended,
        }
        return Explanation(text=best.explanation, notes=notes)

    async def _write(
        self, explanation: str, windows: str, probes: Sequence[Probe], llm: LanguageModel
    ) -> list[tuple[bool, str]]:
        """Ask for texts; return whether each should be active, and the text.

        Raises:
            ParseError: If two replies in a row cannot be parsed.
            LLMError: If a call fails.
        """
        earlier = [probe.text for probe in probes]
        messages = WRITE.messages(
            explanation=one_line(explanation),
            windows=windows,
            earlier="".join(f"\n{text}" for text in earlier) or "none",
            k=str(self.probes),
        )
        begun = (Message("assistant", BEGUN),) if self.prefill else ()
        return await ask_twice(
            llm,
            Request((*messages, *begun)),
            lambda reply: parse_probes(reply, self.probes, earlier, begun=bool(begun)),
        )

    def _read(self, written: Sequence[tuple[bool, str]], examples: Examples, context: Context) -> list[Probe]:
        """Run the texts through the live model."""
        import numpy as np

        probes = []
        for number, (expected, text) in enumerate(written):
            read = context.read(text)
            tokens = tuple(token for words, _ in read for token in words)
            activations = np.concatenate([np.zeros(0, np.float32), *(values for _, values in read)])
            fires = bool(activations.max(initial=0.0) > self.active_at * examples.max_activation)
            shown = activations if fires else np.zeros_like(activations)
            ids = np.zeros(len(tokens), dtype=np.int32)
            window = Example(tokens, ids, shown, document=-1, context=-1, start=number, active=fires)
            probes.append(Probe(text, expected, window, fires))
        return probes

    def _revision(
        self, explanation: str, windows: str, probes: Sequence[Probe], examples: Examples
    ) -> tuple[Message, ...]:
        """Return the prompt for a revision, with all texts so far, grouped by expected and actual activation."""

        def group(expected: bool, active: bool) -> str:
            found = [probe.window for probe in probes if (probe.expected, probe.active) == (expected, active)]
            return (show(found, examples, self.threshold) if active else show_plain(found)) or "none"

        return REVISE.messages(
            explanation=one_line(explanation),
            windows=windows,
            hits=group(True, True),
            misses=group(True, False),
            surprises=group(False, True),
            silences=group(False, False),
        )


class _Bounded(LanguageModel):
    """Wraps a language model and limits the number of calls.

    Args:
        llm: The model.
        calls: Maximum number of calls.

    Attributes:
        left: Remaining calls.
    """

    def __init__(self, llm: LanguageModel, calls: int):
        self._llm, self.left = llm, calls

    async def complete(self, request: Request) -> Reply:
        """Send the request.

        Raises:
            ParseError: If no calls are left; callers handle it like an unreadable reply.
        """
        if not self.left:
            raise ParseError("all calls are used")
        self.left -= 1
        return await self._llm.complete(request)

    def discard(self, request: Request) -> None:
        """Discard the reply to a request."""
        self._llm.discard(request)


def parse_probes(
    reply: Reply | str, most: int, earlier: Sequence[str] = (), *, begun: bool = False
) -> list[tuple[bool, str]]:
    """Read the lines `ACTIVE: …` and `SILENT: …` of a reply.

    Repeated texts, earlier texts, and texts of more than 300 characters are dropped.

    Args:
        reply: The reply; plain text counts as complete.
        most: Maximum texts of each kind; the first ones are used.
        earlier: Texts of earlier rounds.
        begun: Whether the first marker was prefilled.

    Returns:
        Whether each text should be active, and the text.

    Raises:
        ParseError: If the reply is incomplete, or lacks new texts of one kind.
    """
    answer = whole_answer(reply)
    found: dict[str, bool] = {}
    for line in (BEGUN + " " + answer if begun else answer).splitlines():
        match = _LINE.match(line)
        text = one_line(match[2].replace("<<", "").replace(">>", "")).strip() if match else ""
        if match and 0 < len(text) <= _LONGEST and text not in earlier:
            found.setdefault(text, match[1].upper() == "ACTIVE")
    kinds = [[(kind, text) for text, expected in found.items() if expected == kind][:most] for kind in (True, False)]
    if not all(kinds):
        raise ParseError(f"no lines ACTIVE: and SILENT: with new texts in the reply {shortened(answer)!r}")
    return [*kinds[0], *kinds[1]]
