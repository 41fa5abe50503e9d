"""Draws wrong windows for a latent from the firings of one other latent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, NamedTuple

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
    import dataclasses

    shown = record.score.activating
    wanted = len(record.score.non_activating)
    if not shown or not wanted:
        return record
    searched = _Search(store, record)
    profile = _profile(shown[:: max(1, len(shown) // _COMPARED)])
    best: tuple[float, int, NDArray[np.int64]] | None = None
    compared = 0
    for other, usable in searched.candidates(rng):
        ids = rng.permutation(usable)[: _OFFERED * wanted]
        sample = searched.cut(other, ids[:_COMPARED])
        found = _profile(sample)
        if profile.overlap(found) > _SAME_TOKENS:
            continue
        distance = profile.distance(found) + max(0.0, 1 - len(ids) / wanted)
        if best is None or distance < best[0]:
            best = distance, other, ids
        compared += 1
        if compared == _TRIED:
            break
    if best is None:
        return record
    _, other, ids = best
    latent = LatentId(record.latent.hookpoint, other)
    offered = searched.cut(other, ids)
    lent = list(islice(cycle(shown[i] for i in rng.permutation(len(shown))), min(wanted, len(offered))))
    maximum = float(store.activations(other)[1].max())
    decoy = Examples(latent, _alike(lent, offered), (), maximum)
    return dataclasses.replace(record, score=dataclasses.replace(record.score, decoy=decoy))


class _Search:
    """The latents of a store that could be decoys, and their windows."""

    def __init__(self, store: ActivationStore, record: LatentRecord):
        self._store, self._latent = store, record.latent.index
        self.window = len(record.score.activating[0].tokens)
        sides = (record.explain, record.score)
        seen = [e for side in sides for e in (*side.activating, *side.non_activating)]
        explain = (*record.explain.activating, *record.explain.non_activating)
        self._documents = np.unique(np.array([e.document for e in explain], dtype=np.int64))
        self._seen = {(e.context, e.start) for e in seen}
        self._positions = store.activations(self._latent)[0]
        self._hookpoint = record.latent.hookpoint
        self._moved = any((e.start - store.lead) % self.window for e in record.score.activating)

    def cut(self, other: int, ids: NDArray[np.int64]) -> tuple[Example, ...]:
        """Return another latent's windows, moved as this latent's are, or in their place if those are."""
        store = self._store
        begin = store.begin_around(other, ids, self.window) if self._moved else store.begin_of(ids, self.window)
        return store.examples_at(LatentId(self._hookpoint, other), begin, self.window)

    def candidates(self, rng: np.random.Generator) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Draw latents, mostly such as fire about as often, with their windows that may be shown."""
        firings = self._store.firings
        known = np.flatnonzero(firings >= _FEWEST)
        known = known[known != self._latent]
        apart = np.abs(np.log(firings[known] / max(1, len(self._positions))))
        drawn = np.argsort(apart + rng.exponential(_SPREAD, len(apart)), kind="stable")[:_MOST]
        for other in known[drawn].tolist():
            ids = self._usable(other)
            if len(ids) >= _FEWEST:
                yield other, ids

    def _usable(self, other: int) -> NDArray[np.int64]:
        """Return the numbers of a latent's windows that may be shown; none where it does not fire independently."""
        store = self._store
        positions = store.activations(other)[0]
        common = np.intersect1d(positions, self._positions, assume_unique=True)
        by_chance = len(positions) * len(self._positions) / max(1, store.n_tokens)
        if len(common) > max(2 * by_chance, _TOGETHER * min(len(positions), len(self._positions))):
            return np.empty(0, dtype=np.int64)
        ids = store.windows(other, self.window).ids
        context = store.context_of(ids, self.window)
        good = store.knows(self._latent, context)
        good &= ~np.isin(store.document_of(ids, self.window), self._documents)
        tiles = (store.length - store.lead) // self.window
        start = store.lead + (ids - context * tiles) * self.window
        begin = context * store.length + start
        good &= np.searchsorted(common, begin) == np.searchsorted(common, begin + self.window)
        unseen = [place not in self._seen for place in zip(context.tolist(), start.tolist(), strict=True)]
        return ids[good & np.array(unseen, dtype=np.bool_)]


class _Profile(NamedTuple):
    """What a judge can see of a latent's marks without knowing their meaning.

    Attributes:
        recurs: Share of pairs of windows that have a marked token in common.
        runs: Mean number of runs of marked tokens in a window.
        tokens: Mean number of marked tokens in a window.
        words: Share of marked tokens that begin a word.
        signs: Share of marked tokens without a letter or digit.
        shares: Share of each token among the marked ones, by its text.
    """

    recurs: float
    runs: float
    tokens: float
    words: float
    signs: float
    shares: Mapping[str, float]

    def overlap(self, other: _Profile) -> float:
        """Return the part of the marked tokens that two latents have in common, 0 to 1."""
        return sum(min(share, other.shares.get(token, 0.0)) for token, share in self.shares.items())

    def distance(self, other: _Profile) -> float:
        """Return how differently the marks of two latents look."""
        many = abs(np.log(self.runs / other.runs)) + abs(np.log(self.tokens / other.tokens))
        kind = abs(self.words - other.words) + abs(self.signs - other.signs)
        return float(2 * abs(self.recurs - other.recurs) + many / 2 + kind)


def _profile(windows: Sequence[Example]) -> _Profile:
    marks, runs = _marks(windows)
    tokens = [
        [window.tokens[i] for i in np.flatnonzero(row).tolist()] for window, row in zip(windows, marks, strict=True)
    ]
    flat = list(chain.from_iterable(tokens))
    counts = Counter(token.strip().casefold() for token in flat)
    begun = [token for token in flat if token[:1].isspace()]
    signs = [token for token in flat if not any(map(str.isalnum, token))]
    words = [{token.strip().casefold() for token in row} for row in tokens]
    return _Profile(
        recurs=_recurrence(words),
        runs=float(runs.sum() / len(windows)),
        tokens=len(flat) / len(windows),
        words=len(begun) / len(flat),
        signs=len(signs) / len(flat),
        shares={token: n / len(flat) for token, n in counts.items()},
    )


def _recurrence(kinds: Sequence[set[str]]) -> float:
    """Return the share of pairs of windows that have a token in common."""
    column: dict[str, int] = {}
    has = np.zeros((len(kinds), sum(map(len, kinds))), dtype=np.float32)
    for row, tokens in zip(has, kinds, strict=True):
        row[[column.setdefault(token, len(column)) for token in tokens]] = 1
    pairs = np.count_nonzero(has @ has.T) - len(kinds)
    return float(pairs / max(1, len(kinds) * (len(kinds) - 1)))


def _marks(windows: Sequence[Example]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which tokens would be marked, and at which of them a run begins.  [windows, window] each"""
    strength = np.array([window.activations for window in windows])
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
    marks, runs = _marks(windows)
    size = marks.shape[1]
    first, last = marks.argmax(axis=1) / size, 1 - marks[:, ::-1].argmax(axis=1) / size
    return np.stack([runs.sum(axis=1), marks.sum(axis=1), first, last], axis=1)
