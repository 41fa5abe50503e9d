"""Draws wrong windows for a latent from the firings of one other latent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from saeval._run.mark_profiles import Kinds, Profiles, marked, profile_of, profiles_of
from saeval.records import Example, Examples, LatentId, LatentRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from saeval.activations import ActivationStore

_FEWEST = 5
"""A latent with fewer windows left than this is no decoy."""

_TRIED = 64  # latents compared with the one at hand
_MOST = 1000  # latents tried to find so many: dictionaries may hold hundreds of copies of one latent
_SPREAD = 1.0  # of what is added to log firings in drawing them
_COMPARED = 32  # windows that each is compared by
_OFFERED = 4  # windows to choose from, for each one wanted
_SAME_TOKENS = 0.25  # most that the tokens which both fire on may make up
_TOGETHER = 0.02  # share of the rarer latent's firings that may fall on the other's, where chance gives less
_TABLE = 1 << 28  # tokens of the longest corpus for which a table of them is made


class Decoys:
    """Gives records their decoys; each is drawn once, though records are made again for every step.

    Args:
        store: The activations that records are cut from.
    """

    def __init__(self, store: ActivationStore):
        self._store = store
        self._places: dict[int, tuple[int, bytes] | None] = {}  # by latent: the other one, and where its windows begin

    def __call__(self, record: LatentRecord, rng: np.random.Generator) -> LatentRecord:
        """Return the record as `with_decoy` does."""
        latent, length = record.latent.index, self._store.length
        if latent not in self._places:
            found = with_decoy(record, self._store, rng)
            decoy = found.score.decoy
            at = [e.context * length + e.start for e in decoy.activating] if decoy else []
            places = np.array(at, dtype=self._store.position.dtype).tobytes()
            self._places[latent] = (decoy.latent.index, places) if decoy else None
            return found
        if (known := self._places[latent]) is None:
            return record
        other = LatentId(record.latent.hookpoint, known[0])
        begins = np.frombuffer(known[1], dtype=self._store.position.dtype).astype(np.int64)
        window = len(record.score.activating[0].tokens)
        return _with(record, self._store, other, self._store.examples_at(other, begins, window))


def _with(record: LatentRecord, store: ActivationStore, other: LatentId, windows: tuple[Example, ...]) -> LatentRecord:
    maximum = float(store.activations(other.index)[1].max())
    decoy = Examples(other, windows, (), maximum)
    return replace(record, score=replace(record.score, decoy=decoy))


def with_decoy(record: LatentRecord, store: ActivationStore, rng: np.random.Generator) -> LatentRecord:
    """Return the record with the windows of one other latent beside those that score it.

    The other latent fires nearly independently of this one, about as often and on other tokens. Of 64 such latents,
    drawn at random, it is the one whose firing tokens recur from window to window most nearly as this latent's do, and
    look most like them (words, parts of words or signs). Of its windows those are taken whose firing tokens are as
    many, as long and in the same places as in this latent's windows. None comes from a document that explains this
    latent, and in none do both fire on the same token; otherwise this latent is free to fire there, as the other one is
    in this latent's windows. So neither the text nor the marks say which of the two latents is meant: only an
    explanation does.

    Args:
        record: The latent's windows.
        store: The activations they were cut from.
        rng: Source of the draw.

    Returns:
        The record; unchanged where the store has no such latent.
    """
    shown = record.score.activating
    wanted = len(record.score.non_activating)
    if not shown or not wanted:
        return record
    searched = _Search(store, record)
    profile = profile_of(shown[:: max(1, len(shown) // _COMPARED)], searched.kinds)
    best: tuple[float, _Windows] | None = None
    compared = 0
    candidates = searched.candidates(rng)
    while compared < _TRIED and (some := list(islice(candidates, _TRIED - compared))):
        drawn = [usable.take(rng.permutation(len(usable.ids))[: _OFFERED * wanted]) for usable in some]
        profiles = searched.profiles([windows.take(slice(_COMPARED)) for windows in drawn])
        other = np.flatnonzero(~(profile.overlap(profiles) > _SAME_TOKENS))
        if not len(other):
            continue
        few = [max(0.0, 1 - len(windows.ids) / wanted) for windows in drawn]
        distance = profile.distance(profiles)[other] + np.array(few)[other]
        nearest = int(np.argmin(distance))
        if best is None or distance[nearest] < best[0]:
            best = float(distance[nearest]), drawn[other[nearest]]
        compared += len(other)
    if best is None:
        return record
    _, offered = best
    latent, begins = LatentId(record.latent.hookpoint, offered.latent), searched.begins(offered)
    order = rng.permutation(len(shown))
    lent = order[np.arange(min(wanted, len(begins))) % len(order)]
    chosen = _alike(
        _shape(np.array([window.activations for window in shown]))[lent],
        _shape(store.window_arrays(latent.index, begins, searched.window)[1]),
    )
    return _with(record, store, latent, store.examples_at(latent, begins[chosen], searched.window))


class _Windows(NamedTuple):
    """Windows of a latent.

    Attributes:
        latent: The latent.
        ids: Their numbers.  [windows]
        low: Where each one's firings begin, from `base` on.  [windows]
        high: Where they end.  [windows]
        base: A place among the firings of the store.
    """

    latent: int
    ids: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    base: int

    def take(self, which: NDArray[np.int64] | slice) -> _Windows:
        """Return some of them."""
        return self._replace(ids=self.ids[which], low=self.low[which], high=self.high[which])


class _Room:
    """What the searches of one store use again: kinds of tokens, and tables that are all False between two searches.

    Attributes:
        kinds: Kinds of tokens.
        known: Latents that could be decoys.
        fires: Place for positions at which a latent fires; None for a corpus that is too long.
        barred: Place for windows that may not be shown.
    """

    def __init__(self, store: ActivationStore, window: int):
        self.kinds = Kinds(store)
        self.known = np.flatnonzero(store.firings >= _FEWEST)
        self.fires = np.zeros(store.tokens.size, dtype=np.bool_) if store.tokens.size <= _TABLE else None
        self._tiles = (store.length - store.lead) // window
        self.barred = np.zeros(len(store.documents) * self._tiles, dtype=np.bool_)
        self._contexts = np.argsort(store.documents, kind="stable")
        self._documents = np.asarray(store.documents)[self._contexts]

    def windows_of(self, documents: Sequence[int]) -> NDArray[np.int64]:
        """Return the numbers of all windows of documents."""
        wanted = np.unique(documents)
        begins, ends = (np.searchsorted(self._documents, wanted, side=side) for side in ("left", "right"))
        parts = [self._contexts[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        contexts = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return (contexts[:, None] * self._tiles + np.arange(self._tiles)).reshape(-1)


_ROOMS: WeakKeyDictionary[ActivationStore, dict[int, _Room]] = WeakKeyDictionary()


def _room(store: ActivationStore, window: int) -> _Room:
    rooms = _ROOMS.setdefault(store, {})
    if window not in rooms:
        rooms[window] = _Room(store, window)
    return rooms[window]


class _Search:
    """The latents of a store that could be decoys, and their windows."""

    def __init__(self, store: ActivationStore, record: LatentRecord):
        self._store, self._latent = store, record.latent.index
        self.window = len(record.score.activating[0].tokens)
        self._positions = store.activations(self._latent)[0]
        self._hookpoint = record.latent.hookpoint
        self._moved = any((e.start - store.lead) % self.window for e in record.score.activating)
        self._room = _room(store, self.window)
        explain = (*record.explain.activating, *record.explain.non_activating)
        tiles = (store.length - store.lead) // self.window
        scored = (*record.score.activating, *record.score.non_activating)
        places = [(e.context, *divmod(e.start - store.lead, self.window)) for e in (*explain, *scored)]
        seen = np.array([context * tiles + tile for context, tile, rest in places if not rest], dtype=np.int64)
        self._barred = np.concatenate([seen, self._room.windows_of([e.document for e in explain])])

    @property
    def kinds(self) -> Kinds:
        """Kinds of tokens."""
        return self._room.kinds

    def begins(self, windows: _Windows) -> NDArray[np.int64]:
        """Return where another latent's windows begin: moved as this latent's are, or in their place if those are."""
        store = self._store
        if self._moved:
            return store.begin_around(windows.latent, windows.ids, self.window)
        return store.begin_of(windows.ids, self.window)

    def candidates(self, rng: np.random.Generator) -> Iterator[_Windows]:
        """Draw latents, mostly such as fire about as often, with their windows that may be shown."""
        firings, known = self._store.firings, self._room.known
        known = known[known != self._latent]
        apart = np.abs(np.log(firings[known] / max(1, len(self._positions))))
        near = apart + rng.exponential(_SPREAD, len(apart))
        first = np.arange(len(near))
        if len(near) > _MOST:  # those that are sorted; in their order, so that equal ones stay in it
            first = np.flatnonzero(near <= np.partition(near, _MOST - 1)[_MOST - 1])
        others = known[first[np.argsort(near[first], kind="stable")][:_MOST]]
        for begin in range(0, len(others), _TRIED):
            yield from (usable for usable in self._usable(others[begin : begin + _TRIED]) if len(usable.ids) >= _FEWEST)

    def _usable(self, others: NDArray[np.int64]) -> Iterator[_Windows]:
        """Yield latents' windows that may be shown; none of one that does not fire independently."""
        store, window = self._store, self.window
        position, ends = store.firings_of(others)
        sizes = np.diff(ends, prepend=0)
        common = np.flatnonzero(self._common(position))
        shared = np.bincount(np.searchsorted(ends, common, side="right"), minlength=len(others))
        by_chance = sizes * len(self._positions) / max(1, store.n_tokens)
        fewer = np.minimum(sizes, len(self._positions))
        apart = shared <= np.maximum(2 * by_chance, _TOGETHER * fewer)

        numbers, whole = store.window_of(position, window)
        begins = ends - sizes
        new = np.ones(len(numbers), dtype=np.bool_)
        new[1:] = numbers[1:] != numbers[:-1]
        if whole is not None:  # the rest of a context has the number of the next one's first window
            new[1:] |= whole[1:] != whole[:-1]
        new[begins[sizes > 0]] = True
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(numbers))
        ids = numbers[first].astype(np.int64)
        good = self._allowed(ids)
        if whole is not None:
            good &= whole[first]
        good[np.searchsorted(first, common, side="right") - 1] = False
        chosen = np.flatnonzero(good)
        ids, first, last = ids[chosen], first[chosen], last[chosen]
        edges = np.searchsorted(first, [*begins, len(position)]).tolist()
        bases = (store.indptr[others] - begins).tolist()
        for k, latent in enumerate(others.tolist()):
            part = slice(edges[k], edges[k + 1] if apart[k] else edges[k])
            yield _Windows(latent, ids[part], first[part], last[part], bases[k])

    def _allowed(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which windows are none of this latent's, nor of a document that explains it, and are known."""
        barred = self._room.barred
        barred[self._barred] = True
        # The rest of the last context has a number beyond all; it is not whole.
        allowed = ~barred.take(ids, mode="clip")
        barred[self._barred] = False
        if self._store.latents is not None or not self._store.holds_whole_text:
            allowed &= self._store.knows(self._latent, self._store.context_of(ids, self.window))
        return np.asarray(allowed)

    def _common(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether this latent fires at each position."""
        if (fires := self._room.fires) is None:
            at = np.searchsorted(self._positions, position)
            return np.asarray(self._positions.take(at, mode="clip") == position)
        fires[self._positions] = True
        found = np.asarray(fires[position])
        fires[self._positions] = False
        return found

    def profiles(self, drawn: Sequence[_Windows]) -> Profiles:
        """Return the profiles of other latents by their windows."""
        if self._moved:
            begins = np.concatenate([self.begins(windows) for windows in drawn])
        else:
            begins = self._store.begin_of(np.concatenate([windows.ids for windows in drawn]), self.window)
        low = np.concatenate([windows.low + windows.base for windows in drawn])
        high = np.concatenate([windows.high + windows.base for windows in drawn])
        owner = np.repeat(np.arange(len(drawn)), [len(windows.ids) for windows in drawn])
        return profiles_of(self._store, (low, high), begins, owner, self.kinds, self.window)


def _alike(wanted: NDArray[np.float64], offered: NDArray[np.float64]) -> NDArray[np.intp]:
    """Choose an offered window for each wanted one, matching number, length and place of marks; see `_shape`."""
    from scipy.optimize import linear_sum_assignment

    # A run or token more weighs as much as half a window between the places of the marks.
    cost = np.abs(wanted[:, None, :] - offered[None, :, :]) @ np.array([1.0, 1.0, 2.0, 2.0])
    return np.asarray(linear_sum_assignment(cost)[1])


def _shape(strengths: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return runs, tokens, and the places of the first and last mark as shares of the window.  [windows, 4]"""
    marks, runs = marked(strengths)
    size = marks.shape[1]
    first, last = marks.argmax(axis=1) / size, 1 - marks[:, ::-1].argmax(axis=1) / size
    return np.stack([runs.sum(axis=1), marks.sum(axis=1), first, last], axis=1)
