"""The probing explainer tests its explanation on texts that it writes for the live model, and revises it."""

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
_LONGEST = 300  # characters of a text: a longer one would be read in several contexts


class Probe(NamedTuple):
    """A text that was written to test an explanation, and what the latent did on it.

    Attributes:
        text: The text.
        expected: Whether the explanation says that the latent fires.
        window: Its tokens as the model read them.
        active: Whether the latent fired.
    """

    text: str
    expected: bool
    window: Example
    active: bool

    def note(self) -> JsonValue:
        """Return it as results keep it."""
        return {
            "text": self.text,
            "expected": self.expected,
            "active": self.active,
            "max_activation": self.window.max_activation,
        }


class Round(NamedTuple):
    """An explanation that was tested on texts.

    Attributes:
        explanation: The explanation.
        agreement: Share of its texts on which the latent did what was expected, mean of both kinds.
    """

    explanation: str
    agreement: float


def agreement(probes: Sequence[Probe]) -> float:
    """Return the share of texts on which the latent did what was expected, mean of those that it should fire on or not.

    Args:
        probes: Texts of both kinds.
    """
    kinds = [[probe.active is kind for probe in probes if probe.expected is kind] for kind in (True, False)]
    return sum(sum(kept) / len(kept) for kept in kinds) / len(kinds)


class Probing(Explainer):
    """Writes texts that test its explanation, reads the latent's activations on them, and revises the explanation.

    The first explanation is made as by `default`. In each round the model writes texts on which the latent should fire
    if the explanation is right, and similar ones on which it should not. The live model reads them, and the language
    model is shown where the latent fired. It ends when the latent does what was expected on all texts of a round, when
    a reply cannot be read, or when too few calls are left to revise and test. Of the explanations tested, the one with
    the most texts on which the latent did what was expected is the result (mean of both kinds; the later of equal
    ones). Only explain windows and texts of its own are used. Needs a chat model and a source that reads texts. After
    SAGE (arXiv 2511.20820), with one hypothesis and a fixed number of calls.
    """

    name = "probing"
    llm_role = "explainer"
    prompts = (PROPOSE, WRITE, REVISE)

    calls: int = Field(default=6, ge=4)
    """Calls to the language model, at most, those included that are asked again: one to propose, one to test, two for
    each revision and its test."""
    probes: int = Field(default=5, ge=1, le=20)
    """Texts of each kind in a round, at most."""
    active_at: float = Field(default=0.1, ge=0, lt=1)
    """A text counts as active where the latent exceeds this share of its maximum."""
    examples: int = Field(default=20, ge=1)
    """Activating windows to show, at most."""
    shots: int = Field(default=3, ge=0, le=3)
    """Worked examples before the first question."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at this share of their window's maximum, or more, are marked."""
    prefill: bool = False
    """Whether to begin answers for the model, as base models need it."""

    def needs(self) -> frozenset[Need]:
        """Texts are read by the source."""
        return frozenset({"text"})

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Propose, then write, read and revise."""
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
                ended = "the latent did what was expected on all texts of a round"
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
            ParseError: If a reply, asked for twice, holds none.
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
        """Return the question for a revision, with all texts so far by what was expected and what happened."""

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
    """Passes requests on, up to a number.

    Args:
        llm: The model.
        calls: The number.

    Attributes:
        left: Requests that may still be asked.
    """

    def __init__(self, llm: LanguageModel, calls: int):
        self._llm, self.left = llm, calls

    async def complete(self, request: Request) -> Reply:
        """Ask.

        Raises:
            ParseError: If all calls are used; the caller treats it as a reply that cannot be read.
        """
        if not self.left:
            raise ParseError("all calls are used")
        self.left -= 1
        return await self._llm.complete(request)

    def discard(self, request: Request) -> None:
        """Pass on."""
        self._llm.discard(request)


def parse_probes(
    reply: Reply | str, most: int, earlier: Sequence[str] = (), *, begun: bool = False
) -> list[tuple[bool, str]]:
    """Read the lines `ACTIVE: …` and `SILENT: …` of a reply.

    Repeated texts, those asked before, and texts of more than 300 characters are dropped.

    Args:
        reply: The reply; a text counts as whole.
        most: Texts of each kind to take, at most: the first ones.
        earlier: Texts that were asked before.
        begun: Whether the first marker was written for the model.

    Returns:
        Whether each text should be active, and the text.

    Raises:
        ParseError: If the reply is not whole, or has no new text of one of the kinds.
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
