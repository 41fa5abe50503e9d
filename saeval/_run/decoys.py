"""Draws wrong windows for a latent from the firings of one other latent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

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
    profile = searched.profile(shown[:: max(1, len(shown) // _COMPARED)])
    best: tuple[float, int, NDArray[np.int64]] | None = None
    compared = 0
    candidates = searched.candidates(rng)
    while compared < _TRIED and (some := list(islice(candidates, _TRIED - compared))):
        drawn = [(other, rng.permutation(usable)[: _OFFERED * wanted]) for other, usable in some]
        profiles = searched.profiles([(other, ids[:_COMPARED]) for other, ids in drawn])
        for (other, ids), found in zip(drawn, profiles, strict=True):
            if profile.overlap(found) > _SAME_TOKENS:
                continue
            distance = profile.distance(found) + max(0.0, 1 - len(ids) / wanted)
            if best is None or distance < best[0]:
                best = distance, other, ids
            compared += 1
    if best is None:
        return record
    _, other, ids = best
    latent = LatentId(record.latent.hookpoint, other)
    offered = searched.cut(other, ids)
    lent = list(islice(cycle(shown[i] for i in rng.permutation(len(shown))), min(wanted, len(offered))))
    return _with(record, store, latent, _alike(lent, offered))


class _Kinds(dict[str, tuple[int, bool, bool]]):
    """What a judge sees of a token: number of its text without spaces and case; does it begin a word, is it a sign."""

    def __missing__(self, token: str) -> tuple[int, bool, bool]:
        number = self._numbers.setdefault(token.strip().casefold(), len(self._numbers))
        self[token] = found = number, token[:1].isspace(), not any(map(str.isalnum, token))
        return found

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, int] = {}


class _Room:
    """What the searches of one store use again: kinds of tokens, and tables that are all False between two searches.

    Attributes:
        kinds: Kinds of tokens.
        known: Latents that could be decoys.
        fires: Place for positions at which a latent fires; None for a corpus that is too long.
        seen: Place for numbers of windows.
    """

    def __init__(self, store: ActivationStore, window: int):
        self.kinds = _Kinds()
        self.known = np.flatnonzero(store.firings >= _FEWEST)
        self.fires = np.zeros(store.tokens.size, dtype=np.bool_) if store.tokens.size <= _TABLE else None
        self.seen = np.zeros(store.tokens.size // window + 1, dtype=np.bool_)


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
        sides = (record.explain, record.score)
        seen = [e for side in sides for e in (*side.activating, *side.non_activating)]
        explain = (*record.explain.activating, *record.explain.non_activating)
        self._documents = [e.document for e in explain]
        tiles = (store.length - store.lead) // self.window
        places = [(e.context, *divmod(e.start - store.lead, self.window)) for e in seen]
        self._seen = np.array([context * tiles + tile for context, tile, rest in places if not rest], dtype=np.int64)
        self._positions = store.activations(self._latent)[0]
        self._hookpoint = record.latent.hookpoint
        self._moved = any((e.start - store.lead) % self.window for e in record.score.activating)
        self._room = _room(store, self.window)

    def _begin(self, other: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where another latent's windows begin: moved as this latent's are, or in their place if those are."""
        store = self._store
        return store.begin_around(other, ids, self.window) if self._moved else store.begin_of(ids, self.window)

    def cut(self, other: int, ids: NDArray[np.int64]) -> tuple[Example, ...]:
        """Return another latent's windows."""
        return self._store.examples_at(LatentId(self._hookpoint, other), self._begin(other, ids), self.window)

    def candidates(self, rng: np.random.Generator) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Draw latents, mostly such as fire about as often, with their windows that may be shown."""
        firings, known = self._store.firings, self._room.known
        known = known[known != self._latent]
        apart = np.abs(np.log(firings[known] / max(1, len(self._positions))))
        near = apart + rng.exponential(_SPREAD, len(apart))
        first = np.arange(len(near))
        if len(near) > _MOST:  # those that are sorted; in their order, so that equal ones stay in it
            first = np.flatnonzero(near <= np.partition(near, _MOST - 1)[_MOST - 1])
        drawn = first[np.argsort(near[first], kind="stable")][:_MOST]
        others = known[drawn].tolist()
        for begin in range(0, len(others), _TRIED):
            some = others[begin : begin + _TRIED]
            for other, ids in zip(some, self._usable(some), strict=True):
                if len(ids) >= _FEWEST:
                    yield other, ids

    def _usable(self, others: Sequence[int]) -> list[NDArray[np.int64]]:
        """Return the numbers of latents' windows that may be shown; none of one that does not fire independently."""
        store, window = self._store, self.window
        positions = [store.activations(other)[0] for other in others]
        sizes = np.array([len(p) for p in positions])
        position, owner = np.concatenate(positions), np.repeat(np.arange(len(others)), sizes)
        common = self._common(position)
        shared = np.bincount(owner[common], minlength=len(others))
        by_chance = sizes * len(self._positions) / max(1, store.n_tokens)
        fewer = np.minimum(sizes, len(self._positions))
        apart = shared <= np.maximum(2 * by_chance, _TOGETHER * fewer)

        tiles = (store.length - store.lead) // window
        context = position // store.length
        tile = (position - context * store.length - store.lead) // window
        whole = store.lead + (tile + 1) * window <= store.lengths[context]
        ids = context * tiles + tile
        if not whole.all():
            ids, owner, context, common = ids[whole], owner[whole], context[whole], common[whole]
        new = np.ones(len(ids), dtype=np.bool_)
        new[1:] = (ids[1:] != ids[:-1]) | (owner[1:] != owner[:-1])
        first = np.flatnonzero(new)
        together = np.logical_or.reduceat(common, first) if len(first) else common
        ids, owner, context = ids[first], owner[first], context[first]
        good = apart[owner] & ~together & store.knows(self._latent, context)
        explaining = np.zeros(int(store.documents.max(initial=-1)) + 1, dtype=np.bool_)
        explaining[self._documents] = True
        good &= ~explaining[store.documents[context]]
        seen = self._room.seen
        seen[self._seen] = True
        good &= ~seen[ids]
        seen[self._seen] = False
        ends = np.cumsum(np.bincount(owner[good], minlength=len(others)))
        return np.split(ids[good], ends[:-1])

    def _common(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether this latent fires at each position."""
        if (fires := self._room.fires) is None:
            at = np.searchsorted(self._positions, position)
            return np.asarray(self._positions.take(at, mode="clip") == position)
        fires[self._positions] = True
        found = np.asarray(fires[position])
        fires[self._positions] = False
        return found

    def profile(self, windows: Sequence[Example]) -> _Profile:
        """Return the profile of this latent's windows."""
        strengths = np.array([window.activations for window in windows])
        (found,) = _profiles([window.tokens for window in windows], strengths, [len(windows)], self._room.kinds)
        return found

    def profiles(self, drawn: Sequence[tuple[int, NDArray[np.int64]]]) -> list[_Profile]:
        """Return the profiles of other latents by their windows."""
        cut = [self._store.window_arrays(other, self._begin(other, ids), self.window) for other, ids in drawn]
        ids, strengths = (np.concatenate(parts) for parts in zip(*cut, strict=True))
        return _profiles(self._store.strings(ids), strengths, [len(ids) for _, ids in drawn], self._room.kinds)


class _Profile(NamedTuple):
    """What a judge can see of a latent's marks without knowing their meaning.

    Attributes:
        recurs: Share of pairs of windows that have a marked token in common.
        runs: Mean number of runs of marked tokens in a window.
        tokens: Mean number of marked tokens in a window.
        words: Share of marked tokens that begin a word.
        signs: Share of marked tokens without a letter or digit.
        shares: Share of each kind of token among the marked ones, in the order in which they come.
    """

    recurs: float
    runs: float
    tokens: float
    words: float
    signs: float
    shares: Mapping[int, float]

    def overlap(self, other: _Profile) -> float:
        """Return the part of the marked tokens that two latents have in common, 0 to 1."""
        return sum(min(share, other.shares.get(kind, 0.0)) for kind, share in self.shares.items())

    def distance(self, other: _Profile) -> float:
        """Return how differently the marks of two latents look."""
        many = abs(np.log(self.runs / other.runs)) + abs(np.log(self.tokens / other.tokens))
        kind = abs(self.words - other.words) + abs(self.signs - other.signs)
        return float(2 * abs(self.recurs - other.recurs) + many / 2 + kind)


def _profiles(
    tokens: Sequence[Sequence[str]], strengths: NDArray[np.float32], sizes: Sequence[int], kinds: _Kinds
) -> list[_Profile]:
    """Return the profiles of several latents.

    Args:
        tokens: Their windows, those of one latent after those of another.  [windows, window]
        strengths: Activations in them.  [windows, window]
        sizes: Windows of each latent.
        kinds: Kinds of tokens.
    """
    marks, runs = _marks(strengths)
    rows, columns = np.nonzero(marks)
    seen = [kinds[tokens[row][column]] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(rows, ends).tolist()
    run_ends = np.concatenate([[0], np.cumsum(runs.sum(axis=1))])[ends].tolist()
    profiles, begin, run_begin = [], 0, 0
    for first, size, end, run_end in zip(ends - sizes, sizes, cuts, run_ends, strict=True):
        part = seen[begin:end]
        n = len(part)
        kind_of = [kind for kind, _, _ in part]
        counts = Counter(kind_of)
        shares = {kind: count / n for kind, count in counts.items()}
        words, signs = (sum(flags) for flags in list(zip(*part, strict=True))[1:])
        profiles.append(
            _Profile(
                recurs=_recurrence(rows[begin:end] - first, kind_of, counts, size),
                runs=(run_end - run_begin) / size,
                tokens=n / size,
                words=words / n,
                signs=signs / n,
                shares=shares,
            )
        )
        begin, run_begin = end, run_end
    return profiles


def _recurrence(rows: NDArray[np.int64], kinds: Sequence[int], found: Iterable[int], windows: int) -> float:
    """Return the share of pairs of windows that have a token in common."""
    column = {kind: place for place, kind in enumerate(found)}
    has = np.zeros((windows, len(column)), dtype=np.float32)
    has[rows, [column[kind] for kind in kinds]] = 1
    pairs = np.count_nonzero(has @ has.T) - windows
    return float(pairs / max(1, windows * (windows - 1)))


def _marks(strength: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which tokens would be marked, and at which of them a run begins.  [windows, window] each"""
    marks = (strength > 0) & (strength >= 0.3 * strength.max(axis=1, keepdims=True))
    begins = marks.copy()
    begins[:, 1:] &= ~marks[:, :-1]
    return marks, begins


def _alike(wanted: Sequence[Example], offered: Sequence[Example]) -> tuple[Example, ...]:
    """Choose an offered window for each wanted one, matching number, length and place of marks."""
    from scipy.optimize import linear_sum_assignment

    left, right = _shape(wanted), _shape(offered)
    # A run or token more weighs as much as half a window between the places of the marks.
    cost = np.abs(left[:, None, :] - right[None, :, :]) @ np.array([1.0, 1.0, 2.0, 2.0])
    _, chosen = linear_sum_assignment(cost)
    return tuple(offered[i] for i in chosen)


def _shape(windows: Sequence[Example]) -> NDArray[np.float64]:
    """Return runs, tokens, and the places of the first and last mark as shares of the window.  [windows, 4]"""
    marks, runs = _marks(np.array([window.activations for window in windows]))
    size = marks.shape[1]
    first, last = marks.argmax(axis=1) / size, 1 - marks[:, ::-1].argmax(axis=1) / size
    return np.stack([runs.sum(axis=1), marks.sum(axis=1), first, last], axis=1)
