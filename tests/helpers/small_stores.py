"""Small data sets, random activations, and stores written from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saeval.plugin import ActivationWriter, TokenDataset


def dataset(contexts: int = 12, text: int = 64, documents: int = 4, ragged: bool = False) -> TokenDataset:
    """Contexts of BOS (token 0) and `text` tokens out of twenty."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 21, size=(contexts, text + 1), dtype=np.int32)
    tokens[:, 0] = 0
    lengths = np.full(contexts, text + 1, dtype=np.int32)
    if ragged:
        lengths -= rng.integers(0, text, size=contexts, dtype=np.int32)
    mask = (np.arange(text + 1) < lengths[:, None]) & (np.arange(text + 1) > 0)
    return TokenDataset(
        tokens, lengths, mask, np.sort(np.arange(contexts) % documents).astype(np.int32),
        tuple(f"d{i}" for i in range(documents)), {0: b"", **{i: f" w{i}".encode() for i in range(1, 21)}}, lead=1,
    )  # fmt: skip


def in_turns(data: TokenDataset, turn: int) -> TokenDataset:
    """The same with every second turn of so many tokens not counted; turns begin anywhere."""
    shift = np.random.default_rng(1).integers(2 * turn, size=(len(data.tokens), 1))
    counted = (np.arange(data.tokens.shape[1]) + shift) // turn % 2 == 1
    return replace(data, mask=data.mask & counted)


def dense(data: TokenDataset, n_latents: int, share: float, seed: int = 0) -> np.ndarray:
    """Random activations with zeros at masked tokens.  [contexts, length, latents]"""
    rng = np.random.default_rng(seed)
    shape = (*data.tokens.shape, n_latents)
    values = rng.gamma(2.0, 1.0, size=shape) * (rng.random(shape) < share)
    return np.round(values * data.mask[..., None], 3).astype(np.float32)


def write(path, data, activations, *, budget=10_000, stop_after=None, known=None, facts=None):
    """Write a store; `known` are pairs of latents and contexts, as two arrays."""
    writer = ActivationWriter(path, budget=budget)
    first = writer.start(data, activations.shape[-1])
    writer.note(**(facts or {}))
    if known is not None:
        writer.restrict(*known)
    for context in range(first, len(data.tokens)):
        if stop_after is not None and context >= stop_after:
            return None
        offset, latent = np.nonzero(activations[context])
        writer.add(context * data.tokens.shape[1] + offset, latent, activations[context][offset, latent])
        writer.advance(context + 1)
    return writer.finish()
