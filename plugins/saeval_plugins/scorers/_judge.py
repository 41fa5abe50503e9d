"""What detection and fuzzing share: asking a judge, window by window, whether an explanation holds."""

from __future__ import annotations

import asyncio
import math
import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from saeval import (
    Context,
    Example,
    Examples,
    Explanation,
    LLMError,
    LogprobRequest,
    Need,
    Outcome,
    ParseError,
    Prompt,
    Refused,
    Reply,
    Request,
    Score,
    Scorer,
)
from saeval_plugins.prompts import load, one_line, without_thinking

REFERENCES = load("reference_windows.txt")
"""Ordinary passages, a few words marked, one a line: what an explanation is compared on when there is no question."""


@dataclass(frozen=True, eq=False)
class Question:
    """One window as the judge sees it, and the right answer."""

    example: Example
    shown: str
    truth: bool

    def outcome(self, predicted: bool, probability: float | None) -> Outcome:
        """Record the judge's answer."""
        return Outcome(
            example=self.example.id,
            active=self.truth,
            decile=self.example.decile,
            predicted=predicted,
            probability=probability,
        )

    def unanswered(self, error: ParseError | LLMError) -> Outcome:
        """Record why there is no answer."""
        status: Literal["unparsed", "refused", "failed"] = (
            "unparsed" if isinstance(error, ParseError) else "refused" if isinstance(error, Refused) else "failed"
        )
        return Outcome(
            example=self.example.id, active=self.truth, decile=self.example.decile, status=status, reason=str(error)
        )


class Judge(Scorer):
    """Asks a judge about every window, in one of two ways.

    `list` (any chat model): `batch` shuffled windows a prompt, answered by a JSON list of 0 and 1 (paper §3.3). A
    reply that cannot be read is asked for once more, and then counts as unparsed. With `top_logprobs`, and a
    provider that gives them, each answer has a probability, p(1) / (p(0) + p(1)), and the score an AUROC.

    `probability` (models that score continuations, also base models, which cannot be asked): the log-probability
    that the explanation follows on the window as its description, log p(z|x), against log p(z), its mean probability
    over ordinary passages that are always the same. A window counts as a hit when the explanation is likelier after
    it than after those; the probability given is p(z|x) / (p(z|x) + p(z)). Nothing about the share of activating
    windows is used. Small base models judge far better so than by the odds of "Yes" against "No", which depend on
    the window's style more than on the explanation.
    """

    llm_role = "judge"
    list_prompt: ClassVar[Prompt]
    """Conversation with the slots `explanation`, `windows` and `k`."""
    probability_prompt: ClassVar[Prompt]
    """Text whose last paragraph, with the slots `window` and `marked`, is what the explanation goes on from."""

    batch: int = Field(default=5, ge=1, le=50)
    """Windows in one prompt of `list` mode."""
    mode: Literal["auto", "list", "probability"] = "auto"
    """How to ask; `auto` is `probability` where the model scores continuations, else `list`."""
    top_logprobs: int = Field(default=0, ge=0, le=20)
    """Alternatives to ask for at each token of a list, where the provider gives them; 0 for none."""

    def needs(self) -> frozenset[Need]:
        """Probabilities need a model that scores continuations."""
        return frozenset({"logprobs"}) if self.mode == "probability" else frozenset()

    @abstractmethod
    def questions(self, examples: Examples, context: Context) -> list[Question]:
        """Return every window as it is shown."""

    def references(self) -> list[str]:
        """Return ordinary passages, shown as this scorer shows windows."""
        return REFERENCES.text.splitlines()

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Judge all windows."""
        questions = self.questions(examples, context)
        scoring = self.mode == "probability" or (self.mode == "auto" and context.llm.can_score)
        ask = self._by_probability if scoring else self._by_list
        outcomes = await ask(one_line(explanation.text), questions, context)
        return Score.of(outcomes, mode="probability" if scoring else "list")

    async def _by_list(self, explanation: str, questions: list[Question], context: Context) -> list[Outcome]:
        order = [int(i) for i in context.rng.permutation(len(questions))]
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        judged = await asyncio.gather(
            *(self._judge_batch(explanation, [questions[i] for i in batch], context) for batch in batches)
        )
        found = dict(zip(order, (outcome for batch in judged for outcome in batch), strict=True))
        return [found[i] for i in range(len(questions))]

    async def _judge_batch(self, explanation: str, questions: list[Question], context: Context) -> list[Outcome]:
        windows = "\n".join(f"Window {number}: {question.shown}" for number, question in enumerate(questions, 1))
        k = len(questions)
        messages = self.list_prompt.messages(explanation=explanation, windows=windows, k=str(k))
        request = Request(messages, top_logprobs=self.top_logprobs)
        for repeat in (0, 1):
            try:
                reply = await context.llm.complete(replace(request, repeat=repeat))
                answers = parse_list(reply.text, k)
            except ParseError as error:
                problem: ParseError | LLMError = error
            except LLMError as error:
                problem = error
                break
            else:
                probabilities = answer_probabilities(reply, answers)
                return [q.outcome(a.value, p) for q, a, p in zip(questions, answers, probabilities, strict=True)]
        return [question.unanswered(problem) for question in questions]

    async def _by_probability(self, explanation: str, questions: list[Question], context: Context) -> list[Outcome]:
        examples, _, paragraph = self.probability_prompt.text.rstrip("\n").rpartition("\n\n")
        prompt = Prompt(self.probability_prompt.name, paragraph)
        windows = [question.shown for question in questions] + self.references()
        request = LogprobRequest(
            prefix=examples + "\n\n",
            prompts=tuple(prompt.fill(window=window, marked=_marked(window)) for window in windows),
            continuations=(f" {explanation}",),
        )
        try:
            reply = await context.llm.logprobs(request)
        except LLMError as error:
            return [question.unanswered(error) for question in questions]
        values = [sum(logprobs) for (logprobs,) in reply.logprobs]
        given, ordinary = values[: len(questions)], values[len(questions) :]
        highest = max(ordinary)
        prior = highest + math.log(sum(math.exp(value - highest) for value in ordinary) / len(ordinary))
        return [
            question.outcome(value > prior, 1 / (1 + math.exp(min(prior - value, 700.0))))
            if math.isfinite(value - prior)
            else question.unanswered(ParseError("the judge gave the explanation no probability"))
            for question, value in zip(questions, given, strict=True)
        ]


def _marked(window: str) -> str:
    return ", ".join(piece.strip() for piece in re.findall("<<(.*?)>>", window))


class Answer(NamedTuple):
    """One item of a judge's list, and where in the reply it stands."""

    value: bool
    at: int


_LIST = re.compile(r"\[([^\[\]]*)\]")
_ITEM = re.compile(r"""\s*(["']?)(0|1|true|false)\1\s*""", re.IGNORECASE)
_VALUE = re.compile(r"""\s*["']?(-?\d+(\.\d*)?|true|false)["']?\s*""", re.IGNORECASE)


def parse_list(reply: str, k: int) -> list[Answer]:
    """Read a judge's list of k answers: 0/1 or true/false, bare or quoted, on one line or several.

    Prose, fences, reasoning and brackets of other content around it are passed over, as is a single number in
    brackets (`[3]`, a reference) unless one answer is asked for. When in doubt, there is no answer.

    Raises:
        ParseError: If there is no list, or one of another length or with other values, or lists that differ.
    """
    text = without_thinking(reply)
    bodies = [(m[1], m.start(1)) for m in _LIST.finditer(text)] or [(text, 0)]
    lists: list[list[Answer]] = []
    for body, start in bodies:
        pieces = _pieces(body)
        if len(pieces) == 1 < k or not all(_VALUE.fullmatch(piece) for piece in pieces):
            continue
        answers, at = [], start
        for piece in pieces:
            match = _ITEM.fullmatch(piece)
            if match is None:
                raise ParseError(f"the list [{one_line(body)[:60]}] holds other values than 0 and 1")
            answers.append(Answer(match[2].lower() in {"1", "true"}, at + match.start(2)))
            at += len(piece) + 1
        lists.append(answers)
    if not lists:
        raise ParseError(f"no list of {k} answers in the reply")
    if wrong := [len(answers) for answers in lists if len(answers) != k]:
        raise ParseError(f"a list of {wrong[0]} answers for {k} windows")
    if any([a.value for a in answers] != [a.value for a in lists[0]] for answers in lists):
        raise ParseError("several lists that differ")
    return lists[0]


def _pieces(body: str) -> list[str]:
    pieces = body.split(",")
    return pieces[:-1] if len(pieces) > 1 and not pieces[-1].strip() else pieces  # a trailing comma


def answer_probabilities(reply: Reply, answers: Sequence[Answer]) -> list[float | None]:
    """Return p(1) / (p(0) + p(1)) at each answer's token; None where the reply's log-probabilities do not tell."""
    if not reply.logprobs:
        return [None] * len(answers)
    tokens = [entry.token for entry in reply.logprobs]
    starts = list(accumulate(map(len, tokens), initial=0))
    shift = "".join(tokens).find(reply.text)
    found: list[float | None] = []
    for answer in answers:
        index = bisect_right(starts, answer.at + shift) - 1
        token, within = tokens[index], answer.at + shift - starts[index]
        if shift < 0 or token[within] not in "01":
            found.append(None)
            continue
        top = reply.logprobs[index].top
        zero, one = (_mass(top, token[:within] + digit + token[within + 1 :]) for digit in "01")
        found.append(one / (zero + one) if zero + one > 0 else None)
    return found


def _mass(alternatives: Iterable[tuple[str, float]], token: str) -> float:
    """Return the probability of a token, whatever space stands around it."""
    return sum(math.exp(logprob) for text, logprob in alternatives if text.strip() == token.strip())
