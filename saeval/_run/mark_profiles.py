"""Compares how latents' marked tokens look to a judge that does not know their meaning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from saeval.records import shown_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from saeval.activations import ActivationStore
    from saeval.records import Example

_BITS = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)  # set bits of each byte


@dataclass(frozen=True, eq=False)
class Profiles:
    """Statistics of the marked tokens of several latents.

    The last three arrays are parallel, with one entry per latent and kind of token, sorted by latent.

    Attributes:
        recurs: Share of pairs of windows that have a marked token in common.  [latents], like the next five
        runs: Mean number of runs of marked tokens per window.
        tokens: Mean number of marked tokens per window.
        words: Share of marked tokens that begin a word.
        signs: Share of marked tokens without a letter or digit.
        marks: Number of marked tokens.
        latent: Number of the latent.  [kinds found]
        kind: Kind of token.  [kinds found]
        times: Number of the latent's marked tokens of this kind.  [kinds found]
    """

    recurs: NDArray[np.float64]
    runs: NDArray[np.float64]
    tokens: NDArray[np.float64]
    words: NDArray[np.float64]
    signs: NDArray[np.float64]
    marks: NDArray[np.int64]
    latent: NDArray[np.int64]
    kind: NDArray[np.int64]
    times: NDArray[np.int64]

    def overlap(self, others: Profiles) -> NDArray[np.float64]:
        """Return the overlap of marked tokens between the single latent of `self` and each of `others`."""
        own = np.zeros(1 + max(self.kind.max(initial=0), others.kind.max(initial=0)), dtype=np.int64)
        own[self.kind] = self.times
        # The shares have a common denominator, so that sums are exact whatever their order.
        least = np.minimum(own[others.kind] * others.marks[others.latent], others.times * self.marks)
        common = np.bincount(others.latent, weights=least, minlength=len(others.marks))
        return np.asarray(common / (self.marks * others.marks))

    def distance(self, others: Profiles) -> NDArray[np.float64]:
        """Return the distance between the marks of the single latent of `self` and each of `others`."""
        many = abs(np.log(self.runs / others.runs)) + abs(np.log(self.tokens / others.tokens))
        kind = abs(self.words - others.words) + abs(self.signs - others.signs)
        return 2 * abs(self.recurs - others.recurs) + many / 2 + kind


class Kinds:
    """Kinds of tokens: a number for the text without spaces and case, and whether it begins a word or is a sign.

    Args:
        store: The store of the tokens.
    """

    def __init__(self, store: ActivationStore):
        self._store = store
        self._numbers: dict[str, int] = {}
        self._of = cache(self._look_at)
        self._known = np.zeros(0, dtype=np.bool_)  # indexed by token id, like the next array
        self._of_id = np.zeros((0, 3), dtype=np.int64)

    def _look_at(self, text: str) -> tuple[int, bool, bool]:
        number = self._numbers.setdefault(text.strip().casefold(), len(self._numbers))
        return number, text[:1].isspace(), not any(map(str.isalnum, text))

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return kind number, word flag and sign flag of each text.  [texts, 3]"""
        return np.array([self._of(text) for text in texts], dtype=np.int64).reshape(-1, 3)

    def of_positions(
        self, positions: NDArray[np.int64], rows: NDArray[np.int64], begins: NDArray[np.int64], window: int
    ) -> NDArray[np.int64]:
        """Return kind number, word flag and sign flag of the tokens at positions.  [positions, 3]

        Args:
            positions: Positions of the tokens.
            rows: The window of each token.
            begins: Start of each window, to decode tokens that contain part of a character like in the window.
            window: Tokens per window.
        """
        tokens = self._store.tokens.reshape(-1)
        ids = tokens[positions]
        if len(self._known) <= (largest := int(ids.max(initial=-1))):
            more = largest + 1 - len(self._known)
            self._known = np.concatenate([self._known, np.zeros(more, dtype=np.bool_)])
            self._of_id = np.concatenate([self._of_id, np.zeros((more, 3), dtype=np.int64)])
        if len(new := np.unique(ids[~self._known[ids]])):
            self._of_id[new] = self.of_texts([text for (text,) in self._store.strings(new[:, None])])
            self._known[new] = True
        found = self._of_id.take(ids, axis=0)
        broken = np.unique(rows[self._store.is_partial(ids)])
        if len(broken):
            texts = self._store.strings(tokens[begins[broken][:, None] + np.arange(window)])
            shown = [shown_at(text) for text in texts]
            here = np.flatnonzero(np.isin(rows, broken))
            which, column = np.searchsorted(broken, rows[here]), positions[here] - begins[rows[here]]
            seen = zip(which.tolist(), column.tolist(), strict=True)
            found[here] = self.of_texts([texts[k][shown[k][c]] for k, c in seen])
        return found


def profile_of(windows: Sequence[Example], kinds: Kinds, threshold: float = 0.3) -> Profiles:
    """Return the profile of one latent from its windows, at most 64; for `threshold`, see `marks_in`."""
    rows, columns = marks_in(windows, threshold)
    seen = zip(rows.tolist(), columns.tolist(), strict=True)
    texts = [_shown(windows[row], column) for row, column in seen]
    return _profiles(rows, columns, kinds.of_texts(texts), np.zeros(len(windows), dtype=np.int64), 1)


def _shown(window: Example, column: int) -> str:
    """Return the text that shows a token."""
    return window.tokens[column] or window.tokens[window.shown_at()[column]]


def profiles_of(
    store: ActivationStore,
    firings: tuple[NDArray[np.int64], NDArray[np.int64]],
    begins: NDArray[np.int64],
    owner: NDArray[np.int64],
    kinds: Kinds,
    window: int,
    threshold: float = 0.3,
) -> Profiles:
    """Return the profiles of several latents from their windows.

    Args:
        store: The store of the windows.
        firings: Start and end of each window's firings in the store's arrays.  [windows] each
        begins: Start of each window.  [windows]
        owner: Number of its latent, ascending from 0 without gaps; at most 64 windows of each.  [windows]
        kinds: Kinds of tokens.
        window: Tokens per window.
        threshold: Tokens with at least this share of the window's maximum activation are marked.
    """
    rows, position = marks_of(store, firings, threshold)
    found = kinds.of_positions(position, rows, begins, window)
    return _profiles(rows, position, found, owner, int(owner[-1]) + 1)


def _profiles(
    rows: NDArray[np.int64], places: NDArray[np.int64], kinds: NDArray[np.int64], owner: NDArray[np.int64], n: int
) -> Profiles:
    """Return the profiles of n latents.

    Args:
        rows: Window of each marked token, ascending.
        places: Position of each; consecutive numbers are adjacent tokens.
        kinds: Kind number, word flag and sign flag of each.
        owner: Latent of each window, ascending; at most 64 windows of each.
        n: Number of latents.
    """
    begins = _run_begins(rows, places)
    latent = owner[rows]
    windows, tokens = np.bincount(owner, minlength=n), np.bincount(latent, minlength=n)
    most = int(kinds[:, 0].max(initial=0)) + 1
    keys, which, times = np.unique(latent * most + kinds[:, 0], return_inverse=True, return_counts=True)
    # Each bit stands for one of the latent's windows: the windows that each kind is in, then those that each window has
    # a kind in common with.
    starts = np.searchsorted(owner, np.arange(n))
    bit = np.uint64(1) << (np.arange(len(owner)) - starts[owner]).astype(np.uint64)
    having, alike = np.zeros(len(keys), dtype=np.uint64), np.zeros(len(owner), dtype=np.uint64)
    np.bitwise_or.at(having, which, bit[rows])
    np.bitwise_or.at(alike, rows, having[which])
    common = np.add.reduceat(_BITS.take(alike.view(np.uint8)), alike.itemsize * starts, dtype=np.int64)
    pairs = common - windows  # without those of a window with itself
    return Profiles(
        recurs=pairs / np.maximum(1, windows * (windows - 1)),
        runs=np.bincount(latent[begins], minlength=n) / windows,
        tokens=tokens / windows,
        words=np.bincount(latent, weights=kinds[:, 1], minlength=n) / tokens,
        signs=np.bincount(latent, weights=kinds[:, 2], minlength=n) / tokens,
        marks=tokens,
        latent=keys // most,
        kind=keys % most,
        times=times,
    )


def marks_in(windows: Sequence[Example], threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return window and column of each marked token.  [marks] each

    Args:
        windows: The windows.
        threshold: Tokens with at least this share of the window's maximum activation are marked.
    """
    strength = np.array([window.activations for window in windows])
    rows, columns = np.nonzero((strength > 0) & (strength >= threshold * strength.max(axis=1, keepdims=True)))
    return rows, columns


def marks_of(
    store: ActivationStore, firings: tuple[NDArray[np.int64], NDArray[np.int64]], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return window and position of each marked token; for the arguments, see `profiles_of`.  [marks] each"""
    low, high = firings
    count = high - low
    first = np.cumsum(count) - count
    rows = np.repeat(np.arange(len(low)), count)
    at = np.arange(len(rows)) + (low - first)[rows]
    value = store.value[at].astype(np.float32)
    level = threshold * np.maximum.reduceat(value, first)
    marks = np.flatnonzero((value > 0) & (value >= level[rows]))
    return rows[marks], store.position[at[marks]].astype(np.int64)


def shapes(rows: NDArray[np.int64], columns: NDArray[np.int64], n: int, size: int) -> NDArray[np.int32]:
    """Return the numbers of runs and of marked tokens, and the columns of the first and last.  [4, windows]

    Args:
        rows: Window of each marked token, ascending.
        columns: Its place in the window, ascending within each.
        n: Number of windows.
        size: Tokens per window.
    """
    found = np.zeros((4, n), dtype=np.int32)
    runs, tokens, first, last = found
    runs[:] = np.bincount(rows[_run_begins(rows, columns)], minlength=n)
    tokens[:] = np.bincount(rows, minlength=n)
    first[rows[::-1]] = columns[::-1]  # the last of several values assigned to a window remains
    last[:] = size - 1
    last[rows] = columns
    return found


def _run_begins(rows: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which marked tokens begin a run."""
    begins = np.ones(len(rows), dtype=np.bool_)
    begins[1:] = (rows[1:] != rows[:-1]) | (places[1:] != places[:-1] + 1)
    return begins
