"""Draws decoy windows for a latent: windows in which one other, similar latent fires."""

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
"""Minimum number of usable windows for a decoy latent."""

_TRIED = 64  # number of candidates compared with the latent
_MOST = 1000  # maximum latents tried to find the candidates: a dictionary may have hundreds of copies of a latent
_SPREAD = 1.0  # scale of the random term added to the difference of log firings
_COMPARED = 32  # number of windows compared per latent
_OFFERED = 4  # windows to choose from per window needed
_SAME_TOKENS = 0.25  # largest overlap of the firing tokens of both latents
_TOGETHER = 0.02  # largest share of the rarer latent's firings that may coincide, if chance gives less
_TABLE = 1 << 28  # largest corpus, in tokens, for which a lookup table is made


class Decoys:
    """Adds decoys to records; each decoy is drawn once, although records are rebuilt for every step.

    Args:
        store: The activation store of the records.
        threshold: Tokens with at least this share of the window's maximum activation are marked.
    """

    def __init__(self, store: ActivationStore, threshold: float = 0.3):
        self._store, self._threshold = store, threshold
        self._places: dict[
            int, tuple[int, bytes] | None
        ] = {}  # by latent: the decoy latent, and the starts of its windows

    def __call__(self, record: LatentRecord, rng: np.random.Generator) -> LatentRecord:
        """Return the record with its decoy; see `with_decoy`."""
        latent, length = record.latent.index, self._store.length
        if latent not in self._places:
            found = with_decoy(record, self._store, rng, self._threshold)
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


def with_decoy(
    record: LatentRecord, store: ActivationStore, rng: np.random.Generator, threshold: float = 0.3
) -> LatentRecord:
    """Return the record with windows of a decoy latent for scoring.

    The decoy latent fires nearly independently of this latent, about as often, and on other tokens. Of 64 such latents,
    drawn at random, it is the one whose firing tokens are most similar in how often they recur between windows and in
    kind (words, parts of words or punctuation). The windows chosen have firing tokens that match those in this latent's
    windows in number, length and position. No window comes from a document that explains this latent, and in none do
    both latents fire on the same token; apart from that, this latent may fire there, as the decoy latent may in this
    latent's windows. So neither text nor marks reveal which of the two latents is meant: only an explanation does.

    Args:
        record: The latent's windows.
        store: The activation store.
        rng: Random generator.
        threshold: Tokens with at least this share of the window's maximum activation are marked.

    Returns:
        The record; unchanged if the store has no such latent, or if this latent fires at the centre of each window
        (`saebench` cuts them so), because marks at the centre would reveal that they are right.
    """
    shown = record.score.activating
    wanted = len(record.score.non_activating)
    if not shown or not wanted or all(window.activations[len(window.tokens) // 2] for window in shown):
        return record
    searched = _Search(store, record)
    profile = profile_of(shown[:: max(1, len(shown) // _COMPARED)], searched.kinds, threshold)
    best: tuple[float, _Windows] | None = None
    compared = 0
    candidates = searched.candidates(rng)
    while compared < _TRIED and (some := list(islice(candidates, _TRIED - compared))):
        drawn = [usable.take(rng.permutation(len(usable.ids))[: _OFFERED * wanted]) for usable in some]
        profiles = searched.profiles([windows.take(slice(_COMPARED)) for windows in drawn], threshold)
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
    latent, begins = LatentId(record.latent.hookpoint, offered.latent), searched.begins([offered])
    order = rng.permutation(len(shown))
    lent = order[np.arange(min(wanted, len(begins))) % len(order)]
    chosen = _match_windows(
        _shape(np.array([window.activations for window in shown]), threshold)[lent],
        _shape(store.window_arrays(latent.index, begins, searched.window)[1], threshold),
    )
    return _with(record, store, latent, store.examples_at(latent, begins[chosen], searched.window))


class _Windows(NamedTuple):
    """Windows of a latent.

    Attributes:
        latent: The latent.
        ids: Window numbers.  [windows]
        low: Start of each window's firings, relative to `base`.  [windows]
        high: End of each window's firings, relative to `base`.  [windows]
        base: Index into the store's firings.
    """

    latent: int
    ids: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    base: int

    def take(self, which: NDArray[np.int64] | slice) -> _Windows:
        """Return a subset of the windows."""
        return self._replace(ids=self.ids[which], low=self.low[which], high=self.high[which])


class _Scratch:
    """Data that searches in one store share: kinds of tokens, and tables that are all False between searches.

    Attributes:
        kinds: Kinds of tokens.
        known: Latents that could be decoys.
        fires: Table of positions at which a latent fires; None if the corpus is too long.
        barred: Table of windows that must not be used.
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
        """Return the numbers of all windows in some documents."""
        wanted = np.unique(documents)
        begins, ends = (np.searchsorted(self._documents, wanted, side=side) for side in ("left", "right"))
        parts = [self._contexts[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        contexts = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return (contexts[:, None] * self._tiles + np.arange(self._tiles)).reshape(-1)


_SCRATCH: WeakKeyDictionary[ActivationStore, dict[int, _Scratch]] = WeakKeyDictionary()


def _scratch_of(store: ActivationStore, window: int) -> _Scratch:
    by_window = _SCRATCH.setdefault(store, {})
    if window not in by_window:
        by_window[window] = _Scratch(store, window)
    return by_window[window]


class _Search:
    """Finds the latents of a store that could be decoys for a record, and their windows."""

    def __init__(self, store: ActivationStore, record: LatentRecord):
        self._store, self._latent = store, record.latent.index
        self.window = len(record.score.activating[0].tokens)
        self._positions = store.activations(self._latent)[0]
        self._hookpoint = record.latent.hookpoint
        self._moved = any((e.start - store.lead) % self.window for e in record.score.activating)
        self._scratch = _scratch_of(store, self.window)
        explain = (*record.explain.activating, *record.explain.non_activating)
        tiles = (store.length - store.lead) // self.window
        scored = (*record.score.activating, *record.score.non_activating)
        places = [(e.context, (e.start - store.lead + self.window // 2) // self.window) for e in (*explain, *scored)]
        seen = np.array([context * tiles + min(tile, tiles - 1) for context, tile in places], dtype=np.int64)  # nearest
        self._barred = np.concatenate([seen, self._scratch.windows_of([e.document for e in explain])])

    @property
    def kinds(self) -> Kinds:
        """Kinds of tokens."""
        return self._scratch.kinds

    def begins(self, drawn: Sequence[_Windows]) -> NDArray[np.int64]:
        """Return the starts of other latents' windows, shifted by `begins_around` if this latent's windows are."""
        ids = np.concatenate([windows.ids for windows in drawn])
        if not self._moved:
            return self._store.begin_of(ids, self.window)
        latents = np.repeat([windows.latent for windows in drawn], [len(windows.ids) for windows in drawn])
        return self._store.begins_around(latents, ids, _firings(drawn), self.window)

    def candidates(self, rng: np.random.Generator) -> Iterator[_Windows]:
        """Draw latents, preferring those that fire about as often, with their usable windows."""
        firings, known = self._store.firings, self._scratch.known
        known = known[known != self._latent]
        apart = np.abs(np.log(firings[known] / max(1, len(self._positions))))
        near = apart + rng.exponential(_SPREAD, len(apart))
        first = np.arange(len(near))
        if len(near) > _MOST:  # only these are sorted; kept in order, so that ties are stable
            first = np.flatnonzero(near <= np.partition(near, _MOST - 1)[_MOST - 1])
        others = known[first[np.argsort(near[first], kind="stable")][:_MOST]]
        for begin in range(0, len(others), _TRIED):
            yield from (usable for usable in self._usable(others[begin : begin + _TRIED]) if len(usable.ids) >= _FEWEST)

    def _usable(self, others: NDArray[np.int64]) -> Iterator[_Windows]:
        """Yield the usable windows of latents; empty for latents that do not fire independently."""
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
        if whole is not None:  # the remainder of a context has the number of the next context's first window
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
        """Return which windows are known, not used by this latent, and not in a document that explains it."""
        barred = self._scratch.barred
        barred[self._barred] = True
        # The remainder of the last context has a number beyond the table; it is not a whole window.
        allowed = ~barred.take(ids, mode="clip")
        barred[self._barred] = False
        if self._store.latents is not None or not self._store.holds_whole_text:
            allowed &= self._store.knows(self._latent, self._store.context_of(ids, self.window))
        return np.asarray(allowed)

    def _common(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether this latent fires at each position."""
        if (fires := self._scratch.fires) is None:
            at = np.searchsorted(self._positions, position)
            return np.asarray(self._positions.take(at, mode="clip") == position)
        fires[self._positions] = True
        found = np.asarray(fires[position])
        fires[self._positions] = False
        return found

    def profiles(self, drawn: Sequence[_Windows], threshold: float) -> Profiles:
        """Return the profiles of other latents, from their windows."""
        owner = np.repeat(np.arange(len(drawn)), [len(windows.ids) for windows in drawn])
        return profiles_of(self._store, _firings(drawn), self.begins(drawn), owner, self.kinds, self.window, threshold)


def _firings(drawn: Sequence[_Windows]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and end of each window's firings in the store's arrays."""
    low = np.concatenate([windows.low + windows.base for windows in drawn])
    high = np.concatenate([windows.high + windows.base for windows in drawn])
    return low, high


def _match_windows(wanted: NDArray[np.float64], offered: NDArray[np.float64]) -> NDArray[np.intp]:
    """Choose an offered window for each wanted one, matching number, length and place of marks; see `_shape`."""
    from scipy.optimize import linear_sum_assignment

    # One more run or token has the same cost as a distance of half a window between marks.
    cost = np.abs(wanted[:, None, :] - offered[None, :, :]) @ np.array([1.0, 1.0, 2.0, 2.0])
    return np.asarray(linear_sum_assignment(cost)[1])


def _shape(strengths: NDArray[np.float32], threshold: float) -> NDArray[np.float64]:
    """Return the numbers of runs and tokens, and the relative positions of first and last mark.  [windows, 4]"""
    marks, runs = marked(strengths, threshold)
    size = marks.shape[1]
    first, last = marks.argmax(axis=1) / size, 1 - marks[:, ::-1].argmax(axis=1) / size
    return np.stack([runs.sum(axis=1), marks.sum(axis=1), first, last], axis=1)
