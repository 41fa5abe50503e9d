"""Detects documents that are equal or nearly equal to an earlier one."""

from __future__ import annotations

import hashlib
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from saeval._util import derive_rng

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Sameness = Literal["exact", "near"]
"""`exact`: the same words in the same order; `near`: 80 % of their five-word sequences are shared."""
_WORDS = 5
_SHARED = 0.8  # Jaccard similarity from which documents count as nearly equal
_BANDS, _ROWS = 16, 4  # documents as similar as `_SHARED` share a band with probability .9998
_AT_ONCE = 4096  # shingles hashed at a time


class Duplicates:
    """Remembers documents to detect duplicates; `near` takes about 2 KB per document.

    Args:
        how: What counts as a duplicate.
    """

    def __init__(self, how: Sameness):
        self._how = how
        self._seen: set[bytes] = set()
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(_BANDS)]
        self._signatures: list[NDArray[np.uint32]] = []

    def is_new(self, text: str) -> bool:
        """Return whether a document duplicates no earlier one; if so, remember it."""
        words = text.split()
        digest = hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=16).digest()
        if digest in self._seen:
            return False
        if self._how == "near" and len(words) > _WORDS and not self._is_distinct([word.lower() for word in words]):
            return False
        self._seen.add(digest)
        return True

    def _is_distinct(self, words: list[str]) -> bool:
        """Return whether no earlier document is nearly equal (banded MinHash, Broder 1997); if so, remember it."""
        import numpy as np

        signature = self._signature([" ".join(words[i : i + _WORDS]) for i in range(len(words) - _WORDS + 1)])
        keys = [band.tobytes() for band in signature.reshape(_BANDS, _ROWS)]
        candidates = {i for band, key in zip(self._bands, keys, strict=True) for i in band.get(key, ())}
        if any(np.mean(self._signatures[i] == signature) >= _SHARED for i in candidates):
            return False
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(signature)
        return True

    def _signature(self, shingles: list[str]) -> NDArray[np.uint32]:
        """Return the MinHash signature: the minimum hash of the shingles per hash function.  [hash functions]"""
        import numpy as np

        factors, terms = self._functions
        least = np.full(_BANDS * _ROWS, 2**32 - 1, dtype=np.uint64)
        for start in range(0, len(shingles), _AT_ONCE):
            some = [zlib.crc32(s.encode("utf-8", "replace")) for s in shingles[start : start + _AT_ONCE]]
            hashed = (np.array(some, dtype=np.uint64)[:, None] * factors + terms) >> np.uint64(32)
            least = np.minimum(least, hashed.min(axis=0))
        return least.astype(np.uint32)

    @cached_property
    def _functions(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Factors and terms of hash functions `(factor · x + term mod 2⁶⁴) / 2³²` (multiply-shift)."""
        import numpy as np

        factors, terms = derive_rng(0, "minhash").integers(0, 2**64, size=(2, _BANDS * _ROWS), dtype=np.uint64)
        return factors | np.uint64(1), terms
