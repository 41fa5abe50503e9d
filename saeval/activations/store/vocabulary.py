"""Decodes windows of token ids into strings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saeval._util import StoreError
from saeval.activations.decoding import token_strings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Vocabulary:
    """Decodes token ids into strings by look-up, except in windows with tokens that contain part of a character.

    Args:
        ids: Ids of the tokens that occur.  [tokens]
        ends: End of each token's bytes in `data`; they begin at the end of the previous token.  [tokens] ascending
        data: The concatenated bytes of all tokens.  [bytes] uint8
    """

    def __init__(self, ids: NDArray[np.integer[Any]], ends: NDArray[np.integer[Any]], data: NDArray[np.uint8]):
        self._data = data.tobytes()
        stops = ends.tolist()
        self._spans = list(zip([0, *stops], stops, strict=False))
        # In Latin-1 every byte is a character, so all tokens are decoded at once; non-ASCII tokens are redone below.
        text = self._data.decode("latin-1")
        strings = [text[start:stop] for start, stop in self._spans]
        whole = [True] * len(strings)
        for at in {*np.searchsorted(ends, np.flatnonzero(data >= 0x80), side="right").tolist()}:
            try:
                strings[at] = self._piece(at).decode()
            except UnicodeDecodeError:
                whole[at] = False
        size = int(ids.max(initial=-1)) + 1
        self._at = np.full(size, -1)  # indexed by token id, like the next two arrays
        self._at[ids] = np.arange(len(ids))
        self._strings = np.empty(size, dtype=object)
        self._strings[ids] = strings
        self._partial = np.ones(size, dtype=np.bool_)  # true for tokens that do not occur, too
        self._partial[ids] = np.logical_not(whole)

    def _piece(self, at: int) -> bytes:
        start, stop = self._spans[at]
        return self._data[start:stop]

    def is_partial(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which tokens contain part of a character, or are unknown."""
        return self._partial.take(tokens, mode="clip")

    def strings(self, windows: NDArray[np.int32]) -> list[tuple[str, ...]]:
        """Return the strings of each window's tokens, as `token_strings` does.  windows [windows, window]

        Raises:
            StoreError: If a token is not in the vocabulary.
        """
        try:
            flat = iter(self._strings.take(windows.ravel()).tolist())
            rows = list(zip(*[flat] * windows.shape[1], strict=True))  # splits into windows without one list per window
            partial = self._partial.take(windows)
        except IndexError:
            raise _lacking() from None
        for row in np.flatnonzero(partial.any(axis=1)) if partial.any() else ():
            at = self._at.take(windows[row])
            if (at < 0).any():
                raise _lacking()
            rows[row] = token_strings(map(self._piece, at.tolist()))
        return rows


def _lacking() -> StoreError:
    return StoreError("the corpus contains a token that is missing in the store's vocabulary; collect it again")
