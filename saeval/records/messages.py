"""Defines requests to language models and their replies."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

from saeval._util import LLMError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "refusal", "other"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class AnswerSchema:
    """A JSON schema of the whole answer, for providers that support constrained generation.

    Attributes:
        text: The schema as JSON.
    """

    text: str

    @classmethod
    def of(cls, schema: Mapping[str, object]) -> AnswerSchema:
        """Return a schema from a mapping."""
        return cls(json.dumps(schema, sort_keys=True))

    @classmethod
    def array(cls, length: int, values: Sequence[int]) -> AnswerSchema:
        """Return the schema of an array of some length whose items are among the values.

        Example:
            >>> AnswerSchema.array(2, (0, 1)).schema["items"]
            {'enum': [0, 1], 'type': 'integer'}
        """
        return _array_schema(length, tuple(values))

    @classmethod
    def one_of(cls, values: Sequence[int]) -> AnswerSchema:
        """Return the schema of one of the values."""
        return cls.of({"type": "integer", "enum": list(values)})

    @property
    def schema(self) -> dict[str, Any]:
        """The schema as a mapping."""
        found: dict[str, Any] = json.loads(self.text)
        return found


@lru_cache(maxsize=64)
def _array_schema(length: int, values: tuple[int, ...]) -> AnswerSchema:
    items = {"type": "integer", "enum": list(values)}
    return AnswerSchema.of({"type": "array", "items": items, "minItems": length, "maxItems": length})


@dataclass(frozen=True)
class Request:
    """A conversation that the model continues.

    Attributes:
        messages: The turns so far. Put text that many requests share first, so that providers can cache it. If the
            last turn is the assistant's, the model continues it.
        max_tokens: Maximum tokens to generate; None for the role's limit.
        temperature: Sampling temperature; None for the role's.
        stop: Strings that end the answer.
        top_logprobs: Number of alternatives to report per generated token; 0 for none.
        repeat: Number of this repetition. Requests that differ only in this number are asked separately.
        schema: Schema of the answer, if there is a closed set of answers. It is sent to the model only if the role
            sets `structured`.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    repeat: int = 0
    schema: AnswerSchema | None = field(default=None, repr=False)

    def content(self) -> dict[str, Any]:
        """Return the fields that answers depend on, as a mapping for JSON; without `schema` if it is None."""
        found = asdict(self)
        if self.schema is None:
            del found["schema"]
        return found

    @classmethod
    def of(cls, prompt: str, **options: object) -> Request:
        """Return a request of a single user turn.

        Example:
            >>> Request.of("Say yes.", max_tokens=3).messages
            (Message(role='user', content='Say yes.'),)
        """
        return cls((Message("user", prompt),), **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LogprobRequest:
    """A request for log-probabilities of continuations after prompts, in one forward pass if the model allows it.

    Each prompt is `prefix + prompt`. A request is always computed as a separate batch, so that its numbers do not
    depend on other requests in flight.

    Attributes:
        prompts: The part of each prompt after the prefix.
        continuations: Texts to score after every prompt.
        prefix: The part that all prompts (and, usually, many requests) share; it is computed once and cached.
    """

    prompts: tuple[str, ...]
    continuations: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens and cost of one call, or of several calls together.

    Attributes:
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens generated.
        cached_tokens: Tokens of the prompt that the provider read from its cache.
        usd: Price in dollars; None if the price is unknown, which is different from 0.
        price_source: Source of the price: the spec, the provider's price list, `local`.
        estimated: Whether tokens are estimated from the length of the text, because the server's counts are unusable.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    usd: float | None = None
    price_source: str | None = None
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        unknown = self.usd is None or other.usd is None
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            None if unknown else (self.usd or 0.0) + (other.usd or 0.0),
            self.price_source if self.price_source == other.price_source else "mixed",
            self.estimated or other.estimated,
        )


@dataclass(frozen=True)
class TokenLogprobs:
    """One generated token and the log-probabilities (nats) of its likeliest alternatives, itself included."""

    token: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    Attributes:
        text: The answer, without reasoning; never empty (an empty answer is an `LLMError`).
        usage: Tokens and cost.
        finish_reason: Why the model stopped; `other` if it was interrupted or the reason is unknown. Parsers take the
            answer from `saeval.plugin.whole_answer`, which accepts complete replies only.
        logprobs: One entry per generated token, if the request asked for them and the model returns them.
        reasoning: The model's reasoning before the answer, if it returns it.
        served: The model that answered, as the server names it; empty if unknown.
        fingerprint: The server's fingerprint of model and configuration (`system_fingerprint`); empty if unknown.
    """

    text: str
    usage: Usage = field(default_factory=Usage)
    finish_reason: FinishReason = "stop"
    logprobs: tuple[TokenLogprobs, ...] | None = None
    reasoning: str = ""
    served: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class LogprobReply:
    """Log-probabilities of continuations.

    Attributes:
        logprobs: For each prompt, for each continuation, the log-probability (nats) of every one of its
            tokens given all before.  [prompts][continuations][tokens]
        usage: Tokens and cost.
    """

    logprobs: tuple[tuple[tuple[float, ...], ...], ...]
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class FillRequest:
    """A request for log-probabilities of choices in the gaps of texts; one forward pass per text covers all its gaps.

    A text is `prefix + part + filler + part + filler …`, with one gap after each part. The model sees the filler in
    earlier gaps, so no gap depends on the choice in another. Prefix, parts and filler are tokenized separately and
    concatenated, so that the position of each gap is exact with every tokenizer.

    Attributes:
        texts: The parts of each text.  [texts][gaps]
        filler: Text of the gaps.
        choices: Texts to compare in each gap; each must be a single token of the model.
        prefix: The start that all texts share; it is computed once and cached.
    """

    texts: tuple[tuple[str, ...], ...]
    filler: str
    choices: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class FillReply:
    """Log-probabilities of choices in gaps.

    Attributes:
        logprobs: For each text, for each gap, the log-probability (nats) of each choice.  [texts][gaps][choices]
        usage: Tokens and cost.
    """

    logprobs: tuple[tuple[tuple[float, ...], ...], ...]
    usage: Usage = field(default_factory=Usage)


class LanguageModel(ABC):
    """Anything that answers requests: an LLM plugin, or the gateway around one."""

    @property
    def can_score(self) -> bool:
        """Whether `logprobs` and `fill` work."""
        return False

    @property
    def follows_schemas(self) -> bool:
        """Whether the model constrains answers to the `schema` of a request."""
        return False

    @abstractmethod
    async def complete(self, request: Request) -> Reply:
        """Return the model's reply to a conversation.

        Raises:
            LLMError: If there is no answer; a failed call never returns an empty or invented one.
        """

    def discard(self, request: Request) -> None:  # noqa: B027 - most models keep nothing
        """Mark the reply to a request as unreadable, so that no other run reuses it from the cache."""

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Return log-probabilities of continuations.

        Raises:
            LLMError: If the model does not support it, or the call failed.
        """
        raise LLMError(f"{type(self).__name__} cannot score continuations; use an hf/… model for this role")

    async def fill(self, request: FillRequest) -> FillReply:
        """Return log-probabilities of choices in the gaps of texts.

        Raises:
            LLMError: If the model does not support it, a choice is not a single token, or the call failed.
        """
        raise LLMError(f"{type(self).__name__} cannot score choices within a text; use an hf/… model for this role")
