"""The activation store: tokens once, and sparse activations grouped by latent, memory-mapped from disk.

A store is a directory. `indptr.npy`, `position.npy` and `value.npy` hold the nonzero activations in CSC order by
latent: those of latent i are `position[indptr[i]:indptr[i+1]]`, ascending, where a position is
`context * length + offset`. Positions take four bytes and values two (float16) where those suffice. The tokens are
there once, and so do the bytes of each token that occurs, so that neither model nor tokenizer is needed afterwards.
Where a latent is known in part of the contexts only, `known.npy` and `known_indptr.npy` list them in the same order.
`manifest.json`, written last, lists every file with its size and checksum; a directory without it is unfinished.
"""

from __future__ import annotations

from saeval.activations.store.files import store_folder
from saeval.activations.store.reader import ActivationStore, Windows
from saeval.activations.store.writer import ActivationWriter

__all__ = ["ActivationStore", "ActivationWriter", "Windows", "store_folder"]
