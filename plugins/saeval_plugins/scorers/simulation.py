"""Simulation measures how well a model predicts activations from the explanation (paper §3.3)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, JsonValue

from saeval.plugin import (
    PEARSON,
    AnswerSchema,
    Context,
    Example,
    Examples,
    Explanation,
    FillRequest,
    LanguageModel,
    LLMError,
    Need,
    ParseError,
    Request,
    Score,
    Scorer,
    ask_twice,
    escaped,
    failed,
    one_line,
    pearson,
    unanswered,
    valued,
)
from saeval_plugins.prompts import load
from saeval_plugins.scorers._number import strength

ALL_AT_ONCE = load("simulation_all_at_once.md")
TOKEN_BY_TOKEN = load("simulation_token_by_token.md")
UNKNOWN = " unknown"  # with a leading space, so that no tokenizer merges it with the preceding tab
LEVELS = tuple("0123456789")

_NOTED = 1000  # maximum predicted strengths kept in the notes

Simulated = list[float] | ParseError | LLMError
"""Predicted strengths of a window's tokens, as shares of the latent's maximum, or the error."""


class Simulation(Scorer):
    """Correlates predicted with true strengths (Pearson's r) over all tokens of activating and non-activating windows.

    `all_at_once` (models that return log-probabilities of choices in a text, including base models): the window's
    tokens are listed one per line, each followed by a tab and `unknown`. At each `unknown`, the prediction is the
    expected value of the digits 0 to 9 under the model's probabilities, so a window takes one forward pass (Bills et
    al. 2023). The levels end at 9 because every tokenizer has single-token digits, while most have no token for 10.

    `token_by_token` (any chat model, at about thirty times the cost of detection): for each token, the simulator sees
    the window up to it and answers with a number from 0 to 10. With `top_logprobs`, if the provider returns them, the
    prediction is the expected value over numbers. An unreadable reply is requested once more. A window with an
    unanswered token is dropped and counted.

    In the prompts' examples and in the truth, a strength is a share of the latent's maximum, 0 for silent tokens. A
    character of several tokens counts as one token, with the strongest of their activations. The truth is not rounded;
    r does not depend on the scale. If the simulator predicts the same strength everywhere, r is 0
    and the notes contain `constant`; if the truth is constant, there is no score. A window's value is its strongest
    prediction.
    """

    name = "simulation"
    llm_role = "judge"
    metrics = (PEARSON,)
    prompts = (ALL_AT_ONCE, TOKEN_BY_TOKEN)

    mode: Literal["auto", "all_at_once", "token_by_token"] = "auto"
    """Mode; `auto` is `all_at_once` if the model scores continuations, otherwise `token_by_token`."""
    windows: int | None = Field(default=10, ge=1)
    """Windows per side to simulate, spread evenly over those available; null for all."""
    top_logprobs: int = Field(default=0, ge=0, le=20)
    """Alternatives to request per token of a reply in `token_by_token`, if the provider returns them; 0 for none."""

    def needs(self) -> frozenset[Need]:
        """Return the need for log-probabilities in the mode `all_at_once`."""
        return frozenset({"logprobs"}) if self.mode == "all_at_once" else frozenset()

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Simulate and correlate."""
        spread = _spread(examples.activating, self.windows) + _spread(examples.non_activating, self.windows)
        windows = [_by_character(window) for window in spread]
        at_once = self.mode == "all_at_once" or (self.mode == "auto" and context.llm.can_score)
        simulate = self._all_at_once if at_once else self._token_by_token
        simulated = await simulate(one_line(explanation.text), windows, context.llm)
        return _score(examples, windows, simulated, "all_at_once" if at_once else "token_by_token")

    async def _all_at_once(self, explanation: str, windows: Sequence[Example], llm: LanguageModel) -> list[Simulated]:
        request = FillRequest(
            prefix=ALL_AT_ONCE.fill(explanation=explanation),
            texts=tuple(_parts(window) for window in windows),
            filler=UNKNOWN,
            choices=LEVELS,
        )
        try:
            reply = await llm.fill(request)
        except LLMError as error:
            return [error for _ in windows]
        return [_expected(gaps) for gaps in reply.logprobs]

    async def _token_by_token(
        self, explanation: str, windows: Sequence[Example], llm: LanguageModel
    ) -> list[Simulated]:
        async def window_of(window: Example) -> Simulated:
            answers = await asyncio.gather(
                *(self._ask(explanation, window, at, llm) for at in range(len(window.tokens)))
            )
            problem = next((answer for answer in answers if not isinstance(answer, float)), None)
            return problem or [answer for answer in answers if isinstance(answer, float)]

        return await asyncio.gather(*map(window_of, windows))

    async def _ask(
        self, explanation: str, window: Example, at: int, llm: LanguageModel
    ) -> float | ParseError | LLMError:
        """Ask for the strength of one token."""
        text, token = one_line("".join(window.tokens[: at + 1])), escaped(window.tokens[at])
        messages = TOKEN_BY_TOKEN.messages(explanation=explanation, text=text, token=token)
        request = Request(messages, top_logprobs=self.top_logprobs, schema=AnswerSchema.one_of(range(11)))
        try:
            return await ask_twice(llm, request, lambda reply: strength(reply) / 10)
        except (ParseError, LLMError) as error:
            return error


def _spread(windows: Sequence[Example], most: int | None) -> list[Example]:
    """Return at most this many windows, spread evenly, because samplers may sort windows by strength."""
    n = len(windows) if most is None else min(most, len(windows))
    return [windows[i * len(windows) // n] for i in range(n)]


def _by_character(window: Example) -> Example:
    """Return the window without tokens that only continue a character, whose activations count for the character."""
    places = window.shown_at()
    shown = sorted(set(places))
    if len(shown) == len(places):
        return window
    strongest = np.zeros_like(window.activations)
    np.maximum.at(strongest, places, window.activations)
    tokens = tuple(window.tokens[i] for i in shown)
    return replace(window, tokens=tokens, token_ids=window.token_ids[shown], activations=strongest[shown])


def _parts(window: Example) -> tuple[str, ...]:
    """Return the text before each gap: a token (escaped, so that it cannot imitate the prompt's format) and a tab."""
    return tuple("\n" * (at > 0) + escaped(token) + "\t" for at, token in enumerate(window.tokens))


def _expected(gaps: Sequence[Sequence[float]]) -> Simulated:
    """Return the expected level in each gap, as a share of the highest."""
    expected = []
    for logprobs in gaps:
        highest = max(logprobs)
        if not math.isfinite(highest):
            return ParseError("the simulator assigns no probability to any level")
        weights = [math.exp(value - highest) for value in logprobs]
        mean = sum(level * weight for level, weight in enumerate(weights)) / sum(weights)
        expected.append(mean / (len(weights) - 1))
    return expected


def _score(examples: Examples, windows: Sequence[Example], simulated: Sequence[Simulated], mode: str) -> Score:
    truth: list[float] = []
    predicted: list[float] = []
    noted: dict[str, JsonValue] = {}
    outcomes = []
    for window, values in zip(windows, simulated, strict=True):
        if isinstance(values, list):
            truth += np.clip(window.activations / examples.max_activation, 0, 1).tolist()
            predicted += values
            noted[window.id] = [round(value, 3) for value in values]
            outcomes.append(valued(window, max(values)))
        else:
            outcomes.append(unanswered(window, values))
    notes: dict[str, JsonValue] = {"mode": mode, "windows": len(noted), "tokens": len(predicted)}
    if len(set(truth)) < 2:
        return failed(outcomes, "the latent's activation is the same on all tokens, so r is undefined", **notes)
    if len(predicted) <= _NOTED:
        notes["predicted"] = noted
    constant = len(set(predicted)) == 1
    if constant:
        notes["constant"] = "the simulator predicted the same strength for every token"
    r = 0.0 if constant else max(-1.0, min(1.0, pearson(truth, predicted)))
    return Score(values={"pearson": r}, outcomes=tuple(outcomes), notes=notes)
