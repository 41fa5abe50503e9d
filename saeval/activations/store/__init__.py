"""The activation store: tokens once, and sparse activations grouped by latent, memory-mapped from disk.

A store is a directory. `indptr.npy`, `position.npy` and `value.npy` hold the nonzero activations in CSC order by
latent: those of latent i are `position[indptr[i]:indptr[i+1]]`, ascending, where a position is
`context * length + offset`. Positions take four bytes and values two (float16) if that precision suffices. The
tokens are stored once, with the bytes of each token that occurs, so that reading requires neither model nor tokenizer.
If activations of a latent are known in some contexts only, `known.npy` and `known_indptr.npy` list these contexts in
the same order.
`manifest.json`, written last, lists every file with its size and checksum; a directory without it is unfinished.
"""

from __future__ import annotations

from saeval.activations.store.files import store_folder
from saeval.activations.store.reader import ActivationStore, Windows
from saeval.activations.store.writer import ActivationWriter

__all__ = ["ActivationStore", "ActivationWriter", "Windows", "store_folder"]
