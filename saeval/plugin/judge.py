"""Shared by detection and fuzzing: asks a judge whether an explanation holds in each window."""

from __future__ import annotations

import asyncio
import math
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from saeval import LLMError
from saeval._util import ParseError
from saeval.plugin.answers import answer_probabilities, ask_twice, parse_list
from saeval.plugin.base import Context, Need, Scorer
from saeval.plugin.outcomes import unanswered
from saeval.plugin.prompt_text import few_shot, one_line
from saeval.records import (
    AnswerSchema,
    Example,
    Examples,
    Explanation,
    LogprobRequest,
    Outcome,
    Prompt,
    Reply,
    Request,
    Score,
)

REFERENCES = Prompt.load("saeval.plugin", "reference_windows.txt")
"""Ordinary passages with a few marked words, one per line: the reference for an explanation without a question."""


@dataclass(frozen=True, eq=False)
class Question:
    """One window as the judge sees it, and the right answer.

    Attributes:
        example: The window.
        shown: Its text, marked where the scorer marks tokens.
        truth: The right answer.
        alone: Whether it needs a prompt of its own, since other windows would give it away.
    """

    example: Example
    shown: str
    truth: bool
    alone: bool = False

    def outcome(self, predicted: bool, probability: float | None) -> Outcome:
        """Record the judge's answer."""
        return Outcome(
            example=self.example.id,
            active=self.truth,
            decile=self.example.decile,
            predicted=predicted,
            probability=probability,
            weight=self.example.weight,
        )

    def unanswered(self, error: ParseError | LLMError) -> Outcome:
        """Record why there is no answer."""
        return unanswered(self.example, error).model_copy(update={"active": self.truth})


class Judge(Scorer):
    """Asks a judge about every window, in one of two ways.

    `list` (any chat model): `batch` shuffled windows per prompt, answered by a JSON list of 0 and 1 (paper §3.3). A
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
    """Text whose last paragraph, with the slots `window` and `marked`, precedes the explanation."""

    batch: int = Field(default=5, ge=1, le=50)
    """Windows per prompt in `list` mode."""
    mode: Literal["auto", "list", "probability"] = "auto"
    """How to ask; `auto` is `probability` if the model scores continuations, else `list`."""
    top_logprobs: int = Field(default=0, ge=0, le=20)
    """Alternatives to request per token of a list, if the provider returns them; 0 for none."""

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
        """Judge all windows, in an order drawn for the latent."""
        questions = self.questions(examples, context)
        order = [int(i) for i in context.rng.permutation(len(questions))]
        judged = await self.judge(explanation, [questions[i] for i in order], context)
        found = dict(zip(order, judged, strict=True))
        outcomes = [found[i] for i in range(len(questions))]
        return Score.of(outcomes, mode="probability" if self._scoring(context) else "list")

    def _scoring(self, context: Context) -> bool:
        return self.mode == "probability" or (self.mode == "auto" and context.llm.can_score)

    def windows_per_prompt(self, questions: list[Question], context: Context) -> int:
        """Return the number of windows that a prompt lists: `batch`, or 1 where each window is asked about alone."""
        alone = self._scoring(context) or any(question.alone for question in questions)
        return 1 if alone else self.batch

    async def judge(self, explanation: Explanation, questions: list[Question], context: Context) -> list[Outcome]:
        """Put questions in the order given, `batch` at a time where they are listed."""
        text = one_line(explanation.text)
        if self._scoring(context):
            return await self._by_probability(text, questions, context)
        size = self.windows_per_prompt(questions, context)
        batches = [questions[i : i + size] for i in range(0, len(questions), size)]
        judged = await asyncio.gather(*(self._judge_batch(text, batch, context) for batch in batches))
        return [outcome for batch in judged for outcome in batch]

    async def _judge_batch(self, explanation: str, questions: list[Question], context: Context) -> list[Outcome]:
        windows = "\n".join(f"Window {number}: {question.shown}" for number, question in enumerate(questions, 1))
        k = len(questions)
        messages = self.list_prompt.messages(explanation=explanation, windows=windows, k=str(k))
        request = Request(messages, top_logprobs=self.top_logprobs, schema=AnswerSchema.array(k, (0, 1)))

        def read(reply: Reply) -> list[Outcome]:
            answers = parse_list(reply, k)
            found = zip(questions, answers, answer_probabilities(reply, answers), strict=True)
            return [question.outcome(answer.value, probability) for question, answer, probability in found]

        try:
            return await ask_twice(context.llm, request, read)
        except (ParseError, LLMError) as error:
            return [question.unanswered(error) for question in questions]

    async def _by_probability(self, explanation: str, questions: list[Question], context: Context) -> list[Outcome]:
        shots, prompt = few_shot(self.probability_prompt)
        # Two requests: the ordinary passages are the same for every latent, and models in process keep them.
        requests = []
        for windows in ([question.shown for question in questions], self.references()):
            prompts = tuple(prompt.fill(window=window, marked=_marked(window)) for window in windows)
            requests.append(LogprobRequest(prefix=shots, prompts=prompts, continuations=(f" {explanation}",)))
        try:
            replies = await asyncio.gather(*map(context.llm.logprobs, requests))
        except LLMError as error:
            return [question.unanswered(error) for question in questions]
        given, ordinary = ([sum(logprobs) for (logprobs,) in reply.logprobs] for reply in replies)
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
