"""Chooses which latents have a judged floor, and which other latent's explanation serves as floor."""

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

_FEWEST = 20  # minimum number of latents with a floor, if there are that many
_FACTOR = 2.0  # largest factor between co-occurrence and chance for near-independence
_LOOKS = 64  # maximum latents compared to find one that fires independently


def number(latents: int) -> int:
    """Return the number of latents with a judged floor: half of them, but at least 20."""
    return max((latents + 1) // 2, min(latents, _FEWEST))


def in_order(latents: Sequence[int], seed: int) -> list[int]:
    """Return latents in a random order in which adding or removing a latent does not change the order of others."""
    return sorted(latents, key=lambda latent: content_hash(seed, "floor", latent))


def judged(latents: Sequence[int], seed: int) -> frozenset[int]:
    """Return the latents whose floor is judged: a random half of the scored latents, determined by the seed."""
    return frozenset(in_order(latents, seed)[: number(len(latents))])


class Partners:
    """Finds latents whose explanations are uninformed about another, because they fire nearly independently of it.

    Another latent's explanation is a valid floor only if it is neither nearly correct (a near duplicate, which fires in
    the same windows) nor systematically wrong (a latent that fires only where this one does not). So the number of
    windows in which both fire must be within a factor of two of the number expected by chance, after adding one window
    to both numbers.

    Args:
        store: The cell's activation store.
        window: Tokens per window.
        latents: The explained latents of the cell.
        seed: Seed of the run.
    """

    def __init__(self, store: ActivationStore, window: int, latents: Sequence[int], seed: int):
        self._ring = in_order(latents, seed)
        self._place = {latent: place for place, latent in enumerate(self._ring)}
        self._everywhere = max(store.window_count(window), 1)
        self._windows = lru_cache(maxsize=2 * _LOOKS)(lambda latent: store.windows(latent, window).ids)

    def of(self, latent: int) -> Iterator[int]:
        """Yield the latents whose explanation can serve as floor: near-independent ones, then the least dependent.

        They follow the latent in a ring, so that each explanation is used about once.
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
        """Return the deviation of co-occurrence in windows from chance: the absolute log ratio of the two."""
        a, b = self._windows(latent), self._windows(other)
        expected = len(a) * len(b) / self._everywhere
        return abs(log((_common(a, b) + 1) / (expected + 1)))


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return the size of the intersection of two ascending arrays."""
    import numpy as np

    few, many = (a, b) if len(a) <= len(b) else (b, a)
    if not len(few):
        return 0
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int((many[at] == few).sum())
