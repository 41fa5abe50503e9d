"""Chooses, from store and seed, which latents have a floor, and whose explanation it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import log
from typing import TYPE_CHECKING

from saeval._util import content_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saeval.activations import ActivationStore

_FEWEST = 20  # latents with a floor, where there are so many
_FACTOR = 2.0  # how far co-occurrence may be from chance
_LOOKS = 64  # latents compared to find one that fires independently


def number(latents: int) -> int:
    """Return the number of latents with a judged floor: half of them, and at least 20."""
    return max((latents + 1) // 2, min(latents, _FEWEST))


def in_order(latents: Sequence[int], seed: int) -> list[int]:
    """Return latents in a random order in which adding or removing one moves no other."""
    return sorted(latents, key=lambda latent: content_hash(seed, "floor", latent))


def judged(latents: Sequence[int], seed: int) -> frozenset[int]:
    """Return the latents whose floor is judged: a keyed half of those that are scored."""
    return frozenset(in_order(latents, seed)[: number(len(latents))])


class Partners:
    """Finds latents whose explanations are uninformed about another, because they fire nearly independently of it.

    Another latent's explanation is a floor only if it is neither nearly right (a near duplicate, which fires in the
    same windows) nor wrong on purpose (one that fires where this one is silent): both firing in one window must be
    within a factor of two of chance, one window being added to what is seen and to what is expected.

    Args:
        store: The cell's activations.
        window: Tokens per window.
        latents: The latents of the cell that were explained.
        seed: Seed of the run.
    """

    def __init__(self, store: ActivationStore, window: int, latents: Sequence[int], seed: int):
        self._ring = in_order(latents, seed)
        self._place = {latent: place for place, latent in enumerate(self._ring)}
        self._everywhere = max(store.window_count(window), 1)
        self._windows = lru_cache(maxsize=2 * _LOOKS)(lambda latent: store.windows(latent, window).ids)

    def of(self, latent: int) -> Iterator[int]:
        """Yield the latents whose explanation may serve: near-independent ones, then the least dependent.

        They follow the latent in a ring, so that each explanation serves about once.
        """
        place, ring = self._place[latent], self._ring
        dependent: list[tuple[float, int]] = []
        for step in range(1, min(len(ring), _LOOKS + 1)):
            other = ring[(place + step) % len(ring)]
            away = self.dependence(latent, other)
            if away <= log(_FACTOR):
                yield other
            else:
                dependent.append((away, other))
        yield from (other for _, other in sorted(dependent, key=lambda found: found[0]))

    def independent(self, latent: int, other: int) -> bool:
        """Return whether two latents fire in the same windows about as often as expected by chance."""
        return self.dependence(latent, other) <= log(_FACTOR)

    def dependence(self, latent: int, other: int) -> float:
        """Return how far co-occurrence in windows is from chance: the absolute log of the ratio of the two."""
        a, b = self._windows(latent), self._windows(other)
        expected = len(a) * len(b) / self._everywhere
        return abs(log((_common(a, b) + 1) / (expected + 1)))


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return how many numbers two ascending arrays have in common."""
    import numpy as np

    few, many = (a, b) if len(a) <= len(b) else (b, a)
    if not len(few):
        return 0
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int((many[at] == few).sum())
