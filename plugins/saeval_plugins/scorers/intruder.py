"""Intruder measures whether a judge finds the window that does not belong, without explanation (arXiv 2507.08473)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress, islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from saeval.plugin import (
    AnswerSchema,
    Context,
    Example,
    Examples,
    Explanation,
    LanguageModel,
    LLMError,
    Metric,
    Outcome,
    ParseError,
    Question,
    Reply,
    Request,
    Score,
    Scorer,
    ask_twice,
    failed,
    marked_line,
    shortened,
    whole_answer,
)
from saeval_plugins.prompts import load
from saeval_plugins.scorers._patterns import lent

if TYPE_CHECKING:
    import numpy as np

PROMPT = load("intruder.md")
FAR = 4
"""Deciles that must lie between an `internal` intruder and every other window of its question."""


Marked = tuple[Example, list[bool]]
"""A window, and which of its tokens are marked."""


class Lineup(NamedTuple):
    """One question: windows on numbered lines, and the intruder's position among them, from 0."""

    question: Question
    place: int


class Intruder(Scorer):
    """Asks which of several marked windows does not belong to the others.

    The explanation is not shown: the score measures how similar a latent's windows are. Each window appears at most
    once as an intruder and at most once among the others. The others in a question come from one rank decile, or from
    the nearest ones if it has too few windows; the outcome is listed under that decile.

    `default`: the intruder is a window in which the latent is silent. Its marks are copied from another activating
    window of the same decile that begins at the same place relative to tiles, if possible, so that their number, length
    and position do not reveal it. `internal`: the intruder is an activating window from a distant decile; judges find
    it if strong and weak activations have different meanings. In each window of such a question, equally many tokens
    are marked, the strongest ones; a character of several tokens counts once.
    """

    name = "intruder"
    llm_role = "judge"
    reads_explanation = False
    prompts = (PROMPT,)

    mode: Literal["default", "internal"] = "default"
    """Where intruders come from: windows in which the latent is silent, or activating windows of a distant decile."""
    windows: int = Field(default=5, ge=3, le=20)
    """Windows per question, including the intruder."""
    questions: int = Field(default=20, ge=1)
    """Maximum questions per latent; fewer if it has too few windows."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at or above this share of their window's maximum are marked."""

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The share of intruders found."""
        return (Metric("accuracy", chance=1 / self.windows),)

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Ask all questions."""
        lineups = self.lineups(examples, context.rng)
        if not lineups:
            return Score.skipped(f"too few windows, or no distant deciles, for a question with {self.windows} windows")
        outcomes = tuple(await asyncio.gather(*(self._outcome(lineup, context.llm) for lineup in lineups)))
        found = [outcome.predicted for outcome in outcomes if outcome.status == "ok"]
        if not found:
            return failed(outcomes, "no question answered")
        return Score(values={"accuracy": sum(map(bool, found)) / len(found)}, outcomes=outcomes)

    def lineups(self, examples: Examples, rng: np.random.Generator) -> list[Lineup]:
        """Draw the questions; positions of the intruder are balanced, as far as the number of questions allows.

        Which positions are used once more than others is drawn for the latent, so no position is better to name.
        """
        drawn = list((self._silent if self.mode == "default" else self._internal)(examples, rng))
        questions, positions = rng.permutation(len(drawn)), rng.permutation(self.windows)
        places = [int(positions[i % self.windows]) for i in questions]
        return [self._lineup(*parts, place) for parts, place in zip(drawn, places, strict=True)]

    def _silent(self, examples: Examples, rng: np.random.Generator) -> Iterator[tuple[Sequence[Marked], Marked]]:
        """Yield the others, and a non-activating intruder with marks copied from one window of the group."""
        intruders = [examples.non_activating[i] for i in rng.permutation(len(examples.non_activating))]
        groups = self._groups(examples, self.windows, len(intruders), rng)
        for i, j in lent([lender for lender, *_ in groups], intruders):
            lender, *others = groups[i]
            marked = [(other, other.firing(self.threshold)) for other in others]
            yield marked, (intruders[j], lender.firing(self.threshold))

    def _internal(self, examples: Examples, rng: np.random.Generator) -> Iterator[tuple[Sequence[Marked], Marked]]:
        """Yield the others and an intruder from a distant decile; skip groups without one.

        Equally many tokens are marked in each window of a question. Otherwise the number of marks would reveal the
        intruder: where many tokens of a window fire, fewer reach the threshold if the maximum is strong.
        """
        free = [examples.activating[i] for i in rng.permutation(len(examples.activating))]
        for others in self._groups(examples, self.windows - 1, len(free), rng):
            intruder = next((window for window in free if all(_far(window, other) for other in others)), None)
            if intruder is not None:
                free.remove(intruder)
                marks = min(self._shown_marks(window) for window in (*others, intruder))
                *marked, last = [(window, _strongest(window, marks)) for window in (*others, intruder)]
                yield marked, last

    def _shown_marks(self, window: Example) -> int:
        """Return how many tokens are shown with a mark; a character of several tokens counts once."""
        return len(set(compress(window.shown_at(), window.firing(self.threshold))))

    def _groups(self, examples: Examples, size: int, most: int, rng: np.random.Generator) -> list[list[Example]]:
        """Return groups of windows of similar deciles, spread evenly, each shuffled."""
        shuffled = [examples.activating[i] for i in rng.permutation(len(examples.activating))]
        ranked = sorted(shuffled, key=lambda window: window.decile or 0)
        n = min(self.questions, len(ranked) // self.windows, most)
        starts = [i * (len(ranked) - size) // max(n - 1, 1) for i in range(n)]
        return [[ranked[start + i] for i in rng.permutation(size)] for start in starts]

    def _lineup(self, others: Sequence[Marked], intruder: Marked, place: int) -> Lineup:
        lines = [marked_line(window, marks) for window, marks in others]
        lines.insert(place, marked_line(*intruder))
        shown = "\n".join(f"Window {number}: {line}" for number, line in enumerate(lines, 1))
        deciles = sorted(window.decile for window, _ in others if window.decile is not None)
        decile = deciles[len(deciles) // 2] if deciles else None
        return Lineup(Question(replace(intruder[0], decile=decile), shown, truth=True), place)

    async def _outcome(self, lineup: Lineup, llm: LanguageModel) -> Outcome:
        question, place = lineup
        choices = AnswerSchema.one_of(range(1, self.windows + 1))
        request = Request(PROMPT.messages(windows=question.shown, k=str(self.windows)), schema=choices)
        try:
            choice = await ask_twice(llm, request, lambda reply: parse_choice(reply, self.windows))
        except (ParseError, LLMError) as error:
            return question.unanswered(error)
        return question.outcome(choice == place + 1, None)


def _strongest(window: Example, n: int) -> list[bool]:
    """Return for each token whether it is one of the n strongest; a character of several tokens counts once."""
    places = window.shown_at()
    by_strength = (-window.activations).argsort(kind="stable")
    strongest = {*islice(dict.fromkeys(places[i] for i in by_strength), n)}
    return [at in strongest for at in places]


def _far(window: Example, other: Example) -> bool:
    return window.decile is not None and other.decile is not None and abs(window.decile - other.decile) >= FAR


_DECORATION = re.compile(r"[*_`\"']")
_NUMBER = r"(?:window\s+|number\s+)?(?:\[\s*{0}\s*\]|\(\s*{0}\s*\)|{0})\s*\.?".format(r"([0-9]{1,3})")
_LEAD = r"(?:(?:so|thus|therefore|hence|finally),?\s+)?(?:(?:the|my|final)\s+)*(?:answer|intruder)(?:\s+is)?\s*:?\s*"
_BARE = re.compile(_NUMBER, re.IGNORECASE)
_NAMED = re.compile(_LEAD + _NUMBER, re.IGNORECASE)


def parse_choice(reply: Reply | str, k: int) -> int:
    """Parse the final answer of a reply, a number from 1 to k.

    It is at the end of the reply: a number on its own line (`3`, `Window 3`, `[3]`, `**3**`), or a last
    sentence that states the answer (`The intruder is window 3.`). A number on the first line counts if no other
    number follows. Numbers within prose do not count, and a reply with several different answers is an error.

    Raises:
        ParseError: If the reply is incomplete, or has no such number, one outside 1 to k, or several that differ.
    """
    answer = whole_answer(reply)
    text = _DECORATION.sub(" ", answer)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    given = [_read(line, _BARE, _NAMED) for line in lines]
    choice = given[-1] or _read(re.split(r"(?<=[.!?])\s+", lines[-1])[-1], _NAMED)
    if choice is None and set(re.findall(r"[0-9]+", text)) == {given[0]} and not re.fullmatch(r"[0-9]+\s*\.", lines[0]):
        choice = given[0]
    if choice is None:
        raise ParseError(f"no answer in the reply {shortened(answer)!r}")
    if set(given) - {None, choice}:
        raise ParseError(f"several answers in the reply {shortened(answer)!r}")
    if not 1 <= int(choice) <= k:
        raise ParseError(f"the answer {choice} is not one of the {k} windows")
    return int(choice)


def _read(line: str, *patterns: re.Pattern[str]) -> str | None:
    """Return the number on a line that consists of an answer only."""
    matches = (pattern.fullmatch(line) for pattern in patterns)
    return next((match[match.lastindex or 0] for match in matches if match), None)
