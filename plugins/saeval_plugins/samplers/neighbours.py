"""Draws windows that activate a latent's neighbours; finds the neighbours of many latents in one pass."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from saeval.plugin import ActivationStore, InputError, Need, NeuronCoder
from saeval_plugins.samplers.silent import NonActivating, Wanted, in_turn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

By = Literal["decoder", "encoder", "cooccurrence"]

_TILE_BYTES = 64 << 20  # float32 directions per tile
_COSINES_BYTES = 128 << 20  # cosines held at a time
_MARGIN = 1e-3  # larger than the rounding error of a cosine in float32 or TF32
_FIRINGS = 1 << 24  # held in memory at a time while a store is transposed


class Neighbours(NonActivating):
    """Windows that activate a similar latent but not this one.

    Windows are taken from each neighbour in turn, nearest first. Latents that never fire, or whose similarity is 0 or
    less, do not count as neighbours.
    """

    use: Literal["neighbours"] = "neighbours"
    """Selects windows that activate a similar latent."""
    k: int = Field(default=10, ge=1)
    """Maximum number of neighbours."""
    by: By = "cooccurrence"
    """Similarity of latents: the cosine of their `decoder` or `encoder` directions, or `cooccurrence`, the
    Jaccard index of the tokens on which they fire."""

    def needs(self) -> frozenset[Need]:
        """Return `coder` if directions are compared; co-occurrence needs only the store."""
        return frozenset() if self.by == "cooccurrence" else frozenset({"coder"})

    def prepare(self, store: ActivationStore, latents: Sequence[int]) -> None:
        """Find the neighbours of these latents in one pass."""
        find_neighbours(store, latents, self.k, self.by)

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw from each neighbour's windows in turn."""
        store, latent, window, n, keep, _ = wanted
        near = _near_windows(store, latent, window, self.k, self.by) if n else []
        return in_turn([rng.permutation(ids[keep(ids)])[:n] for ids in near], n)

    def fits(self, store: ActivationStore, latent: int, begins: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
        """Return in which of the windows a neighbour fires."""
        found = np.zeros(len(begins), dtype=np.bool_)
        for other in neighbours(store, latent, self.k, self.by) if len(begins) else ():
            found |= store.fires_in(other, begins, window)
        return found


# --- neighbours found so far, per store ---


@lru_cache(maxsize=1)  # both sides of one latent need them
def _near_windows(store: ActivationStore, latent: int, window: int, k: int, by: By) -> list[NDArray[np.int64]]:
    """Return, per neighbour, the windows that activate it but not the latent."""
    active = store.windows(latent, window).ids
    near = (store.windows(other, window).ids for other in neighbours(store, latent, k, by))
    return [np.setdiff1d(ids, active, assume_unique=True) for ids in near]


class _Known:
    """Neighbours found so far, a few bytes per latent, kept so that later draws need no search."""

    def __init__(self, n_latents: int, k: int):
        self.found = np.zeros(n_latents, dtype=np.bool_)
        self.nearest = np.zeros((n_latents, k), dtype=np.int32)  # -1 where there are fewer


_known: WeakKeyDictionary[ActivationStore, dict[tuple[int, By], _Known]] = WeakKeyDictionary()


def neighbours(store: ActivationStore, latent: int, k: int, by: By) -> tuple[int, ...]:
    """Return a latent's neighbours, nearest first, ties by number.

    Args:
        store: The activations.
        latent: The latent.
        k: Maximum neighbours; fewer if fewer fire and have a similarity above 0.
        by: The measure of similarity.

    Raises:
        InputError: If directions are needed and no coder provides them.
    """
    row = find_neighbours(store, [latent], k, by).nearest[latent]
    return tuple(row[row >= 0].tolist())


def find_neighbours(store: ActivationStore, latents: Sequence[int], k: int, by: By) -> _Known:
    """Find the neighbours that are not yet known, in one pass over the store or the directions.

    Raises:
        InputError: If directions are needed and no coder provides them.
    """
    kinds = _known.setdefault(store, {})
    k = min(k, store.n_latents)
    known = kinds.get((k, by))
    if known is None:
        known = kinds[k, by] = _Known(store.n_latents, k)
    new = np.unique(np.asarray(latents, dtype=np.int64))
    new = new[~known.found[new]]
    if len(new):
        if by == "cooccurrence":
            known.nearest[new] = cooccurring(store, new, k)
        else:
            known.nearest[new] = aligned(_directions(store, by), new, k, store.firings > 0)
        known.found[new] = True
    return known


# --- by co-occurrence ---


def cooccurring(
    store: ActivationStore, latents: NDArray[np.int64], k: int, firings: int = _FIRINGS
) -> NDArray[np.int32]:
    """Return, per latent, those with the highest Jaccard index of firing tokens; ties by number.

    The index is the number of tokens on which both fire, divided by the number on which either fires. Latents that
    share no token are not neighbours. The time per latent is proportional to the firings of all latents on its tokens.

    Args:
        store: The activations.
        latents: The latents whose neighbours to find.
        k: Maximum neighbours of each.
        firings: Firings to hold in memory at a time.

    Returns:
        Numbers of neighbours, nearest first, -1 where there are fewer.  [latents, k]
    """
    by_token = _by_token(store, firings)
    found = np.full((len(latents), k), -1, dtype=np.int32)
    for row, latent in enumerate(latents.tolist()):
        common = by_token.shared(store.activations(latent)[0])
        common[latent] = 0
        other = np.flatnonzero(common)
        both = common[other]
        index = both / (store.firings[other] + store.firings[latent] - both)
        if len(other) > k:
            near = np.flatnonzero(index >= np.partition(index, len(index) - k)[len(index) - k])
            other, index = other[near], index[near]
        best = other[np.argsort(-index, kind="stable")[:k]]
        found[row, : len(best)] = best
    return found


class ByToken:
    """The latents that fire on each token: the store transposed into a temporary file beside it.

    Args:
        store: The activations, by latent.
        firings: Firings to transpose in memory at a time.
    """

    def __init__(self, store: ActivationStore, firings: int = _FIRINGS):
        self._n_latents = store.n_latents
        places = len(store.lengths) * store.length
        kind = np.uint16 if store.n_latents <= 1 << 16 else np.int32
        sizes = np.zeros(places, dtype=np.int64)
        with _scratch(store) as file:
            for low, high, latents, ends in _transposed(store, places, firings):
                sizes[low:high] = np.diff(ends)
                file.write(latents.astype(kind).data)
            file.flush()
            n = len(store.position)
            self._latents = np.asarray(np.memmap(file, kind, "r", shape=(n,))) if n else np.empty(0, dtype=kind)
        self._begins = np.concatenate([[0], np.cumsum(sizes)])

    def shared(self, position: NDArray[np.int64], block: int = 1 << 18) -> NDArray[np.int64]:
        """Return the number of these tokens on which each latent fires.  [n_latents]

        Args:
            position: The tokens, ascending.
            block: Approximate number of firings to count at a time.
        """
        counts = np.zeros(self._n_latents, dtype=np.int64)
        begins = self._begins[position]
        sizes = self._begins[position + 1] - begins
        ends = np.cumsum(sizes)
        low = 0
        while low < len(position):
            before = int(ends[low - 1]) if low else 0
            high = max(low + 1, int(np.searchsorted(ends, before + block, side="right")))
            some = slice(low, high)
            places = np.repeat(begins[some] - (ends[some] - sizes[some]) + before, sizes[some])
            places += np.arange(len(places))
            counts += np.bincount(self._latents[places], minlength=self._n_latents)
            low = high
        return counts


@lru_cache(maxsize=1)  # only one, because its file can be as large as the store
def _by_token(store: ActivationStore, firings: int) -> ByToken:
    return ByToken(store, firings)


def _scratch(store: ActivationStore) -> IO[bytes]:
    """Open an anonymous temporary file, in the store's folder if possible."""
    try:
        return tempfile.TemporaryFile(dir=store.path.parent)
    except OSError:  # the folder is not writable
        return tempfile.TemporaryFile()


def _transposed(
    store: ActivationStore, places: int, firings: int
) -> Iterator[tuple[int, int, NDArray[np.integer[Any]], NDArray[np.integer[Any]]]]:
    """Yield ranges of tokens, the latents that fire on them, and the index at which each token's latents end."""
    from scipy.sparse import csc_array

    position = np.asarray(store.position)
    step = max(1, places * firings // max(1, len(position)))  # tokens with about this many firings
    lows = np.arange(0, places, step)
    fires = np.flatnonzero(store.firings)
    cuts = np.empty((len(fires), len(lows) + 1), dtype=np.int64)  # where each latent's firings in each range begin
    cuts[:, -1] = store.indptr[fires + 1]
    for row, begin, end in zip(cuts, store.indptr[fires].tolist(), cuts[:, -1].tolist(), strict=True):
        row[:-1] = begin + np.searchsorted(position[begin:end], lows.astype(position.dtype))
    for n, low in enumerate(lows.tolist()):
        high = min(low + step, places)
        own = zip(cuts[:, n].tolist(), cuts[:, n + 1].tolist(), strict=True)
        rows = np.concatenate([position[:0], *(position[begin:end] for begin, end in own)])
        rows -= position.dtype.type(low)
        indptr = np.zeros(store.n_latents + 1, dtype=np.int32)
        indptr[fires + 1] = cuts[:, n + 1] - cuts[:, n]
        np.cumsum(indptr, out=indptr)
        ones = np.empty(len(rows), dtype=np.int8)  # values do not matter: only the indices are used
        tile = csc_array((ones, rows.astype(np.int32, copy=False), indptr), shape=(high - low, store.n_latents)).tocsr()
        yield low, high, tile.indices, tile.indptr


# --- by direction ---


class Directions(NamedTuple):
    """The directions of all latents, and their norms.

    Attributes:
        vectors: One direction per latent, in any precision; not a copy.  [n_latents, d]
        norms: Norms of the directions.  [n_latents] float32
    """

    vectors: Tensor
    norms: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Directions:
        """Compute the norms of directions.  vectors [n_latents, d]"""
        import torch

        norms = [tile.norm(dim=1) for tile in _tiles(vectors)]
        return cls(vectors, torch.cat(norms))


@lru_cache(maxsize=1)  # only one, because it holds a coder's weights
def _directions(store: ActivationStore, by: Literal["decoder", "encoder"]) -> Directions:
    if store.coder is None:
        raise InputError(f"neighbours by {by} require the coder's directions, but this source has no coder; {_INSTEAD}")
    coder = store.coder()
    vectors = coder.directions() if by == "decoder" else coder.encoder_directions()
    if vectors is None:
        why = (
            "neurons are orthogonal, so none has neighbours"
            if isinstance(coder, NeuronCoder)
            else f"a coder of type {coder.architecture!r} has no {by} directions"
        )
        raise InputError(f"neighbours by {by}: {why}; {_INSTEAD}")
    if len(vectors) != store.n_latents:
        raise InputError(
            f"neighbours by {by}: the coder has {len(vectors)} latents, the activations {store.n_latents}; {_INSTEAD}"
        )
    return Directions.of(vectors.detach())


_INSTEAD = "set `by: cooccurrence`"


def aligned(
    directions: Directions,
    latents: NDArray[np.int64],
    k: int,
    fires: NDArray[np.bool_],
    tile_bytes: int = _TILE_BYTES,
    cosines_bytes: int = _COSINES_BYTES,
) -> NDArray[np.int32]:
    """Return, per latent, those whose directions have the largest positive cosine with its own; ties by number.

    Matrix products in float32 select candidates for many latents at once. The candidates' cosines are then computed in
    float64 and rounded to six decimals, so the result depends neither on tiles nor on which latents are queried
    together.

    Args:
        directions: All directions.
        latents: The latents whose neighbours to find.
        k: Maximum neighbours of each.
        fires: Which latents may be neighbours.  [n_latents]
        tile_bytes: Size of a tile of directions.  [bytes of float32]
        cosines_bytes: Size of the cosines held at a time.  [bytes]

    Returns:
        Numbers of neighbours, nearest first, -1 where there are fewer.  [latents, k]
    """
    import torch

    vectors, norms = directions
    found = np.full((len(latents), k), -1, dtype=np.int32)
    tiny = torch.finfo(torch.float32).tiny
    silent = torch.from_numpy(~fires).to(vectors.device)
    together = max(1, cosines_bytes // (4 * len(vectors)))
    for begin in range(0, len(latents), together):
        some = torch.from_numpy(latents[begin : begin + together]).to(vectors.device)
        own = vectors[some].float().T
        cosine = torch.cat([tile @ own for tile in _tiles(vectors, tile_bytes)])
        cosine /= (norms[:, None] * norms[some]).clamp_min_(tiny)
        cosine[silent] = -1
        cosine[some, torch.arange(len(some), device=some.device)] = -1
        # Candidates include all within the margin of the k-th cosine, so that no tie is missed.
        least = cosine.topk(k, dim=0).values[-1].clamp_min_(0) - _MARGIN
        for row, latent in enumerate(some.tolist()):
            near = torch.nonzero(cosine[:, row] >= least[row])[:, 0]
            exact = _exact_cosines(vectors, near, latent, tile_bytes)
            other = near.cpu().numpy()
            allowed = fires[other] & (other != latent) & (exact > 0)
            other, exact = other[allowed], exact[allowed]
            best = other[np.argsort(-exact, kind="stable")[:k]]
            found[begin + row, : len(best)] = best
    return found


def _exact_cosines(vectors: Tensor, others: Tensor, latent: int, tile_bytes: int) -> NDArray[np.float64]:
    """Return the cosines of a latent's direction with those of other latents, to six decimals.  [others]"""
    one = vectors[latent].double()
    rows = max(1, tile_bytes // (8 * vectors.shape[1]))
    found = []
    for some in others.split(rows):
        directions = vectors[some].double()
        lengths = (directions.norm(dim=1) * one.norm()).clamp_min(1e-300)
        found.append(((directions * one).sum(dim=1) / lengths).cpu().numpy())
    return np.round(np.concatenate(found) if found else np.empty(0), 6)


def _tiles(vectors: Tensor, tile_bytes: int = _TILE_BYTES) -> Iterator[Tensor]:
    """Yield the rows as float32 tiles, copied only if they have another precision."""
    rows = max(1, tile_bytes // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield vectors[start : start + rows].float()
