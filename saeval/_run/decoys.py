"""Draws decoy windows for a latent: windows in which one other, similar latent fires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from saeval._run.mark_profiles import Kinds, Profiles, marks_in, marks_of, profile_of, profiles_of, shapes
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
    others = searched.candidates(rng)
    while compared < _TRIED and len(others):
        some, others = np.split(others, [_TRIED - compared])
        usable = searched.usable(some)
        drawn = [rng.permutation(n)[: _OFFERED * wanted] for n in usable.counts.tolist()]
        if not drawn:
            continue
        profiles = searched.profiles(usable.look_up([ranks[:_COMPARED] for ranks in drawn]), threshold)
        other = np.flatnonzero(~(profile.overlap(profiles) > _SAME_TOKENS))
        if not len(other):
            continue
        few = np.maximum(0.0, 1 - usable.counts / wanted)
        distance = (profile.distance(profiles) + few)[other]
        nearest = int(np.argmin(distance))
        if best is None or distance[nearest] < best[0]:
            k = int(other[nearest])
            best = float(distance[nearest]), usable.look_up([drawn[k]], first=k)
        compared += len(other)
    if best is None:
        return record
    offered = best[1]
    latent, begins = LatentId(record.latent.hookpoint, int(offered.latents[0])), searched.begins(offered)
    order = rng.permutation(len(shown))
    lent = order[np.arange(min(wanted, len(begins))) % len(order)]
    rows, columns = marks_in(shown, threshold)
    ours = shapes(rows, columns, len(shown), searched.window)
    rows, positions = marks_of(store, (offered.low, offered.high), threshold)
    theirs = shapes(rows, positions - begins[rows], len(begins), searched.window)
    chosen = _match_windows(ours[:, lent], theirs)
    return _with(record, store, latent, store.examples_at(latent, begins[chosen], searched.window))


class _Windows(NamedTuple):
    """Windows of one or more latents.

    Attributes:
        latents: Latent of each.  [windows], like the others
        ids: Window numbers.
        low: Start of each window's firings in the store's arrays.
        high: End of each window's firings in the store's arrays.
    """

    latents: NDArray[np.int64]
    ids: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]


class _Usable(NamedTuple):
    """The usable windows of several latents; only those that are drawn are looked up.

    Attributes:
        latents: The latents.
        counts: Number of usable windows of each.  [latents]
        begins: Start of each latent's usable windows in `chosen`.  [latents]
        bases: Index into the store's firings of the firing that `numbers` would begin with.  [latents]
        chosen: Usable windows, as indices into `first`.
        first: Start of each window's firings in `numbers`, and the end of the last one's.
        numbers: Window number of each firing.
    """

    latents: NDArray[np.int64]
    counts: NDArray[np.int64]
    begins: NDArray[np.int64]
    bases: NDArray[np.int64]
    chosen: NDArray[np.int64]
    first: NDArray[np.int64]
    numbers: NDArray[np.integer[Any]]

    def look_up(self, ranks: Sequence[NDArray[np.int64]], first: int = 0) -> _Windows:
        """Return some windows of consecutive latents.

        Args:
            ranks: For each latent, which of its usable windows.
            first: Number of the first of these latents.
        """
        of = np.repeat(np.arange(first, first + len(ranks)), [len(some) for some in ranks])
        window = self.chosen[self.begins[of] + np.concatenate(ranks)]
        low, base = self.first[window], self.bases[of]
        ids = self.numbers[low].astype(np.int64)
        return _Windows(self.latents[of], ids, low + base, self.first[window + 1] + base)


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

    def begins(self, windows: _Windows) -> NDArray[np.int64]:
        """Return the starts of other latents' windows, shifted by `begins_around` if this latent's windows are."""
        if not self._moved:
            return self._store.begin_of(windows.ids, self.window)
        firings = windows.low, windows.high
        return self._store.begins_around(windows.latents, windows.ids, firings, self.window)

    def candidates(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw latents, preferring those that fire about as often."""
        firings, known = self._store.firings, self._scratch.known
        known = known[known != self._latent]
        apart = np.abs(np.log(firings[known] / max(1, len(self._positions))))
        near = apart + rng.exponential(_SPREAD, len(apart))
        first = np.arange(len(near))
        if len(near) > _MOST:  # only these are sorted; kept in order, so that ties are stable
            first = np.flatnonzero(near <= np.partition(near, _MOST - 1)[_MOST - 1])
        return np.asarray(known[first[np.argsort(near[first], kind="stable")][:_MOST]])

    def usable(self, others: NDArray[np.int64]) -> _Usable:
        """Return the usable windows of those latents that fire independently and have enough."""
        store, window = self._store, self.window
        position, ends = store.firings_of(others)
        sizes = np.diff(ends, prepend=0)
        common = np.flatnonzero(self._common(position))
        shared = np.bincount(np.searchsorted(ends, common, side="right"), minlength=len(others))
        by_chance = sizes * len(self._positions) / max(1, store.n_tokens)
        fewer = np.minimum(sizes, len(self._positions))
        apart = shared <= np.maximum(2 * by_chance, _TOGETHER * fewer)

        numbers, whole = store.window_of(position.astype(store.position.dtype), window)  # 32 bits are divided faster
        begins = ends - sizes
        new = np.ones(len(numbers) + 1, dtype=np.bool_)
        new[1:-1] = numbers[1:] != numbers[:-1]
        if whole is not None:  # the remainder of a context has the number of the next context's first window
            new[1:-1] |= whole[1:] != whole[:-1]
        new[begins] = True
        first = np.flatnonzero(new)
        good = self._allowed(numbers.take(first[:-1]).astype(np.int64))
        if whole is not None:
            good &= whole[first[:-1]]
        good[np.searchsorted(first, common, side="right") - 1] = False
        chosen = np.flatnonzero(good)
        edges = np.searchsorted(chosen, np.searchsorted(first, [*begins, len(position)]))
        counts = np.diff(edges)
        enough = np.flatnonzero(apart & (counts >= _FEWEST))
        bases = store.indptr[others] - begins
        return _Usable(others[enough], counts[enough], edges[enough], bases[enough], chosen, first, numbers)

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

    def profiles(self, windows: _Windows, threshold: float) -> Profiles:
        """Return the profiles of other latents, from their windows."""
        firings, begins = (windows.low, windows.high), self.begins(windows)
        owner = np.cumsum(np.diff(windows.latents, prepend=windows.latents[:1]) != 0)
        return profiles_of(self._store, firings, begins, owner, self.kinds, self.window, threshold)


def _match_windows(wanted: NDArray[np.float64], offered: NDArray[np.float64]) -> NDArray[np.intp]:
    """Choose an offered window for each wanted one, matching number, length and place of marks.

    Args:
        wanted: Their `shapes`.  [4, wanted windows]
        offered: Shapes of the offered windows.  [4, offered windows]
    """
    from scipy.optimize import linear_sum_assignment

    # One more run or token has the same cost as a distance of half a window between marks.
    runs, tokens, first, last = np.abs(wanted[:, :, None] - offered[:, None, :])
    return np.asarray(linear_sum_assignment((runs + 2 * first) + (tokens + 2 * last))[1])
