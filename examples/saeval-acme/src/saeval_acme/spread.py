"""Spread: windows at even distances over the range of activations."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from saeval.plugin import ActivationStore, Examples, LatentId, LatentRecord, Sampler


class Spread(Sampler):
    """Shows windows at even distances over the rank order. Even documents explain, odd ones score."""

    name = "spread"

    n: int = Field(default=20, ge=5)
    """Windows of each kind, for explaining and for scoring."""

    def sample(self, store: ActivationStore, latent: LatentId, rng: np.random.Generator) -> LatentRecord | None:
        """Choose the windows."""
        windows = store.windows(latent.index, self.window)
        rank = np.argsort(np.argsort(-windows.maxima, kind="stable"), kind="stable")  # 0 the strongest
        sides = []
        for parity in (0, 1):
            mine = np.flatnonzero(store.document_of(windows.ids, self.window) % 2 == parity)
            mine = mine[np.argsort(rank[mine])]
            silent = store.silent_windows(
                latent.index, self.window, self.n, rng,
                keep=lambda ids, parity=parity: store.document_of(ids, self.window) % 2 == parity,
            )  # fmt: skip
            if min(len(mine), len(silent)) < 5:
                return None
            even = mine[np.unique(np.linspace(0, len(mine) - 1, self.n).astype(int))]
            deciles = [int(r) * 10 // len(rank) for r in rank[even]]
            active = store.examples(latent, windows.ids[even], self.window, deciles)
            passive = store.examples(latent, silent, self.window)
            sides.append(Examples(latent, active, passive, float(windows.maxima.max())))
        firings = int(store.firings[latent.index])
        explain, score = sides
        return LatentRecord(latent, firings, len(windows.ids), firings / store.n_tokens, explain, score)
