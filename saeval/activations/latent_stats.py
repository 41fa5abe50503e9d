"""Measures how much a latent's firings depend on single tokens or positions."""

from __future__ import annotations

import numpy as np

from saeval.activations.store import ActivationStore


def token_share(store: ActivationStore, latent: int) -> float:
    """Return the share of a latent's firings on its most frequent token; 1 for a token detector.

    NaN for a latent that never fires.
    """
    position, _ = store.activations(latent)
    if not len(position):
        return float("nan")
    tokens = np.sort(store.tokens.reshape(-1)[position])
    ends = np.flatnonzero(tokens[1:] != tokens[:-1])
    counts = np.diff(ends, prepend=-1, append=len(tokens) - 1)
    return float(counts.max() / len(position))


def mean_square(store: ActivationStore, latent: int) -> float:
    """Return a latent's mean squared activation over all tokens."""
    _, value = store.activations(latent)
    return float(np.square(value, dtype=np.float64).sum() / store.n_tokens)


def position_dependence(store: ActivationStore, latent: int) -> float:
    """Return how unevenly a latent's firings are distributed over positions in the context, 0 to 1.

    The Kolmogorov–Smirnov statistic between the positions of firings and of all tokens: near 0 for a latent that fires
    anywhere, near 1 for one that fires at the first token only. With few firings it is large by chance: below
    1.2 / √firings for nine latents in ten. NaN for a latent that never fires.
    """
    position, _ = store.activations(latent)
    if not len(position):
        return float("nan")
    fired = np.bincount(position % store.length, minlength=store.length)
    return float(np.abs(np.cumsum(fired) / fired.sum() - np.cumsum(store.text_at) / store.text_at.sum()).max())
