"""Generated activations: a stream that looks like a sparse coder's, with latents as frequent as words are (Zipf)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saeval.plugin import ActivationStore, ActivationWriter, TokenDataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LATENTS = 32_768
CONTEXT = 256  # tokens; no BOS, so that every tool cuts the same windows
VOCABULARY = 5_000
_CONTEXTS_A_DOCUMENT = 8
_BATCH = 128  # contexts


class Batch(NamedTuple):
    """The nonzero activations of some contexts, ascending in position, then in latent.  [nonzeros] each"""

    contexts: int  # finished with this batch
    position: NDArray[np.int64]
    latent: NDArray[np.int64]
    value: NDArray[np.float32]


def corpus(contexts: int) -> TokenDataset:
    """Return random words, in documents of a few contexts."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(contexts, CONTEXT), dtype=np.int32)
    documents = np.arange(contexts, dtype=np.int32) // _CONTEXTS_A_DOCUMENT
    return TokenDataset(
        tokens,
        np.full(contexts, CONTEXT, dtype=np.int32),
        np.ones(tokens.shape, dtype=np.bool_),
        documents,
        tuple(f"d{i}" for i in range(int(documents[-1]) + 1)),
        {i: f" w{i}".encode() for i in range(VOCABULARY)},
        0,
    )


def batches(contexts: int, a_token: int) -> Iterator[Batch]:
    """Yield activations: up to `a_token` latents per token, the r-th commonest 1/r as often; values are exponential."""
    weights = 1 / np.arange(1, LATENTS + 1)
    bounds = np.concatenate([[0], np.cumsum(weights / weights.sum())])
    # One look-up yields a latent; the commonest is not latent 0.
    table = np.repeat(np.random.default_rng(1).permutation(LATENTS), np.diff(np.rint(bounds * 2**22).astype(np.int64)))
    for number, start in enumerate(range(0, contexts, _BATCH)):
        rng = np.random.default_rng([2, number])
        n = min(_BATCH, contexts - start)
        latent = np.sort(table[rng.integers(2**22, size=(n * CONTEXT, a_token), dtype=np.int32)], axis=1)
        new = np.diff(latent, axis=1, prepend=-1) != 0  # a latent drawn twice for one token fires once
        position = start * CONTEXT + np.nonzero(new)[0]
        yield Batch(start + n, position, latent[new], activations(len(position), rng))


def activations(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return exponential activations.  [n]"""
    return np.maximum(rng.standard_exponential(n, dtype=np.float32), 1e-6)  # stores refuse 0, which may be drawn


def write_store(path: Path, contexts: int, a_token: int, every: int = 1) -> ActivationStore:
    """Write generated activations as a store; of the latents, only those whose number `every` divides."""
    writer = ActivationWriter(path)
    writer.start(corpus(contexts), LATENTS)
    for batch in batches(contexts, a_token):
        kept = batch.latent % every == 0
        writer.add(*(column[kept] for column in batch[1:]))
        writer.advance(batch.contexts)
    return writer.finish()
