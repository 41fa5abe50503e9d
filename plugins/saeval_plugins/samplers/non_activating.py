"""Draws non-activating windows: random ones, or hard ones that resemble activating windows (paper §3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, JsonValue

from saeval.plugin import (
    ActivationStore,
    LatentId,
    ModelRef,
    derive_rng,
    embedder,
    embedder_check,
    embedder_sha,
    one_line,
)
from saeval_plugins.samplers.importance import Importance
from saeval_plugins.samplers.neighbours import Neighbours
from saeval_plugins.samplers.silent import FEWEST, NonActivating, Wanted, in_turn

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RandomWindows(NonActivating):
    """Random windows in which the latent is silent (paper §3.1)."""

    use: Literal["random"] = "random"
    """Selects random non-activating windows."""

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw uniformly."""
        return wanted.store.silent_windows(wanted.latent, wanted.window, wanted.n, rng, wanted.keep)

    def weighted(
        self, wanted: Wanted, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw uniformly; all weights are 1."""
        ids = self.draw(wanted, rng)
        return ids, np.ones(len(ids))


class Similar(NonActivating):
    """Windows whose text resembles activating windows: the nearest to each of them, in turn."""

    use: Literal["similar"] = "similar"
    """Selects windows whose sentence embedding is close to those of activating windows."""
    model: ModelRef = "sentence-transformers/all-MiniLM-L6-v2"
    """A sentence-transformers model: hub id, directory, or `package:` reference."""
    pool: int = Field(default=4096, ge=FEWEST)
    """Number of windows to choose from, drawn and embedded once for all latents of a corpus; for sources of excerpts,
    such as Neuronpedia's, per latent from its own texts."""

    def check(self) -> None:
        """Check that a packaged or local model is installed."""
        embedder_check(self.model)

    def depends_on(self) -> list[JsonValue]:
        """Return the hash of a local model's weights, which may change under the same path."""
        sha = embedder_sha(self.model)
        return [sha] if sha else []

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Take the nearest windows of the pool; only the pool is drawn at random."""
        store, latent, window, n, keep, beside = wanted
        embed = embedder()
        own = None if store.holds_whole_text else latent
        pool, vectors = _pool(embed, store, self.model, window, self.pool, own)
        active = store.windows(latent, window).ids
        eligible = np.flatnonzero(keep(pool) & np.isin(pool, active, invert=True))
        nearest = min(n, len(eligible))
        if nearest == 0 or len(beside) == 0:
            return np.empty(0, dtype=np.int64)
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=nearest, metric="cosine", algorithm="brute").fit(vectors[eligible])
        ranked = index.kneighbors(embed(self.model, _texts(store, beside, window)), return_distance=False)
        return in_turn([pool[eligible[row]] for row in ranked], n)


def _default_to_random(value: object) -> object:
    return {"use": "random", **value} if isinstance(value, Mapping) else value


AnyNonActivating = Annotated[
    RandomWindows | Neighbours | Similar | Importance, Field(discriminator="use"), BeforeValidator(_default_to_random)
]
"""Any of these methods, selected by `use`."""


@lru_cache(maxsize=4)
def _pool(
    embed: Any, store: ActivationStore, model: str, window: int, size: int, latent: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw and embed the pool of windows that all latents of a store choose from, or that one latent does.

    Returns:
        Window numbers, [size], and vectors, [size, dimensions].
    """
    ids = store.draw_windows(window, size, derive_rng(0, "similar", window, size), latent=latent)
    return ids, embed(model, _texts(store, ids, window))


def _texts(store: ActivationStore, ids: NDArray[np.int64], window: int) -> list[str]:
    any_latent = LatentId("", 0)  # the text does not depend on the latent
    return [one_line(example.text) for example in store.examples(any_latent, ids, window)]
