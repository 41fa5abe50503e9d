"""The bytes of tokens, and how windows of tokens become strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

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
        self._partial = np.zeros(size, dtype=np.bool_)
        for token, piece in pieces.items():
            try:
                self._strings[token] = piece.decode()
            except UnicodeDecodeError:
                self._partial[token] = True

    def strings(self, windows: NDArray[np.int32]) -> list[tuple[str, ...]]:
        """Return the strings of each window's tokens, see `saeval.tokens.token_strings`.  windows [windows, window]"""
        flat = iter(self._strings.take(windows.ravel()).tolist())
        rows = list(zip(*[flat] * windows.shape[1], strict=True))  # cut into windows without a list for each
        if (partial := self._partial[windows]).any():
            for at in np.flatnonzero(partial.any(axis=1)):
                rows[at] = token_strings(self._pieces[token] for token in windows[at].tolist())
        return rows
