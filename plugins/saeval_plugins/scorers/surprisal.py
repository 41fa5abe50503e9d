"""Surprisal measures whether the explanation makes activating windows likelier under a base model (paper §3.3)."""

from __future__ import annotations

import asyncio
import math

from pydantic import Field

from saeval.plugin import (
    AUROC,
    Context,
    Examples,
    Explanation,
    LLMError,
    LogprobRequest,
    Need,
    ParseError,
    Score,
    Scorer,
    auroc,
    failed,
    few_shot,
    one_line,
    unanswered,
    valued,
)
from saeval_plugins.prompts import load

PROMPT = load("surprisal.md")


class Surprisal(Scorer):
    """Ranks the windows by how much the explanation increases their log-probability: log p(x|z) - log p(x|z̄), in nats.

    The prompt lists window x among passages described by z, the explanation, or by z̄, a description that fits any
    text. The log-probability of x is the sum over all its tokens, including the first.
    """

    name = "surprisal"
    llm_role = "base"
    metrics = (AUROC,)
    prompts = (PROMPT,)

    generic: str = Field(default="nothing in particular; text of every kind", min_length=1)
    """The generic description that the explanation is compared with."""

    def needs(self) -> frozenset[Need]:
        """Return the need for a model that scores continuations."""
        return frozenset({"logprobs"})

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Compute each window's difference of log-probabilities, and how well it separates activating windows."""
        windows = (*examples.activating, *examples.non_activating)
        if not examples.activating or not examples.non_activating:
            return Score.failed("there are no activating or no non-activating windows")
        # The request for the generic description is the same for all explanations of a latent, so it is cached.
        texts = tuple(f" {one_line(window.text)}" for window in windows)
        requests = [_request(description, texts) for description in (explanation.text, self.generic)]
        try:
            replies = await asyncio.gather(*map(context.llm.logprobs, requests))
        except LLMError as error:
            return failed([unanswered(window, error) for window in windows], "")
        given, generic = ([sum(tokens) for tokens in reply.logprobs[0]] for reply in replies)
        values = [a - b for a, b in zip(given, generic, strict=True)]
        outcomes = [
            valued(window, value)
            if math.isfinite(value)
            else unanswered(window, ParseError("the model assigns no probability to the window"))
            for window, value in zip(windows, values, strict=True)
        ]
        known = [(window.active, value) for window, value in zip(windows, values, strict=True) if math.isfinite(value)]
        area = auroc([active for active, _ in known], [value for _, value in known])
        if math.isnan(area):  # one side has no values
            return failed(outcomes, "")
        return Score(values={"auroc": area}, outcomes=tuple(outcomes))


def _request(description: str, windows: tuple[str, ...]) -> LogprobRequest:
    """Return a request for the windows' log-probabilities, given a description of what they have in common."""
    shots, prompt = few_shot(PROMPT)
    return LogprobRequest(
        prefix=shots, prompts=(prompt.fill(explanation=one_line(description)),), continuations=windows
    )
