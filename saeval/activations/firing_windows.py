"""Computes a latent's histogram of activations, and selects windows from strong to weak."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from saeval.activations.store import ActivationStore
from saeval.records import Example, LatentId

BINS = 24
QUANTILES = 5
_TOP, _PER_QUANTILE = 10, 4


@dataclass(frozen=True)
class Histogram:
    """Histogram of a latent's activations over the tokens on which it fires.

    Attributes:
        top: Upper end of the last bin, equal to the maximum activation; bins have equal width and start at 0.
        counts: Number of tokens per bin.
    """

    top: float
    counts: tuple[int, ...]


def histogram(store: ActivationStore, latent: int) -> Histogram:
    """Return the histogram of a latent's activations; without counts if the latent never fires."""
    _, values = store.activations(latent)
    if not len(values):
        return Histogram(0.0, ())
    top = float(values.max())
    # The same bins as those of `np.histogram`, which takes three times as long.
    edges = np.linspace(0.0, top, BINS + 1, dtype=values.dtype)
    begins = np.sort(values).searchsorted(edges[:-1])
    return Histogram(top, tuple(np.diff(begins, append=len(values)).tolist()))


def portrait(store: ActivationStore, latent: LatentId, window: int) -> dict[str, tuple[Example, ...]]:
    """Return windows in which a latent fires, from the full corpus, independent of the sample.

    Args:
        store: The activations.
        latent: The latent.
        window: Tokens per window.

    Returns:
        Windows by group: `top`, the windows with the highest maximum activation, and `1` to `5`, evenly spaced windows
        from each quintile of the maximum activation, the strongest quintile first. The selection is deterministic.
    """
    found = store.windows(latent.index, window)
    order = np.argsort(-found.maxima, kind="stable")
    groups = {"top": order[:_TOP]}
    if len(order) >= 2 * QUANTILES:
        groups |= {str(k + 1): _spread(part) for k, part in enumerate(np.array_split(order, QUANTILES))}
    windows = iter(store.examples(latent, found.ids[np.concatenate([*groups.values()])], window))
    return {group: tuple(islice(windows, len(places))) for group, places in groups.items()}


def _spread(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return some of the places, evenly spaced."""
    return places.take(_evenly(len(places)))


@lru_cache(maxsize=1000)
def _evenly(size: int) -> NDArray[np.int64]:
    """Return evenly spaced indices of an array of this size; read-only, since they are kept."""
    n = min(_PER_QUANTILE, size)
    chosen = np.linspace(0, size - 1, 2 * n + 1).round().astype(np.int64)[1::2]
    chosen.flags.writeable = False
    return chosen
