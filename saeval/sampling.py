"""Choose the latents of a cell, and sample the windows that explain and score each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from saeval.errors import InputError, StoreError
from saeval.records import LatentId, LatentRecord
from saeval.seeding import derive_rng

if TYPE_CHECKING:
    from saeval.store import ActivationStore
    from saeval.task import Cell


def choose_records(
    cell: Cell, store: ActivationStore, seed: int, limit: int | None = None
) -> tuple[list[LatentRecord], dict[str, int]]:
    """Return the records of the cell's latents, in their random order.

    Args:
        cell: The cell.
        store: Its activations.
        seed: Seed of the run.
        limit: Latents at most; the first ones are the same with any limit.

    Returns:
        The records, and how many latents were `requested`, are `eligible` (fire on at least `min_windows` tokens)
        and were `sampled`.

    Raises:
        InputError: If no latent can be sampled, or a listed one is not in the dictionary.
        StoreError: If the sampler claims silence that the store cannot vouch for.
    """
    wanted = cell.latents
    if "coder" in cell.source.plugin.offers():
        store.coder = cell.source.plugin.weights
    n = len(wanted.indices) if wanted.select == "list" else wanted.n
    n = n if limit is None else min(n, limit)
    eligible = store.firings >= wanted.min_windows
    window = cell.sampler.plugin.window
    candidates: Iterable[int]
    if wanted.select == "list":
        if bad := [i for i in wanted.indices if not 0 <= i < store.n_latents]:
            raise InputError(f"latents.indices: {bad[:5]} are not in a dictionary of {store.n_latents} latents")
        if store.latents is not None and (bad := [i for i in wanted.indices if i not in store.latents]):
            raise InputError(
                f"latents.indices: {bad[:5]} are not among the {len(store.latents)} latents that were collected"
            )
        candidates = wanted.indices
    else:
        order = derive_rng(seed, "latents").permutation(store.n_latents)
        enough = (int(i) for i in order if eligible[i])
        candidates = (i for i in enough if len(store.windows(i, window).ids) >= wanted.min_windows)
    hookpoint = str(store.facts.get("hookpoint", cell.source.plugin.name))
    records: list[LatentRecord] = []
    for index in candidates:
        if len(records) == n:
            break
        latent = LatentId(hookpoint, index)
        record = cell.sampler.plugin.sample(store, latent, derive_rng(seed, "sample", str(latent)))
        if record is not None:
            _check_silence(record, store, cell.sampler.label)
            records.append(record)
    if not records:
        raise InputError(
            f"cell {cell.name}: no latent has {wanted.min_windows} activating windows of {window} tokens that can be "
            f"split by document ({int(eligible.sum())} of {store.n_latents} latents fire on so many of "
            f"{store.n_tokens:,} tokens); give more text or a smaller latents.min_windows"
        )
    return records, {"requested": n, "eligible": int(eligible.sum()), "sampled": len(records)}


def _check_silence(record: LatentRecord, store: ActivationStore, sampler: str) -> None:
    """Refuse a record that calls a latent silent in text on which nobody looked at it.

    Raises:
        StoreError: If it does.
    """
    import numpy as np

    contexts = [e.context for side in (record.explain, record.score) for e in side.non_activating]
    unknown = ~store.knows(record.latent.index, np.array(contexts, dtype=np.int64))
    if unknown.any():
        raise StoreError(
            f"sampler {sampler}: takes latent {record.latent} for silent in {int(unknown.sum())} windows of which the "
            "source cannot tell; a sampler should ask store.knows()"
        )
