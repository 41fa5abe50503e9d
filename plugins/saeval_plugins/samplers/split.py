"""Splits a latent's windows by document, so that explaining and scoring share no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPLITMIX64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shifts and factors of its finaliser


class Split(NamedTuple):
    """A cut through the documents: those with a hash of at most `level` explain, the others score."""

    key: np.uint64
    level: np.uint64

    def explains(self, documents: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return whether each document is on the explain side.  [documents]"""
        return hashed_documents(documents, self.key) <= self.level


def split_documents(
    documents: NDArray[np.int32], share: float, rng: np.random.Generator
) -> tuple[Split, NDArray[np.bool_]] | None:
    """Split so that about `share` of the windows are on the explain side, and each side has a document.

    Args:
        documents: Document of every activating window.  [windows]
        share: Share of the windows for explaining, in (0, 1).
        rng: Draws the hash's key, which determines the split.

    Returns:
        The split, and for each window whether it is on the explain side; None if all windows are from one document.
    """
    key = np.uint64(rng.integers(2**63))
    if not (n := len(documents)):
        return None
    hashes = hashed_documents(documents, key)
    # The cut is before or after the document that contains the share-th window, so a full sort is not needed.
    level = np.partition(hashes, int(share * n))[int(share * n)]
    before, after = hashes < level, hashes <= level
    fewer, more = np.count_nonzero(before), np.count_nonzero(after)
    if more - fewer == n:
        return None
    if more < n and (fewer == 0 or abs(more / n - share) < abs(fewer / n - share)):
        return Split(key, level), after
    return Split(key, hashes[before].max()), before


def hashed_documents(documents: NDArray[np.int32], key: np.uint64) -> NDArray[np.uint64]:
    """Hash document numbers to 64 bits, so that a document's side is known without listing all documents."""
    if len(documents) > (names := int(documents.max(initial=0)) + 1):  # it is cheaper to hash each document once
        return hashed_documents(np.arange(names, dtype=np.int32), key)[documents]
    x = documents.astype(np.uint64) * 0x9E3779B97F4A7C15 + key
    for shift, factor in _SPLITMIX64:
        x ^= x >> shift
        x *= factor
    return x ^ (x >> 31)
