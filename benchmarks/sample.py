"""How fast the windows of latents are sampled, against eai-delphi's LatentDataset on the same activations."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.generated import CONTEXT, LATENTS, batches, corpus, write_store
from benchmarks.harness import Bench, BenchmarkError, Figure, cpu_seconds, ratio
from saeval.plugin import ActivationStore, LatentId, derive_rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW, EXPLAIN, SCORE, SILENT = 32, 40, 100, 100
_TOKENS, A_TOKEN = 10_000_000, 5  # of the small version, too: what eai-delphi takes for a latent grows with the store
_SPLITS = 5  # Delphi's default
_SAMPLED, _ENOUGH = 200, 250
_DENSE, _NEAREST = 100_000, 5
_TIMES = 5  # the large store is so much larger than the small ones


def measure(bench: Bench) -> list[Figure]:
    """Return how much less a latent costs than with eai-delphi, and what its cost depends on."""
    large, short, narrow = (bench.folder / name for name in ("sample", "sample-fifth", "sample-few-latents"))
    nonzeros = bench.saeval("sample", "prepare", large, short, narrow, _TOKENS // CONTEXT)
    lists = [large / "usual.npy", large / "dense.npy"]
    mine, theirs = "saeval, CPU ms per latent", "eai-delphi, CPU ms per latent"

    def ours(folder: Path, latents: Path) -> float:
        return _ms(bench.saeval("sample", "run", folder, latents), latents)

    rounds = []
    for _ in range(bench.rounds):
        own = [ours(large, latents) for latents in lists]
        other = [_ms(*taken) for taken in zip(bench.delphi("sample", large / "delphi", *lists), lists, strict=True)]
        rounds.append(list(zip(own, other, strict=True)))
    usual, dense = ({mine: [], theirs: []}, {mine: [], theirs: []})
    for pairs in rounds:
        for sides, (own_ms, other_ms) in zip((usual, dense), pairs, strict=True):
            sides[mine].append(own_ms)
            sides[theirs].append(other_ms)

    def growth(smaller: Path, latents: str) -> dict[str, list[float]]:
        return bench.alternate(
            **{
                f"{nonzeros[folder.name]:,} nonzeros, CPU ms per latent": partial(ours, folder, large / latents)
                for folder in (smaller, large)
            }
        )

    with_latents, with_tokens = growth(narrow, "in-few.npy"), growth(short, "in-fifth.npy")
    first = [bench.saeval("sample", "run", large, large / "usual.npy")["first"] for _ in range(bench.rounds)]
    what = (
        f"{nonzeros[large.name]:,} nonzeros of {LATENTS:,} latents on {_TOKENS:,} tokens; {WINDOW}-token windows, "
        f"{EXPLAIN} to explain, {SCORE} and {SILENT} silent ones to score"
    )
    return [
        ratio(
            "sample_vs_delphi",
            usual,
            f"CPU time from the opened data to the last of {_SAMPLED} records, latents drawn from those with "
            f"{_ENOUGH} activating windows or more; {what}; on both sides all these windows are made, with tokens as "
            "strings, and none is left for later; eai-delphi decodes by a look-up in a list",
            target=60,
        ),
        ratio(
            "sample_dense_latent_vs_delphi",
            dense,
            f"the same for the {_NEAREST} latents whose firings come nearest to {_DENSE:,}",
            target=200,
        ),
        Figure(
            "first_latent_seconds",
            first,
            "s",
            "wall-clock in a new process from opening the store to the first record; imports are not counted",
            target=1,
            lower_is_better=True,
        ),
        ratio(
            "sample_growth_latents",
            with_latents,
            f"CPU time per latent in a store of {_TIMES} times the latents and nonzeros over that in one of fewer, "
            f"for the same {_SAMPLED} latents, whose own firings are the same",
            target=1.1,
            lower_is_better=True,
        ),
        ratio(
            "sample_growth_tokens",
            with_tokens,
            f"CPU time per latent with {_TIMES} times the tokens, and so {_TIMES} times its own firings, over that "
            f"with fewer, for the same {_SAMPLED} latents, which have {_ENOUGH} windows or more in both",
        ),
    ]


def _ms(taken: dict[str, Any], latents: Path) -> float:
    wanted = len(np.load(latents))
    if taken["latents"] != wanted:
        raise BenchmarkError(f"{taken['latents']} of {wanted} latents of {latents} were sampled")
    return float(taken["cpu"] / wanted * 1e3)


# --- what runs in a process of its own ---


def _prepare(large: Path, short: Path, narrow: Path, contexts: int) -> dict[str, int]:
    """Write a store, in Delphi's format, too, one of fewer tokens, one of fewer latents, and the latents to sample.

    Returns:
        The nonzeros of each.
    """
    whole = write_store(large / "store", contexts, A_TOKEN)
    fifth = write_store(short / "store", contexts // _TIMES, A_TOKEN)
    few = write_store(narrow / "store", contexts, A_TOKEN, every=_TIMES)
    _write_splits(large / "delphi" / "layer", contexts)
    rng = np.random.default_rng(4)

    def fit(store: ActivationStore) -> NDArray[np.int64]:
        most = len(store.lengths) * CONTEXT // WINDOW // 2  # or too few are silent
        drawn = (i for i in rng.permutation(LATENTS) if _ENOUGH <= len(store.windows(int(i), WINDOW).ids) <= most)
        return np.sort(list(islice(drawn, _SAMPLED)))

    np.save(large / "usual.npy", fit(whole))
    np.save(large / "in-fifth.npy", fit(fifth))
    np.save(large / "in-few.npy", fit(few))
    np.save(large / "dense.npy", np.sort(np.argsort(abs(whole.firings - _DENSE))[:_NEAREST]))
    return {folder.name: len(store.position) for folder, store in ((large, whole), (short, fifth), (narrow, few))}


def _write_splits(folder: Path, contexts: int) -> None:
    """Write activations as Delphi's LatentCache.save_splits does."""
    from safetensors.numpy import save_file

    columns = [
        (b.position.astype(np.uint32), b.latent.astype(np.uint16), b.value.astype(np.float16))
        for b in batches(contexts, A_TOKEN)
    ]
    position, latent, value = (np.concatenate(column) for column in zip(*columns, strict=True))
    tokens = corpus(contexts).tokens.astype(np.int64)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    bounds = np.linspace(0, LATENTS, _SPLITS + 1).astype(int)
    for low, high in pairwise(bounds):
        mine = (latent >= low) & (latent < high)
        row, column = np.divmod(position[mine], CONTEXT)
        locations = np.stack([row, column, latent[mine] - low], axis=1).astype(np.uint16)
        parts = {"locations": locations, "activations": value[mine], "tokens": tokens}
        save_file(parts, folder / f"{low}_{high - 1}.safetensors")


def _run(folder: Path, latents: list[int]) -> dict[str, Any]:
    """Sample latents as a run does."""
    from saeval_plugins.samplers import Quantiles

    derive_rng(0, "sample")  # imports what is imported late
    opened = time.perf_counter()
    store = ActivationStore.open(folder / "store")
    sampler = Quantiles(
        window=WINDOW, explain=EXPLAIN, explain_non_activating=0, score=SCORE, non_activating={"n": SILENT}
    )
    done, first = 0, None
    began = cpu_seconds()
    for latent in latents:
        record = sampler.sample(store, LatentId("layer", latent), derive_rng(0, "sample", latent))
        done += record is not None
        first = first or time.perf_counter() - opened
    return {"cpu": cpu_seconds() - began, "first": first, "latents": done}


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        *folders, contexts = sys.argv[2:]
        print(json.dumps(_prepare(*map(Path, folders), int(contexts))))
    else:
        print(json.dumps(_run(Path(sys.argv[2]), np.load(sys.argv[3]).tolist())))
