"""The bytes of tokens, and how windows of tokens become strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from saeval.errors import StoreError
from saeval.tokens import token_strings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Vocabulary:
    """Turns token ids into strings: a look-up, but for windows that hold a token with part of a character.

    Args:
        pieces: Bytes of each token that occurs.
    """

    def __init__(self, pieces: Mapping[int, bytes]):
        self._pieces = pieces
        size = max(pieces, default=-1) + 1
        self._strings = np.empty(size, dtype=object)  # by token id
        self._partial = np.ones(size, dtype=np.bool_)  # those that do not occur, too
        for token, piece in pieces.items():
            try:
                self._strings[token] = piece.decode()
            except UnicodeDecodeError:
                continue
            self._partial[token] = False

    def strings(self, windows: NDArray[np.int32]) -> list[tuple[str, ...]]:
        """Return the strings of each window's tokens, see `saeval.tokens.token_strings`.  windows [windows, window]

        Raises:
            StoreError: If a token is not in the vocabulary.
        """
        try:
            flat = iter(self._strings.take(windows.ravel()).tolist())
            rows = list(zip(*[flat] * windows.shape[1], strict=True))  # cut into windows without a list for each
            if (partial := self._partial.take(windows)).any():
                for at in np.flatnonzero(partial.any(axis=1)):
                    rows[at] = token_strings(self._pieces[token] for token in windows[at].tolist())
        except (IndexError, KeyError):
            raise StoreError("the corpus holds a token that the store's vocabulary lacks; collect it again") from None
        return rows
