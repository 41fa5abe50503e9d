"""Draws non-activating windows: random ones, or hard ones that resemble activating ones (paper §3.1)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from saeval.plugin import (
    ActivationStore,
    InputError,
    LatentId,
    ModelRef,
    Need,
    NeuronCoder,
    derive_rng,
    embedder,
    embedder_check,
    embedder_sha,
    one_line,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FEWEST = 5
"""A latent with fewer windows than this for explaining, for scoring, or silent, is omitted."""

By = Literal["decoder", "encoder", "cooccurrence"]
Keep = Callable[["NDArray[np.int64]"], "NDArray[np.bool_]"]

_TILE_BYTES = 64 << 20  # float32 directions per tile
_BLOCK = 1 << 21  # firings that are looked up together


class Wanted(NamedTuple):
    """Silent windows that are asked for.

    Attributes:
        store: The activations.
        latent: The latent.
        window: Tokens per window.
        n: How many; fewer come when there are not enough.
        keep: Tells for window numbers which may be drawn.
        beside: The activating windows of the same latent.
    """

    store: ActivationStore
    latent: int
    window: int
    n: int
    keep: Keep
    beside: NDArray[np.int64]


class NonActivating(BaseModel):
    """A way to choose windows in which a latent is silent."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    use: str
    """Which way."""
    n: int = Field(default=100, ge=FEWEST)
    """Windows to score with."""

    def check(self) -> None:
        """Look, cheaply, whether what the options name is there; see `saeval.plugin.Plugin.check`."""

    def needs(self) -> frozenset[Need]:
        """Return what this way needs beyond the store; see `saeval.plugin.Plugin.needs`."""
        return frozenset()

    def depends_on(self) -> list[JsonValue]:
        """Return what the choice depends on beyond the options."""
        return []

    @abstractmethod
    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw windows, all different, in which the latent is verified silent; return their numbers."""

    def weighted(
        self, wanted: Wanted, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw windows, and say how many drawn at random each stands for; None where that is unknown."""
        return self.draw(wanted, rng), None


class RandomWindows(NonActivating):
    """Drawn from all windows in which the latent is silent (paper §3.1)."""

    use: Literal["random"] = "random"
    """Any window in which the latent is silent."""

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw uniformly."""
        return wanted.store.silent_windows(wanted.latent, wanted.window, wanted.n, rng, wanted.keep)

    def weighted(
        self, wanted: Wanted, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw uniformly; each window stands for itself."""
        ids = self.draw(wanted, rng)
        return ids, np.ones(len(ids))


class Neighbours(NonActivating):
    """Windows that activate a latent near this one, but not this one.

    The neighbours take turns, the nearest first. Latents that never fire, and those whose similarity is not above 0,
    are no neighbours.
    """

    use: Literal["neighbours"] = "neighbours"
    """Windows that activate a latent near this one."""
    k: int = Field(default=10, ge=1)
    """Neighbours, at most."""
    by: By = "cooccurrence"
    """What makes two latents near: the cosine of their `decoder` or `encoder` directions, or `cooccurrence`, the
    Jaccard index of the tokens on which they fire."""

    def needs(self) -> frozenset[Need]:
        """Directions come from the coder, co-occurrence from the store."""
        return frozenset() if self.by == "cooccurrence" else frozenset({"coder"})

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw from each neighbour's windows in turn."""
        store, latent, window, n, keep, _ = wanted
        active = store.windows(latent, window).ids
        queues = []
        for other in neighbours(store, latent, self.k, self.by) if n else ():
            ids = np.setdiff1d(store.windows(other, window).ids, active, assume_unique=True)
            queues.append(rng.permutation(ids[keep(ids)])[:n])
        return _in_turn(queues, n)


class Similar(NonActivating):
    """Windows whose text lies close to the activating ones, the closest to each of them in turn."""

    use: Literal["similar"] = "similar"
    """Windows whose text, as a sentence embedding, is close to that of activating ones."""
    model: ModelRef = "sentence-transformers/all-MiniLM-L6-v2"
    """A sentence-transformers model: hub id, directory, or `package:` reference."""
    pool: int = Field(default=4096, ge=FEWEST)
    """Windows to choose from; drawn and embedded once for all latents of a corpus."""

    def check(self) -> None:
        """See whether a packaged model is installed, and whether a local one is there."""
        embedder_check(self.model)

    def depends_on(self) -> list[JsonValue]:
        """Return the hash of a local model's weights, which may change under the same path."""
        sha = embedder_sha(self.model)
        return [sha] if sha else []

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Take the nearest of the pool; nothing is left to chance."""
        store, latent, window, n, keep, beside = wanted
        embed = embedder()
        pool, vectors = _pool(embed, store, self.model, window, self.pool)
        active = store.windows(latent, window).ids
        eligible = np.flatnonzero(keep(pool) & np.isin(pool, active, invert=True))
        nearest = min(n, len(eligible))
        if nearest == 0 or len(beside) == 0:
            return np.empty(0, dtype=np.int64)
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=nearest, metric="cosine", algorithm="brute").fit(vectors[eligible])
        ranked = index.kneighbors(embed(self.model, _texts(store, beside, window)), return_distance=False)
        return _in_turn([pool[eligible[row]] for row in ranked], n)


class Importance(NonActivating):
    """Windows in which the latent could be expected to fire and does not, drawn with known probabilities.

    A window of the pool is hard if it contains tokens, or activates latents, that are much more frequent in this
    latent's activating windows than elsewhere. The explanation is not used, so all explanations meet the same
    windows.
    A share `uniform` of the windows is drawn uniformly, the others by how hard they are. Weights undo this in the
    natural rates, which are unbiased; other metrics are of the windows as drawn.
    """

    use: Literal["importance"] = "importance"
    """Hard windows, drawn with known probabilities and weighted back."""
    uniform: float = Field(default=0.8, ge=0.2, le=1)
    """Share of the windows drawn uniformly. The smaller it is, the more each of the judge's false alarms weighs."""
    pool: int = Field(default=20_000, ge=FEWEST)
    """Windows to draw from, themselves drawn uniformly."""

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw by how hard windows are."""
        return self.weighted(wanted, rng)[0]

    def weighted(
        self, wanted: Wanted, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Draw systematically, so that each window of the pool is included with the probability its weight says."""
        store, latent, window, n, keep, _ = wanted
        pool = store.silent_windows(latent, window, self.pool, rng, keep)
        if len(pool) <= n:
            return pool, np.ones(len(pool))
        included = self.inclusion(hardness(store, latent, pool, window), n)
        taken = systematic(included, n, rng)
        return pool[taken], n / (len(pool) * included[taken])

    def inclusion(self, hard: NDArray[np.float64], n: int) -> NDArray[np.float64]:
        """Return each window's probability of being among n, by how hard it is; they add up to n."""
        even = np.full(len(hard), 1 / len(hard))
        mixed = self.uniform * even + (1 - self.uniform) * (hard / hard.sum() if hard.any() else even)
        return inclusion(mixed, n)


def _random_unless_said(value: object) -> object:
    return {"use": "random", **value} if isinstance(value, Mapping) else value


AnyNonActivating = Annotated[
    RandomWindows | Neighbours | Similar | Importance, Field(discriminator="use"), BeforeValidator(_random_unless_said)
]
"""One of the ways, by its `use`."""


def _in_turn(queues: Sequence[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """Take the next new number of each queue, and again, until there are n or the queues are empty."""
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


# --- neighbours ---


@lru_cache(maxsize=1)  # both sides of one latent ask for them
def neighbours(store: ActivationStore, latent: int, k: int, by: By) -> tuple[int, ...]:
    """Return the latents nearest to one, nearest first, ties by number.

    Args:
        store: The activations.
        latent: The latent asked about.
        k: Neighbours wanted; fewer come where fewer fire and have a similarity above 0.
        by: What makes two latents near.

    Raises:
        InputError: If it takes directions and there is no coder that has them.
    """
    similarity = jaccard(store, latent) if by == "cooccurrence" else cosines(_directions(store, by), latent)
    similarity[store.firings == 0] = 0
    similarity[latent] = 0
    nearest = np.argsort(-similarity, kind="stable")[:k]
    return tuple(int(i) for i in nearest if similarity[i] > 0)


class Directions(NamedTuple):
    """The directions of all latents, as the coder holds them, and their lengths.

    Attributes:
        vectors: One direction a latent, in any precision; not a copy.  [n_latents, d]
        norms: Their lengths.  [n_latents] float32
    """

    vectors: Tensor
    norms: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Directions:
        """Measure directions.  vectors [n_latents, d]"""
        import torch

        norms = [tile.norm(dim=1) for tile in _tiles(vectors)]
        return cls(vectors, torch.cat(norms))


@lru_cache(maxsize=1)  # one, for these are the coder's weights
def _directions(store: ActivationStore, by: Literal["decoder", "encoder"]) -> Directions:
    if store.coder is None:
        raise InputError(
            f"neighbours by {by} need the coder's directions, and no coder comes with these activations; {_INSTEAD}"
        )
    coder = store.coder()
    vectors = coder.directions() if by == "decoder" else coder.encoder_directions()
    if vectors is None:
        why = (
            "neurons are orthogonal, so none is near another"
            if isinstance(coder, NeuronCoder)
            else f"a coder of the kind {coder.architecture!r} has no {by} directions to compare"
        )
        raise InputError(f"neighbours by {by}: {why}; {_INSTEAD}")
    if len(vectors) != store.n_latents:
        raise InputError(f"neighbours by {by}: the coder has {len(vectors)} latents, the activations {store.n_latents}")
    return Directions.of(vectors.detach())


_INSTEAD = "take `by: cooccurrence`"


def cosines(directions: Directions, latent: int, tile_bytes: int = _TILE_BYTES) -> NDArray[np.float32]:
    """Return the cosine between a latent's direction and every other's, to six decimals.

    Takes time and memory linear in the dictionary: the directions are read where they lie, a tile at a time.

    Args:
        directions: All directions.
        latent: The latent.
        tile_bytes: Size of a tile.  [bytes of float32]
    """
    import torch

    vectors, norms = directions
    one = vectors[latent].float()
    dots = torch.cat([tile @ one for tile in _tiles(vectors, tile_bytes)])
    cosine = dots / (norms * norms[latent]).clamp_min(torch.finfo(torch.float32).tiny)
    # How sums are rounded depends on tiles and machine; equal directions should tie on all.
    return np.round(cosine.cpu().numpy(), 6)


def _tiles(vectors: Tensor, tile_bytes: int = _TILE_BYTES) -> Iterator[Tensor]:
    """Yield the rows as float32, a tile at a time; a copy only of those that are in another precision."""
    rows = max(1, tile_bytes // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield vectors[start : start + rows].float()


def jaccard(store: ActivationStore, latent: int, block: int = _BLOCK) -> NDArray[np.float64]:
    """Return, for every latent, the tokens on which both it and this one fire as a share of those on which either does.

    One pass over the firings of the whole store; takes a byte a token of the corpus, a block of firings, and a
    number a latent.

    Args:
        store: The activations.
        latent: The latent.
        block: Firings to look up at a time.
    """
    fires = np.zeros(len(store.lengths) * store.length, dtype=np.bool_)
    fires[store.activations(latent)[0]] = True
    common = np.zeros(store.n_latents, dtype=np.int64)
    for start in range(0, len(store.position), block):
        hits = start + np.flatnonzero(fires[store.position[start : start + block]])
        common += np.bincount(np.searchsorted(store.indptr, hits, side="right") - 1, minlength=store.n_latents)
    either = store.firings + store.firings[latent] - common
    return common / np.maximum(either, 1)


# --- importance ---


def inclusion(shares: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return probabilities of inclusion that add up to n and are proportional to the shares, as far as none exceeds 1.

    Args:
        shares: Positive, adding up to 1; more than n of them.  [windows]
        n: Windows to draw.
    """
    certain = np.zeros(len(shares), dtype=np.bool_)
    while True:
        left = n - int(certain.sum())
        scaled = np.where(certain, 1.0, shares * left / shares[~certain].sum())
        if not (scaled > 1).any():
            return scaled
        certain |= scaled >= 1


def systematic(included: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw n different windows with these probabilities of inclusion, in an order drawn at random."""
    order = rng.permutation(len(included))
    ends = np.cumsum(included[order])
    return order[np.searchsorted(ends, rng.random() + np.arange(n)).clip(max=len(included) - 1)]


def hardness(
    store: ActivationStore, latent: int, pool: NDArray[np.int64], window: int, most: int = 400
) -> NDArray[np.float64]:
    """Return how much a window resembles those that activate a latent: squared log ratio of what is frequent there.

    Args:
        store: The activations.
        latent: The latent.
        pool: Windows in which it is silent.  [pool]
        window: Tokens per window.
        most: Activating windows to compare with.
    """
    active = store.windows(latent, window).ids
    some = active[:: max(1, len(active) // most)]
    here, there = (_token_rows(store, ids, window) for ids in (some, pool))
    score = _frequent(here, there, len(some))
    fired = [_others(store, latent, ids, window) for ids in (some, pool)]
    score += _frequent(fired[0], fired[1], len(some), rows=len(pool))
    return np.square(score)


def _token_rows(store: ActivationStore, ids: NDArray[np.int64], window: int) -> Pairs:
    """Return each window with each of its tokens, once."""
    begins = store.begin_of(ids, window)
    tokens = store.tokens.reshape(-1)[begins[:, None] + np.arange(window)].astype(np.int64)
    return _distinct(np.repeat(np.arange(len(ids)), window), tokens.ravel())


def _others(store: ActivationStore, latent: int, ids: NDArray[np.int64], window: int) -> Pairs:
    """Return each window with each other latent that fires in it, once. One pass over the firings of the store."""
    order = np.argsort(ids)
    begins = store.begin_of(ids[order], window)
    rows, others = [], []
    for start in range(0, len(store.position), _BLOCK):
        position = store.position[start : start + _BLOCK].astype(np.int64)
        place = np.searchsorted(begins, position, side="right") - 1
        inside = np.flatnonzero((place >= 0) & (position < begins[place] + window))
        rows.append(order[place[inside]])
        others.append(np.searchsorted(store.indptr, start + inside, side="right") - 1)
    row, other = np.concatenate(rows), np.concatenate(others)
    kept = other != latent
    return _distinct(row[kept], other[kept])


Pairs = tuple["NDArray[np.int64]", "NDArray[np.int64]"]
"""Windows, and what is in them."""


def _distinct(rows: NDArray[np.int64], things: NDArray[np.int64]) -> Pairs:
    size = int(things.max(initial=0)) + 1
    pairs = np.unique(rows * size + things)
    return pairs // size, pairs % size


def _frequent(here: Pairs, there: Pairs, n: int, rows: int | None = None) -> NDArray[np.float64]:
    """Return for each window of the pool the sum of log ratios of what is surely more frequent in activating windows.

    Surely: twice or more, and three standard errors above what the pool's share would give.
    """
    total = int(there[0].max(initial=0)) + 1 if rows is None else rows
    size = int(max(here[1].max(initial=0), there[1].max(initial=0))) + 1
    seen = np.bincount(here[1], minlength=size)
    share = (np.bincount(there[1], minlength=size) + 0.5) / (total + 1)
    expected = n * share
    sure = (seen >= 2) & (seen - expected > 3 * np.sqrt(expected))
    ratio = np.where(sure, np.log(np.maximum(seen, 1) / np.maximum(expected, 1e-9)), 0.0)
    return np.bincount(there[0], weights=ratio[there[1]], minlength=total)


# --- similar ---


@lru_cache(maxsize=4)
def _pool(
    embed: Any, store: ActivationStore, model: str, window: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw and embed the windows that all latents of a store choose from.

    Returns:
        Their numbers, [size], and vectors, [size, dimensions].
    """
    ids = store.draw_windows(window, size, derive_rng(0, "similar", window, size))
    return ids, embed(model, _texts(store, ids, window))


def _texts(store: ActivationStore, ids: NDArray[np.int64], window: int) -> list[str]:
    any_latent = LatentId("", 0)  # the text is the same whichever is asked about
    return [one_line(example.text) for example in store.examples(any_latent, ids, window)]
