"""A language model's role in a spec, and its settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from saeval._util import Documented
from saeval.plugin.base import LLM


def _auto_or_count(value: Any) -> Any:
    if value != "auto" and not (str(value).isdecimal() and int(value) >= 1):
        raise ValueError("should be `auto` or a whole number of at least 1")
    return value


Concurrency = Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(_auto_or_count)]
"""Number of things in flight at once."""


class RoleSettings(Documented):
    """Settings that every role accepts besides its `model`."""

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature, unless a step asks for another."""
    max_tokens: int = Field(default=256, ge=1)
    """Maximum tokens per answer, unless a step sets a lower limit."""
    max_tokens_if_cut: int = Field(default=4096, ge=1)
    """Maximum tokens when asking again after an answer was cut off at `max_tokens`, to leave room for reasoning. Has no
    effect if it is not larger than `max_tokens`, or for models in process."""
    timeout: float = Field(default=120.0, gt=0)
    """Timeout per attempt in seconds, not counting time in a server's queue; models in process have no timeout."""
    retries: int = Field(default=5, ge=0)
    """Maximum retries after temporary failures; a busy server that answers with a retry delay is retried for
    `run.patience`."""
    concurrency: Concurrency = "auto"
    """Concurrent calls; `auto` starts at 8 and adapts to the server."""
    structured: bool = False
    """Whether the server constrains answers of a closed set (lists of 0 and 1, a number) to a JSON schema, so that each
    can be parsed. Results are cached separately from those without it."""
    cache: bool = True
    """Whether cached answers are reused."""
    usd_per_million_input: float | None = Field(default=None, ge=0)
    """Price per million prompt tokens in dollars, if the provider's price is unknown."""
    usd_per_million_output: float | None = Field(default=None, ge=0)
    """Price per million generated tokens in dollars."""


class Asker(NamedTuple):
    """A role with its language model.

    Attributes:
        role: Role of the spec.
        llm: The plugin that makes the calls.
        model: The model as the spec names it.
        settings: The role's settings.
    """

    role: str
    llm: LLM
    model: str
    settings: RoleSettings
