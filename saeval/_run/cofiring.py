"""Finds the latents that fire together with a latent on the strongest tokens of its windows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from saeval.records import LatentRecord

if TYPE_CHECKING:
    from saeval.activations import ActivationStore

_AT_ONCE = 1 << 24  # activations scanned at a time


def with_cofiring(record: LatentRecord, store: ActivationStore) -> LatentRecord:
    """Return the record with the co-firing latents of each activating window in `explain`.

    Scans all activations of the store once.
    """
    explain, own = record.explain, record.latent.index
    places = np.array(
        [
            window.context * store.length + window.start + int(window.activations.argmax())
            for window in explain.activating
        ],
        dtype=np.int64,
    )
    found: dict[int, set[int]] = {place: set() for place in places.tolist()}
    wanted = np.zeros(store.tokens.size, dtype=np.bool_)
    wanted[places] = True
    for low in range(0, len(store.position), _AT_ONCE):
        position = np.asarray(store.position[low : low + _AT_ONCE])
        hits = np.flatnonzero(wanted[position])
        latents = np.searchsorted(store.indptr, low + hits, side="right") - 1
        for place, latent in zip(position[hits].tolist(), latents.tolist(), strict=True):
            if latent != own:
                found[place].add(latent)
    cofiring = tuple(frozenset(found[place]) for place in places.tolist())
    return dataclasses.replace(record, explain=dataclasses.replace(explain, cofiring=cofiring))
