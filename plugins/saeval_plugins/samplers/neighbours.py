"""Draws windows that activate a latent's neighbours, and finds the neighbours of many latents in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple
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
_MARGIN = 1e-3  # more than float32, or TF32, changes a cosine by
_FIRINGS = 1 << 22  # of the store, multiplied at a time
_TOGETHER, _THEIR_FIRINGS = 2048, 1 << 24  # latents, and their firings, that share a pass over the store


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

    def prepare(self, store: ActivationStore, latents: Sequence[int]) -> None:
        """Find the neighbours of these latents together."""
        find_neighbours(store, latents, self.k, self.by)

    def draw(self, wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw from each neighbour's windows in turn."""
        store, latent, window, n, keep, _ = wanted
        active = store.windows(latent, window).ids
        queues = []
        for other in neighbours(store, latent, self.k, self.by) if n else ():
            ids = np.setdiff1d(store.windows(other, window).ids, active, assume_unique=True)
            queues.append(rng.permutation(ids[keep(ids)])[:n])
        return in_turn(queues, n)


# --- what is known of a store ---


class _Known:
    """Neighbours found so far: a few bytes per latent, so that each step of a run can draw again without a search."""

    def __init__(self, n_latents: int, k: int):
        self.found = np.zeros(n_latents, dtype=np.bool_)
        self.nearest = np.zeros((n_latents, k), dtype=np.int32)  # -1 where there are fewer


_known: WeakKeyDictionary[ActivationStore, dict[tuple[int, By], _Known]] = WeakKeyDictionary()


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
    row = find_neighbours(store, [latent], k, by).nearest[latent]
    return tuple(row[row >= 0].tolist())


def find_neighbours(store: ActivationStore, latents: Sequence[int], k: int, by: By) -> _Known:
    """Find the neighbours of latents that are not known yet, in one pass over the store or the directions.

    Raises:
        InputError: If it takes directions and there is no coder that has them.
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


class _Nearest:
    """The k most similar latents of each of many, among those seen so far.

    Args:
        latents: How many latents neighbours are wanted of.
        k: Neighbours of each.
    """

    def __init__(self, latents: int, k: int):
        self._of = np.empty(0, dtype=np.int64)
        self._other = np.empty(0, dtype=np.int64)
        self._similarity = np.empty(0)
        self._k = k
        self._least = np.zeros(latents)  # what a further one has to exceed

    def add(self, of: NDArray[np.int64], other: NDArray[np.int64], similarity: NDArray[np.float64]) -> None:
        """Take pairs; a call's `other` are all larger than those of the calls before."""
        better = similarity > self._least[of]
        of = np.concatenate([self._of, of[better]])
        other = np.concatenate([self._other, other[better]])
        similarity = np.concatenate([self._similarity, similarity[better]])
        order = np.lexsort((other, -similarity, of))
        of = of[order]
        rank = np.arange(len(of)) - np.searchsorted(of, of)
        order = order[rank < self._k]
        last = rank[rank < self._k] == self._k - 1
        self._of, self._other, self._similarity = of[rank < self._k], other[order], similarity[order]
        self._least[self._of[last]] = self._similarity[last]

    def table(self) -> NDArray[np.int32]:
        """Return each latent's neighbours, nearest first, -1 where there are fewer.  [latents, k]"""
        found = np.full((len(self._least), self._k), -1, dtype=np.int32)
        found[self._of, np.arange(len(self._of)) - np.searchsorted(self._of, self._of)] = self._other
        return found


# --- by co-occurrence ---


def cooccurring(
    store: ActivationStore, latents: NDArray[np.int64], k: int, firings: int = _FIRINGS
) -> NDArray[np.int32]:
    """Return the latents that share most tokens with each of these: by the Jaccard index, ties by number.

    The index is the number of tokens on which both fire over that of tokens on which either does. Latents that share
    no token are no neighbours.

    Args:
        store: The activations.
        latents: The latents asked about.
        k: Neighbours of each.
        firings: Firings of the store to multiply at a time.

    Returns:
        Numbers of neighbours, nearest first, -1 where there are fewer.  [latents, k]
    """
    found = [_shared(store, some, k, firings) for some in _sharing_a_pass(store, latents)]
    return np.concatenate(found) if found else np.empty((0, k), dtype=np.int32)


def _sharing_a_pass(store: ActivationStore, latents: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut latents into groups whose firings fit into memory together."""
    begin, held = 0, 0
    for at, n in enumerate(store.firings[latents].tolist()):
        if at > begin and (at - begin == _TOGETHER or held + n > _THEIR_FIRINGS):
            yield latents[begin:at]
            begin, held = at, 0
        held += n
    if begin < len(latents):
        yield latents[begin:]


def _shared(store: ActivationStore, latents: NDArray[np.int64], k: int, firings: int) -> NDArray[np.int32]:
    """Do this for latents whose firings fit into memory: one sparse product, the store a tile of latents at a time."""
    from scipy.sparse import csc_array, csr_array

    places = len(store.lengths) * store.length
    index = np.int32 if places < 2**31 else np.int64  # of both factors; positions need no copy then
    own = [store.activations(int(latent))[0] for latent in latents]
    ends = np.cumsum([0, *map(len, own)])
    fire = np.ones(max(firings, int(ends[-1])), dtype=np.int32)
    columns = (fire[: ends[-1]], np.concatenate(own).astype(index), ends.astype(index))
    theirs = csc_array(columns, shape=(places, len(latents))).tocsr()
    nearest, position, sizes = _Nearest(len(latents), k), np.asarray(store.position), store.firings
    low = 0
    while low < store.n_latents:
        begin = int(store.indptr[low])
        high = max(low + 1, int(np.searchsorted(store.indptr, begin + firings, side="right")) - 1)
        ends = store.indptr[low : high + 1] - begin
        at = position[begin : begin + int(ends[-1])]
        at = at.view(np.int32) if at.dtype == np.uint32 and index is np.int32 else at.astype(index)
        if len(at) > len(fire):  # one latent alone can have more
            fire = np.ones(len(at), dtype=np.int32)
        tile = csr_array((fire[: len(at)], at, ends.astype(index)), shape=(high - low, places))
        common = (tile @ theirs).tocoo()
        other, of = common.row.astype(np.int64) + low, common.col.astype(np.int64)
        different = other != latents[of]
        other, of, both = other[different], of[different], common.data[different].astype(np.int64)
        nearest.add(of, other, both / (sizes[other] + sizes[latents[of]] - both))
        low = high
    return nearest.table()


# --- by direction ---


class Directions(NamedTuple):
    """The directions of all latents, as the coder holds them, and their lengths.

    Attributes:
        vectors: One direction per latent, in any precision; not a copy.  [n_latents, d]
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


def aligned(
    directions: Directions,
    latents: NDArray[np.int64],
    k: int,
    fires: NDArray[np.bool_],
    tile_bytes: int = _TILE_BYTES,
    cosines_bytes: int = _COSINES_BYTES,
) -> NDArray[np.int32]:
    """Return the latents whose directions have the largest cosine with each of these, above 0, ties by number.

    Cosines in float32, of many latents in one product, choose candidates; their cosines are then computed in float64
    and rounded to six decimals, so the result depends neither on tiles nor on what is asked about together.

    Args:
        directions: All directions.
        latents: The latents asked about.
        k: Neighbours of each.
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
        # All within the margin of the last one wanted, so that no equal is missed.
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
    """Return the cosines of a latent's direction and some others', to six decimals.  [others]"""
    one = vectors[latent].double()
    rows = max(1, tile_bytes // (8 * vectors.shape[1]))
    found = []
    for some in others.split(rows):
        directions = vectors[some].double()
        lengths = (directions.norm(dim=1) * one.norm()).clamp_min(1e-300)
        found.append(((directions * one).sum(dim=1) / lengths).cpu().numpy())
    return np.round(np.concatenate(found) if found else np.empty(0), 6)


def _tiles(vectors: Tensor, tile_bytes: int = _TILE_BYTES) -> Iterator[Tensor]:
    """Yield the rows as float32, a tile at a time; a copy only of those that are in another precision."""
    rows = max(1, tile_bytes // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield vectors[start : start + rows].float()
