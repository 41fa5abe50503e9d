"""Defines requests to language models and their replies."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
    """A JSON schema that the whole answer follows, for providers that generate nothing else.

    Attributes:
        text: The schema as JSON.
    """

    text: str

    @classmethod
    def of(cls, schema: Mapping[str, object]) -> AnswerSchema:
        """Return a schema that is given as a mapping."""
        return cls(json.dumps(schema, sort_keys=True))

    @classmethod
    def array(cls, length: int, values: Sequence[int]) -> AnswerSchema:
        """Return the schema of an array of some length whose items are among the values.

        Example:
            >>> AnswerSchema.array(2, (0, 1)).schema["items"]
            {'enum': [0, 1], 'type': 'integer'}
        """
        items = {"type": "integer", "enum": list(values)}
        return cls.of({"type": "array", "items": items, "minItems": length, "maxItems": length})

    @classmethod
    def one_of(cls, values: Sequence[int]) -> AnswerSchema:
        """Return the schema of one of the values."""
        return cls.of({"type": "integer", "enum": list(values)})

    @property
    def schema(self) -> dict[str, Any]:
        """The schema as a mapping."""
        found: dict[str, Any] = json.loads(self.text)
        return found


@dataclass(frozen=True)
class Request:
    """A conversation to be continued.

    Attributes:
        messages: The turns so far. What many requests share comes first, so that providers can cache it. A last
            turn of the assistant's is the beginning of the answer, to be continued.
        max_tokens: Most tokens to generate; the role's own limit when None.
        temperature: Sampling temperature; the role's own when None.
        stop: Strings that end the answer.
        top_logprobs: How many alternatives to report at each generated token; 0 for none.
        repeat: Number of this repetition. Two requests that differ only here are both really asked.
        schema: What the answer must look like, where there is a closed set of answers. It reaches the model only if
            the role's `structured` is set.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    repeat: int = 0
    schema: AnswerSchema | None = field(default=None, repr=False)

    def content(self) -> dict[str, Any]:
        """Return the fields that answers depend on, as JSON holds them; a schema only where there is one."""
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
    """Prompts whose continuations are to be scored, all with one forward pass where the model allows it.

    Each prompt is `prefix + prompt`. A request is always computed as one batch of its own, so that its
    numbers do not depend on what else happens to be in flight.

    Attributes:
        prompts: The part of each prompt that is its own.
        continuations: Texts to score after every prompt.
        prefix: The part that all prompts (and, usually, many requests) share; it is computed once and cached.
    """

    prompts: tuple[str, ...]
    continuations: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens and money of one call, or of many summed.

    Attributes:
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens generated.
        cached_tokens: Tokens of the prompt that the provider took from its cache.
        usd: Price in dollars; None when the price is unknown, which is never the same as 0.
        price_source: Where the price came from: the spec, the provider's price list, `local`.
        estimated: Whether tokens are estimated from the length of the text, since the server's counts make no sense.
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
        usage: What it took.
        finish_reason: Why the model stopped; `other` where it was interrupted, or nobody knows. Parsers take the
            answer from `saeval.plugin.whole_answer`, which reads only replies that are whole.
        logprobs: One entry per generated token, when the request asked for them and the model gives them.
        reasoning: What the model thought before it answered, where it says so.
        served: The model that answered, as the server names it; empty where it names none.
        fingerprint: The server's own mark of model and configuration (`system_fingerprint`), likewise.
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
        usage: What it took.
    """

    logprobs: tuple[tuple[tuple[float, ...], ...], ...]
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class FillRequest:
    """Texts with gaps, in each of which a choice is to be weighed, all gaps of a text in one forward pass.

    A text is `prefix + part + filler + part + filler …`, one gap after each part. The model sees the filler in the
    gaps before, so no gap depends on what was chosen in another. Prefix, parts and filler are tokenized apart and
    joined, so that it is certain where a gap is, whatever the tokenizer.

    Attributes:
        texts: The parts of each text.  [texts][gaps]
        filler: Text of the gaps.
        choices: What may be there instead; each must be a single token of the model.
        prefix: What all texts begin with; it is computed once and cached.
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
        usage: What it took.
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
        """Whether answers are held to the `schema` of a request."""
        return False

    @abstractmethod
    async def complete(self, request: Request) -> Reply:
        """Continue a conversation.

        Raises:
            LLMError: If no answer came; never returned as an empty or invented answer.
        """

    def discard(self, request: Request) -> None:  # noqa: B027 - most models keep nothing
        """Say that the reply to a request holds no answer, so that no other run takes it from a cache."""

    async def logprobs(self, request: LogprobRequest) -> LogprobReply:
        """Score continuations.

        Raises:
            LLMError: If this model cannot, or the call failed.
        """
        raise LLMError(f"{type(self).__name__} cannot score continuations; use an hf/… model for this role")

    async def fill(self, request: FillRequest) -> FillReply:
        """Weigh choices in the gaps of texts.

        Raises:
            LLMError: If this model cannot, a choice is not a single token, or the call failed.
        """
        raise LLMError(f"{type(self).__name__} cannot weigh choices within a text; use an hf/… model for this role")
