"""Split a latent's windows in two by document, so that explaining and scoring never share any text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64's finaliser


class Split(NamedTuple):
    """A cut through the documents: those whose hash lies at or below `level` explain, the others score."""

    key: np.uint64
    level: float

    def explains(self, documents: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Tell for each document whether it is on the explain side.  [documents]"""
        if len(documents) > (names := int(documents.max(initial=0)) + 1):  # cheaper to hash each once
            return self.explains(np.arange(names, dtype=np.int32))[documents]
        return _unit_hash(documents, self.key) <= self.level


def _unit_hash(documents: NDArray[np.int32], key: np.uint64) -> NDArray[np.float64]:
    """Hash document numbers to [0, 1), so that a document's side is known without listing all documents."""
    x = documents.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    for shift, factor in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))) / 2.0**64


def split_documents(documents: NDArray[np.int32], share: float, rng: np.random.Generator) -> Split | None:
    """Cut so that about `share` of the windows fall on the explain side, and at least one document on each.

    Args:
        documents: Document of every activating window.  [windows]
        share: Part of the windows wanted for explaining, in (0, 1).
        rng: Source of the hash's key; another key is another split.

    Returns:
        The split, or None when all windows come from one document.
    """
    key = np.uint64(rng.integers(2**63))
    names, counts = _counted(documents)
    if len(names) < 2:
        return None
    hashes = _unit_hash(names, key)
    order = np.argsort(hashes)
    below = np.cumsum(counts[order])[:-1] / len(documents)
    return Split(key, float(hashes[order[int(np.argmin(np.abs(below - share)))]]))


def _counted(documents: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the documents that occur, ascending, and how often each does."""
    if not len(documents) or (documents[1:] < documents[:-1]).any():
        return np.unique(documents, return_counts=True)
    ends = np.flatnonzero(documents[1:] != documents[:-1]) + 1  # they stand in order
    bounds = np.concatenate([[0], ends, [len(documents)]])
    return documents[bounds[:-1]], bounds[1:] - bounds[:-1]


def side(
    split: Split, document_of: Callable[[NDArray[np.int64]], NDArray[np.int32]], explain: bool
) -> Callable[[NDArray[np.int64]], NDArray[np.bool_]]:
    """Return a test for window numbers: do they lie on this side of the split?"""
    return lambda ids: split.explains(document_of(ids)) == explain
