"""Computes the price of calls; estimates token counts from the text if the server's counts are unusable."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from saeval.plugin.base import LLM
from saeval.records import FillRequest, LogprobRequest, Reply, Request, Usage

if TYPE_CHECKING:
    from saeval.llm.role import RoleSettings

_PIECES = re.compile(r"[A-Za-z]{1,4}|[^A-Za-z\s]|\n|\s(?=\d)")
_PER_MESSAGE = 4  # tokens that a chat format adds to each message


@lru_cache(maxsize=256)  # most turns are the worked examples of a prompt
def estimated_tokens(text: str) -> int:
    """Estimate the number of tokens in a text, tending to overestimate.

    Every group of up to four Latin letters counts as one token, and so does every digit, punctuation mark, line break
    and letter of another alphabet.

    Example:
        >>> estimated_tokens("An explanation: [0, 1]")
        11
    """
    return len(_PIECES.findall(text))


class Pricing:
    """Computes the price of one role's calls.

    Args:
        llm: The plugin that makes the calls.
        settings: The role's settings.
    """

    def __init__(self, llm: LLM, settings: RoleSettings):
        self._llm, self._settings = llm, settings

    @cached_property
    def _prices(self) -> tuple[tuple[float, float], str] | None:
        """Dollars per million prompt and generated tokens, and their source: the spec, else the provider."""
        spec = self._settings.usd_per_million_input, self._settings.usd_per_million_output
        if spec[0] is not None and spec[1] is not None:
            return (spec[0], spec[1]), "spec"
        listed = self._llm.prices()
        return None if listed is None else (listed, "price list")

    def most(self, request: object) -> float:
        """Return the most dollars that a call can cost by its prompt and token limit; 0 if its prices are unknown."""
        if self._prices is None:
            return 0.0
        (per_input, per_output), _ = self._prices
        generated = (request.max_tokens or 0) if isinstance(request, Request) else 0
        return (_asked(request) * per_input + generated * per_output) / 1e6

    def bill(self, usage: Usage, request: object, answer: object = None, *, cut: bool = False) -> Usage:
        """Return the usage of a call, with its price if one is known.

        Missing token counts (unusable ones were removed before) are estimated, and marked as such. Estimates tend to
        be too high, so that the spending limit holds.

        Args:
            usage: Usage as the plugin reports it.
            request: The request.
            answer: The answer; None if there was no usable one.
            cut: Whether the answer was cut off at its token limit.
        """
        if self._llm.in_process:
            return replace(usage, usd=0.0, price_source="local")
        whole = _completed(usage, request, answer, cut)
        unpriced = whole.usd is None or (whole.usd == 0 and whole.price_source == "server")
        if not unpriced or self._prices is None:
            return whole
        (per_input, per_output), source = self._prices
        usd = (whole.input_tokens * per_input + whole.output_tokens * per_output) / 1e6
        return replace(whole, usd=usd, price_source=f"{source}, estimated tokens" if whole.estimated else source)


def _completed(usage: Usage, request: object, answer: object, cut: bool) -> Usage:
    """Return the usage with missing token counts estimated."""
    prompt = usage.input_tokens or _asked(request)
    generated = usage.output_tokens
    if not generated and isinstance(request, Request):
        written = estimated_tokens(answer.text + answer.reasoning) if isinstance(answer, Reply) else 0
        room = (request.max_tokens or 0) if cut else 0
        generated = max(written, room, 1)
    if (prompt, generated) == (usage.input_tokens, usage.output_tokens):
        return usage
    return replace(usage, input_tokens=prompt, output_tokens=generated, estimated=True)


def _asked(request: Any) -> int:
    """Return a rough count of the tokens in a request."""
    if isinstance(request, Request):
        return sum(_PER_MESSAGE + estimated_tokens(message.content) for message in request.messages)
    if isinstance(request, LogprobRequest):
        ends = sum(map(estimated_tokens, request.continuations))
        starts = [estimated_tokens(request.prefix + prompt) for prompt in request.prompts]
        return sum(start * len(request.continuations) + ends for start in starts)
    if isinstance(request, FillRequest):
        return sum(estimated_tokens(request.prefix + request.filler.join((*text, ""))) for text in request.texts)
    return 0
