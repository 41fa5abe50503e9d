"""Defines the interface for choosing non-activating windows."""

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
"""Latents with fewer explaining, scoring or silent windows than this are dropped."""

Keep = Callable[["NDArray[np.int64]"], "NDArray[np.bool_]"]


class Wanted(NamedTuple):
    """A request for non-activating windows.

    Attributes:
        store: The activations.
        latent: The latent.
        window: Tokens per window.
        n: Number of windows; fewer are returned if there are not enough.
        keep: Returns which of the given window numbers may be drawn.
        beside: The activating windows of the same latent.
    """

    store: ActivationStore
    latent: int
    window: int
    n: int
    keep: Keep
    beside: NDArray[np.int64]


class NonActivating(BaseModel):
    """Base class of ways to choose windows in which a latent is silent."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    use: str
    """Name of the method."""
    n: int = Field(default=100, ge=FEWEST)
    """Number of non-activating windows for the scorers."""

    def check(self) -> None:
        """Check, cheaply, that everything named in the options exists; see `saeval.plugin.Plugin.check`."""

    def needs(self) -> frozenset[Need]:
        """Return what drawing needs in addition to the store; see `saeval.plugin.Plugin.needs`."""
        return frozenset()

    def depends_on(self) -> list[JsonValue]:
        """Return what the choice depends on in addition to the options."""
        return []

    def prepare(self, store: ActivationStore, latents: Sequence[int]) -> None:
        """Prepare draws for many latents at once; see `saeval.plugin.Sampler.prepare`."""

    @abstractmethod
    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw distinct windows in which the latent is verified to be silent; return their numbers."""

    def weighted(
        self, wanted: Wanted, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw windows with weights: the number of uniformly drawn windows each represents; None if unknown."""
        return self.draw(wanted, rng), None

    def fits(self, store: ActivationStore, latent: int, begins: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
        """Return which windows, once shifted, are still of the kind that was drawn; the others are not shifted.

        Args:
            store: The activations.
            latent: The latent, which is silent in all of them.
            begins: Start of each shifted window, as in `ActivationStore.activations`.  [windows]
            window: Tokens per window.
        """
        return np.ones(len(begins), dtype=np.bool_)


def in_turn(queues: Sequence[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """Take the next new number from each queue in turn until there are n or the queues are empty."""
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
