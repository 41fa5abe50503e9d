"""Draws hard non-activating windows with known probabilities, so that weighting removes the bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from saeval.plugin import ActivationStore
from saeval_plugins.samplers.silent import FEWEST, NonActivating, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 21  # firings to process at a time
_COMPARED = 400  # fewest activating windows to compare with, if there are as many; always less than twice this


class Importance(NonActivating):
    """Windows in which the latent might be expected to fire but does not, drawn with known probabilities.

    A window of the pool is hard if it contains tokens, or activates latents, that are much more frequent in this
    latent's activating windows than in the pool. The explanation is not used, so all explanations are scored on the
    same windows. A share `uniform` of the windows is drawn uniformly, the others with probabilities that increase with
    hardness. Weights make the estimated natural rates unbiased; other metrics describe the windows as drawn.
    """

    use: Literal["importance"] = "importance"
    """Selects hard windows, drawn with known probabilities and reweighted."""
    uniform: float = Field(default=0.8, ge=0.2, le=1)
    """Share of the windows drawn uniformly. The smaller it is, the larger the weight of a single false positive on an
    easy window."""
    pool: int = Field(default=20_000, ge=FEWEST)
    """Number of windows to draw from, which are themselves drawn uniformly."""

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw windows with probabilities that increase with hardness."""
        return self.weighted(wanted, rng)[0]

    def weighted(
        self, wanted: Wanted, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw by systematic sampling, so that inclusion probabilities match the weights exactly."""
        store, latent, window, n, keep, _ = wanted
        pool = store.silent_windows(latent, window, self.pool, rng, keep)
        if len(pool) <= n:
            return pool, np.ones(len(pool))
        included = self.inclusion(hardness(store, latent, pool, window), n)
        taken = systematic(included, n, rng)
        return pool[taken], n / (len(pool) * included[taken])

    def inclusion(self, hard: NDArray[np.float64], n: int) -> NDArray[np.float64]:
        """Return each window's inclusion probability, given its hardness; they add up to n."""
        even = np.full(len(hard), 1 / len(hard))
        mixed = self.uniform * even + (1 - self.uniform) * (hard / hard.sum() if hard.any() else even)
        return inclusion(mixed, n)


def inclusion(shares: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return inclusion probabilities that add up to n, proportional to the shares but at most 1.

    Args:
        shares: Positive numbers that add up to 1; there must be more than n.  [windows]
        n: Number of windows to draw.
    """
    certain = np.zeros(len(shares), dtype=np.bool_)
    while True:
        left = n - int(certain.sum())
        scaled = np.where(certain, 1.0, shares * left / shares[~certain].sum())
        if not (scaled > 1).any():
            return scaled
        certain |= scaled >= 1


def systematic(included: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw n distinct windows with these inclusion probabilities, in random order."""
    order = rng.permutation(len(included))
    ends = np.cumsum(included[order])
    return order[np.searchsorted(ends, rng.random() + np.arange(n)).clip(max=len(included) - 1)]


def hardness(store: ActivationStore, latent: int, pool: NDArray[np.int64], window: int) -> NDArray[np.float64]:
    """Return each window's hardness: the squared log ratio of tokens and latents frequent in activating windows.

    Args:
        store: The activations.
        latent: The latent.
        pool: Windows in which it is silent.  [pool]
        window: Tokens per window.
    """
    active = store.windows(latent, window).ids
    some = active[:: max(1, len(active) // _COMPARED)]
    here, there = (_token_rows(store, ids, window) for ids in (some, pool))
    score = _frequent(here, there, len(some))
    fired, fired_there = _others(store, latent, (some, pool), window)
    score += _frequent(fired, fired_there, len(some), rows=len(pool))
    return np.square(score)


def _token_rows(store: ActivationStore, ids: NDArray[np.int64], window: int) -> Pairs:
    """Return the distinct (window, token) pairs."""
    begins = store.begin_of(ids, window)
    tokens = store.tokens.reshape(-1)[begins[:, None] + np.arange(window)].astype(np.int64)
    return _distinct(np.repeat(np.arange(len(ids)), window), tokens.ravel())


def _others(store: ActivationStore, latent: int, groups: Sequence[NDArray[np.int64]], window: int) -> list[Pairs]:
    """Return, per group of windows, the distinct pairs of a window and another latent that fires in it.

    Makes one pass over the firings of the store. No window may be in two groups.
    """
    row_of = np.full(len(store.lengths) * store.length, -1, dtype=np.int32)  # index of each token's window, over groups
    begins = store.begin_of(np.concatenate(groups), window)
    row_of[begins[:, None] + np.arange(window)] = np.arange(len(begins))[:, None]
    rows, others = [], []
    for start in range(0, len(store.position), _BLOCK):
        row = row_of[store.position[start : start + _BLOCK]]
        inside = np.flatnonzero(row >= 0)
        rows.append(row[inside].astype(np.int64))
        others.append(np.searchsorted(store.indptr, start + inside, side="right") - 1)
    row, other = np.concatenate(rows), np.concatenate(others)
    found, end = [], 0
    for group in groups:
        begin, end = end, end + len(group)
        kept = (row >= begin) & (row < end) & (other != latent)
        found.append(_distinct(row[kept] - begin, other[kept]))
    return found


Pairs = tuple["NDArray[np.int64]", "NDArray[np.int64]"]
"""Windows and the tokens or latents in them, as two parallel arrays."""


def _distinct(rows: NDArray[np.int64], things: NDArray[np.int64]) -> Pairs:
    size = int(things.max(initial=0)) + 1
    pairs = np.unique(rows * size + things)
    return pairs // size, pairs % size


def _frequent(here: Pairs, there: Pairs, n: int, rows: int | None = None) -> NDArray[np.float64]:
    """Return, per window of the pool, the sum of log ratios of what is clearly more frequent in activating windows.

    Clearly more frequent means: in at least two activating windows, and more than three standard errors above the
    number expected from the pool.
    """
    total = int(there[0].max(initial=0)) + 1 if rows is None else rows
    size = int(max(here[1].max(initial=0), there[1].max(initial=0))) + 1
    seen = np.bincount(here[1], minlength=size)
    share = (np.bincount(there[1], minlength=size) + 0.5) / (total + 1)
    expected = n * share
    sure = (seen >= 2) & (seen - expected > 3 * np.sqrt(expected))
    ratio = np.where(sure, np.log(np.maximum(seen, 1) / np.maximum(expected, 1e-9)), 0.0)
    return np.bincount(there[0], weights=ratio[there[1]], minlength=total)
