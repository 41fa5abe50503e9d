"""Draws decoy windows for a latent: windows in which one other, similar latent fires."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saeval._run.mark_profiles import Kinds, Profiles, marks_in, marks_of, profile_of, profiles_of, shapes
from saeval.records import Examples, LatentId, LatentRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from saeval.activations import ActivationStore

_FEWEST = 5
"""Minimum number of usable windows for a decoy latent."""

_TRIED = 64  # number of candidates compared with the latent
_MOST = 1024  # maximum latents drawn to find the candidates: a dictionary may have hundreds of copies of a latent
_READ = 2  # nearest candidates whose firings are read, to compare their usable windows
_SPREAD = 1.0  # scale of the random term added to the difference of log firings
_COMPARED = 32  # number of windows compared per latent
_OFFERED = 4  # windows to choose from per window needed
_SAME_TOKENS = 0.25  # largest overlap of the firing tokens of both latents
_TOGETHER = 0.02  # largest share of the rarer latent's firings that may coincide, if chance gives less
_FIRST = 512  # latents next to another one, by number of firings, that are considered at first


class Decoys:
    """Adds decoys to records; each decoy is drawn once, although records are rebuilt for every step.

    The decoy latent fires nearly independently of the record's latent, about as often, and on other tokens. Of 64
    latents that fire about as often and on other tokens, drawn at random, it is the one whose firing tokens are most
    similar in how often they recur between windows and in kind (words, parts of words or punctuation): samples of their
    windows lead to two latents, and the windows that can be used to one. The windows chosen have firing tokens that
    match those in the record's windows in number, length and position. No window comes from a document that explains
    the record's latent, and in none do both latents fire on the same token; apart from that, this latent may fire
    there, as the decoy latent may in this latent's windows. So neither text nor marks reveal which of the two latents
    is meant: only an explanation does.

    Args:
        store: The activation store of the records.
        threshold: Tokens with at least this share of the window's maximum activation are marked.
    """

    def __init__(self, store: ActivationStore, threshold: float = 0.3):
        self._store, self._threshold = store, threshold
        self._kinds = Kinds(store)
        self._by_firings = _ByFirings(store)
        self._texts = _Texts(store)
        self._drawn: dict[int, tuple[int, bytes] | None] = {}  # by latent: decoy latent and the starts of its windows

    def __call__(self, record: LatentRecord, rng: np.random.Generator) -> LatentRecord:
        """Return the record with windows of a decoy latent for scoring.

        The record is unchanged if the store has no such latent, or if its latent fires at the centre of each window
        (`saebench` cuts them so), because marks at the centre would reveal that they are right.

        Args:
            record: The latent's windows.
            rng: Random generator.
        """
        latent = record.latent.index
        if latent not in self._drawn:
            self._drawn[latent] = self._draw(record, rng)
        if (drawn := self._drawn[latent]) is None:
            return record
        other, starts = LatentId(record.latent.hookpoint, drawn[0]), np.frombuffer(drawn[1], self._store.position.dtype)
        window = len(record.score.activating[0].tokens)
        windows = self._store.examples_at(other, starts.astype(np.int64), window)
        decoy = Examples(other, windows, (), float(self._store.activations(other.index)[1].max()))
        return replace(record, score=replace(record.score, decoy=decoy))

    def _draw(self, record: LatentRecord, rng: np.random.Generator) -> tuple[int, bytes] | None:
        """Draw a decoy; return its latent and the starts of its windows."""
        shown, wanted = record.score.activating, len(record.score.non_activating)
        if not shown or not wanted or all(window.activations[len(window.tokens) // 2] for window in shown):
            return None
        search = _Search(self._store, self._texts, record)
        profile = profile_of(shown[:: max(1, len(shown) // _COMPARED)], self._kinds, self._threshold)
        for nearest in self._candidates(record.latent.index, profile, search, wanted, rng):
            if (offered := self._choose(nearest, profile, search, wanted, rng)) is None:
                continue
            starts = search.starts(offered)
            lent = rng.permutation(len(shown))[np.arange(min(wanted, len(starts))) % len(shown)]
            rows, columns = marks_in(shown, self._threshold)
            ours = shapes(rows, columns, len(shown), search.window)
            rows, position = marks_of(self._store, (offered.low, offered.high), self._threshold)
            theirs = shapes(rows, position - starts[rows], len(starts), search.window)
            chosen = starts[_match_windows(ours[:, lent], theirs, search.window)]
            return int(offered.latents[0]), chosen.astype(self._store.position.dtype).tobytes()
        return None

    def _candidates(
        self, latent: int, profile: Profiles, search: _Search, wanted: int, rng: np.random.Generator
    ) -> Iterator[NDArray[np.int64]]:
        """Yield at least 64 latents at a time that fire on other tokens, if there are as many; nearest ones first."""
        found: list[NDArray[np.int64]] = []
        distances: list[NDArray[np.float64]] = []

        def nearest() -> NDArray[np.int64]:
            return np.concatenate(found)[np.argsort(np.concatenate(distances), kind="stable")]

        for drawn in self._by_firings.draw(latent, rng):
            windows = search.sample(drawn, rng)
            if len(windows.ids):
                others, latents = self._profiles(windows, search), windows.latents[windows.begins]
                distance = profile.distance(others) + np.maximum(0.0, 1 - self._store.firings[latents] / wanted)
                comparable = np.flatnonzero(~(profile.overlap(others) > _SAME_TOKENS))
                found.append(latents[comparable])
                distances.append(distance[comparable])
            if sum(map(len, found)) >= _TRIED:
                yield nearest()
                found, distances = [], []
        if found:
            yield nearest()

    def _choose(
        self, nearest: NDArray[np.int64], profile: Profiles, search: _Search, wanted: int, rng: np.random.Generator
    ) -> _Windows | None:
        """Draw usable windows of the first few latents that fire independently; return those of the most similar one.

        Windows that are missing add to a latent's distance. None if no latent has enough windows.
        """
        offered: list[_Windows] = []
        missing: list[float] = []
        for latent in nearest.tolist():
            if (usable := search.usable(latent)) is None:
                continue
            offered.append(usable.take(rng.permutation(len(usable.ids))[: _OFFERED * wanted]))
            missing.append(max(0.0, 1 - len(usable.ids) / wanted))
            if len(offered) == _READ:
                break
        if not offered:
            return None
        parts = [windows.take(np.arange(min(_COMPARED, len(windows.ids)))) for windows in offered]
        others = self._profiles(_Windows.joined(parts), search)
        return offered[int(np.argmin(profile.distance(others) + np.array(missing)))]

    def _profiles(self, windows: _Windows, search: _Search) -> Profiles:
        begins = windows.begins
        owner = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(windows.ids)))
        firings, starts = (windows.low, windows.high), search.starts(windows)
        return profiles_of(self._store, firings, starts, owner, self._kinds, search.window, self._threshold)


class _Windows(NamedTuple):
    """Windows of one or more latents, ordered by latent.

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

    @property
    def begins(self) -> NDArray[np.intp]:
        """The first window of each latent.  [latents]"""
        return np.flatnonzero(np.diff(self.latents, prepend=-1))

    def take(self, which: NDArray[np.int64]) -> _Windows:
        """Return some of the windows."""
        return _Windows(*(values[which] for values in self))

    @classmethod
    def joined(cls, parts: Sequence[_Windows]) -> _Windows:
        """Return windows of different latents as one."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


class _ByFirings:
    """Draws latents of a store, preferring those that fire about as often as a given one.

    The time to draw some depends on how many fire about as often, instead of on the size of the dictionary.
    """

    def __init__(self, store: ActivationStore):
        known = np.flatnonzero(store.firings >= _FEWEST)
        self._firings = store.firings
        self._latents = known[np.argsort(store.firings[known], kind="stable")]
        self._logs = np.log(store.firings[self._latents])

    def draw(self, latent: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield other latents, up to 64 at a time, without replacement.

        They come in the order of the difference of log firings plus an exponential random term.
        """
        own = float(np.log(max(1, self._firings[latent])))
        low = high = int(np.searchsorted(self._logs, own))
        near = np.empty(0)  # difference plus random term of latents low to high
        for end in range(_TRIED, _MOST + 1, _TRIED):
            while True:
                outside = min(
                    own - self._logs[low - 1] if low > 0 else np.inf,
                    self._logs[high] - own if high < len(self._logs) else np.inf,
                )
                nearest = np.flatnonzero(near <= outside)  # no latent outside can come before these
                if len(nearest) >= end or np.isinf(outside):
                    break
                more = max(_FIRST, high - low)
                before, after = self._logs[max(0, low - more) : low], self._logs[high : high + more]
                apart = (np.abs(logs - own) + rng.exponential(_SPREAD, len(logs)) for logs in (before, after))
                near = np.concatenate([next(apart), near, next(apart)])
                low, high = low - len(before), high + len(after)
            order = np.argsort(near[nearest], kind="stable")[end - _TRIED : end]
            if not len(order):
                return
            drawn = self._latents[low + nearest[order]]
            yield drawn[drawn != latent]


class _Texts:
    """Finds the windows of a store's documents."""

    def __init__(self, store: ActivationStore):
        self._store = store
        self._contexts = np.argsort(store.documents, kind="stable")
        self._documents = np.asarray(store.documents)[self._contexts]

    def windows_of(self, documents: Sequence[int], window: int) -> NDArray[np.int64]:
        """Return the numbers of all windows in some documents."""
        wanted = np.unique(documents)
        begins, ends = (np.searchsorted(self._documents, wanted, side=side) for side in ("left", "right"))
        parts = [self._contexts[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        contexts = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        tiles = (self._store.length - self._store.lead) // window
        return (contexts[:, None] * tiles + np.arange(tiles)).reshape(-1)


class _Search:
    """Finds windows of other latents that could be decoys for a record."""

    def __init__(self, store: ActivationStore, texts: _Texts, record: LatentRecord):
        self._store, self._latent = store, record.latent.index
        self.window = len(record.score.activating[0].tokens)
        self._positions = store.activations(self._latent)[0]
        self._moved = any((e.start - store.lead) % self.window for e in record.score.activating)
        explain = (*record.explain.activating, *record.explain.non_activating)
        tiles = (store.length - store.lead) // self.window
        scored = (*record.score.activating, *record.score.non_activating)
        places = [(e.context, (e.start - store.lead + self.window // 2) // self.window) for e in (*explain, *scored)]
        seen = np.array([context * tiles + min(tile, tiles - 1) for context, tile in places], dtype=np.int64)  # nearest
        documents = texts.windows_of([e.document for e in explain], self.window)
        self._barred = np.sort(np.concatenate([seen, documents]))

    def starts(self, windows: _Windows) -> NDArray[np.int64]:
        """Return the starts of other latents' windows, shifted by `begins_around` if this latent's windows are."""
        if not self._moved:
            return self._store.begin_of(windows.ids, self.window)
        firings = windows.low, windows.high
        return self._store.begins_around(windows.latents, windows.ids, firings, self.window)

    def sample(self, latents: NDArray[np.int64], rng: np.random.Generator) -> _Windows:
        """Return up to 32 windows of each latent, spread over the corpus, without reading all of its firings.

        Of some firings, those that are the first of their window stand for it, so that windows with many firings are as
        likely as others. Latents that fire in runs have few such firings, so more of theirs are examined.
        """
        few, found = self._sample(latents, 2 * _COMPARED, rng)
        short = (found < _COMPARED // 2) & (self._store.firings[latents] > 2 * _COMPARED)
        if not short.any():
            return few
        more, _ = self._sample(latents[short], _COMPARED // 2 * self.window, rng)
        enough = few.take(np.flatnonzero(~np.repeat(short, found)))
        return _Windows.joined([enough, more])

    def _sample(
        self, latents: NDArray[np.int64], tried: int, rng: np.random.Generator
    ) -> tuple[_Windows, NDArray[np.int64]]:
        """Return up to 32 windows of each latent that begin with one of at most `tried` firings, and their numbers."""
        store = self._store
        begins, ends = store.indptr[latents], store.indptr[latents + 1]
        n = np.minimum(tried, ends - begins)
        which = np.repeat(np.arange(len(latents)), n)
        rank = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)
        step = (ends - begins) / np.maximum(1, n)
        # One at random in each part, since regular steps may be in step with the corpus.
        at = begins[which] + ((rank + rng.random(len(which))) * step[which]).astype(np.int64)
        at = np.minimum(at, ends[which] - 1)  # a sum may be rounded up to the end
        position = self._checked(latents, at)
        ids, whole = store.window_of(position, self.window)
        start = store.begin_of(ids.astype(np.int64), self.window)
        first = (at == begins[which]) | (store.position[at - 1] < start)
        first[1:] &= at[1:] != at[:-1]
        low = np.flatnonzero(first if whole is None else first & whole)
        found = np.bincount(which[low], minlength=len(latents))
        kept = np.minimum(found, _COMPARED)
        rank, n, k = (
            np.arange(len(low)) - np.repeat(np.cumsum(found) - found, found),
            found[which[low]],
            kept[which[low]],
        )
        low = low[(rank + 1) * k // n > rank * k // n]
        high, end, stop = at[low] + 1, start[low] + self.window, ends[which[low]]
        growing = np.arange(len(low))
        while len(growing := growing[high[growing] < stop[growing]]):
            growing = growing[store.position[high[growing]] < end[growing]]
            high[growing] += 1
        return _Windows(latents[which[low]], ids[low].astype(np.int64), at[low], high), kept

    def _checked(self, latents: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
        """Return the positions of firings of some latents.

        Raises:
            StoreError: If they are not in the text.
        """
        position = self._store.position[at]
        if position.max(initial=0) >= max(1, self._store.tokens.size):
            for latent in latents.tolist():
                self._store.activations(latent)  # raises the error for the damaged latent
        return position

    def usable(self, other: int) -> _Windows | None:
        """Return the usable windows of a latent; None if there are too few, or it does not fire independently."""
        store = self._store
        position = store.activations(other)[0]
        common = _among(self._positions, position)
        by_chance = len(position) * len(self._positions) / max(1, store.n_tokens)
        fewer = min(len(position), len(self._positions))
        if common.sum() > max(2 * by_chance, _TOGETHER * fewer):
            return None
        numbers, whole = store.window_of(position.astype(store.position.dtype), self.window)
        at = np.arange(len(position)) if whole is None else np.flatnonzero(whole)
        if not len(at):
            return None
        ids = numbers[at].astype(np.int64)
        first = np.flatnonzero(np.diff(ids, prepend=-1))
        end = np.append(first[1:], len(at))
        good = self._allowed(ids[first]) & ~np.logical_or.reduceat(common[at], first)
        if np.count_nonzero(good) < _FEWEST:
            return None
        first, end, base = first[good], end[good], store.indptr[other]
        return _Windows(np.full(len(first), other), ids[first], base + at[first], base + at[end - 1] + 1)

    def _allowed(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which windows are known, not used by this latent, and not in a document that explains it."""
        allowed = ~_among(self._barred, ids)
        if self._store.latents is not None or not self._store.holds_whole_text:
            allowed &= self._store.knows(self._latent, self._store.context_of(ids, self.window))
        return np.asarray(allowed)


def _among(some: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which values are among some others, which are sorted and at least one."""
    return np.asarray(some.take(np.searchsorted(some, values), mode="clip") == values)


def _match_windows(wanted: NDArray[np.int32], offered: NDArray[np.int32], window: int) -> NDArray[np.intp]:
    """Choose an offered window for each wanted one, matching number, length and place of marks.

    Args:
        wanted: Their `shapes`.  [4, wanted windows]
        offered: Shapes of the offered windows.  [4, offered windows]
        window: Tokens per window.
    """
    from scipy.optimize import linear_sum_assignment

    runs, tokens, first, last = np.abs(wanted[:, :, None] - offered[:, None, :])
    # One more run or token has the same cost as a distance of half a window between marks.
    return np.asarray(linear_sum_assignment(window * (runs + tokens) + 2 * (first + last))[1])
