"""Defines what a way to choose non-activating windows is given, and what it returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from saeval.plugin import ActivationStore, Need

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 5
"""A latent with fewer windows than this for explaining, for scoring, or silent, is omitted."""

Keep = Callable[["NDArray[np.int64]"], "NDArray[np.bool_]"]


class Wanted(NamedTuple):
    """Silent windows that are asked for.

    Attributes:
        store: The activations.
        latent: The latent.
        window: Tokens per window.
        n: How many; fewer come when there are not enough.
        keep: Tells for window numbers which may be drawn.
        beside: The activating windows of the same latent.
    """

    store: ActivationStore
    latent: int
    window: int
    n: int
    keep: Keep
    beside: NDArray[np.int64]


class NonActivating(BaseModel):
    """A way to choose windows in which a latent is silent."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    use: str
    """Which way."""
    n: int = Field(default=100, ge=FEWEST)
    """Windows to score with."""

    def check(self) -> None:
        """Look, cheaply, whether what the options name is there; see `saeval.plugin.Plugin.check`."""

    def needs(self) -> frozenset[Need]:
        """Return what this way needs beyond the store; see `saeval.plugin.Plugin.needs`."""
        return frozenset()

    def depends_on(self) -> list[JsonValue]:
        """Return what the choice depends on beyond the options."""
        return []

    def prepare(self, store: ActivationStore, latents: Sequence[int]) -> None:
        """Find together what drawing for each of these latents needs; see `saeval.plugin.Sampler.prepare`."""

    @abstractmethod
    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw windows, all different, in which the latent is verified silent; return their numbers."""

    def weighted(
        self, wanted: Wanted, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw windows, and say how many drawn at random each stands for; None where that is unknown."""
        return self.draw(wanted, rng), None


def in_turn(queues: Sequence[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """Take the next new number of each queue, and again, until there are n or the queues are empty."""
    taken: dict[int, None] = {}
    open_ = [iter(queue.tolist()) for queue in queues]
    while open_ and len(taken) < n:
        for queue in tuple(open_):
            new = next((number for number in queue if number not in taken), None)
            if new is None:
                open_.remove(queue)
            elif len(taken) < n:
                taken[new] = None
    return np.array(list(taken), dtype=np.int64)
