"""What a spec sets for the role of a language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from saeval._util import Documented


class RoleSettings(Documented):
    """What any role may set beside its `model`."""

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature, unless a step asks for another."""
    max_tokens: int = Field(default=256, ge=1)
    """Maximum tokens of an answer, unless a step asks for less."""
    max_tokens_if_cut: int = Field(default=4096, ge=1)
    """Maximum tokens when an answer cut off at `max_tokens` is asked for once more, so that reasoning has room; not
    used if this is not larger, or for models in process."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds an attempt may take, without the time in a server's queue; models in process have no limit."""
    retries: int = Field(default=5, ge=0)
    """Retries after failures that may pass; a server that asks for time is retried for `run.patience`."""
    concurrency: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Concurrent calls; `auto` starts at 8 and adapts to the server."""
    structured: bool = False
    """Whether answers of a closed set (lists of 0 and 1, a number) are held to a JSON schema by the server, so that
    each can be parsed. Results are keyed apart from those without."""
    cache: bool = True
    """Whether answers of earlier runs are used."""
    usd_per_million_input: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens, if the provider's is unknown."""
    usd_per_million_output: float | None = Field(default=None, ge=0)
    """Price of a million generated tokens."""
