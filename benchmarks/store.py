"""What the activation store takes: bytes, memory and time to write, and time to read a latent.

`python -m benchmarks.store write FOLDER 1e9` writes one store of a size of your own and prints what it took.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated import CONTEXT, LATENTS, batches, corpus
from benchmarks.harness import Bench, Figure, cpu_seconds, peak_rss_mb, ratio
from saeval.plugin import ActivationStore, ActivationWriter

A_TOKEN = 32  # as with a top-k coder
_DISTINCT = 27  # of 32 draws for a token, some fall on the same latent
_READ = 2_000  # latents


def measure(bench: Bench) -> list[Figure]:
    """Return what writing and reading generated activations takes."""
    n = 20_000_000 if bench.quick else 50_000_000
    folder = bench.folder / "store"
    small: list[dict[str, Any]] = []

    def write() -> float:
        small.append(bench.saeval("store", "write", folder, n))
        return _ns(small[-1])

    turns = bench.alternate(
        **{
            "saeval, CPU ns per nonzero": write,
            "numpy, CPU ns per nonzero": lambda: _ns(bench.saeval("store", "radix", folder, n)),
        }
    )
    large = small[0] if bench.quick else bench.saeval("store", "write", folder, 2 * n)
    twice = bench.saeval("store", "write", folder, 2 * n) if bench.quick else large
    read = bench.saeval("store", "read", folder)
    shutil.rmtree(folder)
    zipf = f"a latent's frequency falls as 1 / its rank among {LATENTS:,}, about {_DISTINCT} fire on a token"
    return [
        Figure(
            "store_bytes_per_nonzero",
            [large["bytes"]],
            "B",
            f"size of the whole store, including tokens, over its {large['nonzeros']:,} nonzeros; {zipf}",
            target=6.2,
            lower_is_better=True,
        ),
        Figure(
            "store_peak_rss_mb",
            [large["peak"]],
            "MiB",
            f"peak memory of a process while {large['nonzeros']:,} nonzeros streamed into a store, less what it "
            "held before; the stream's own buffers and the tokens count",
            target=1536,
            lower_is_better=True,
        ),
        ratio(
            "store_rss_growth",
            {
                f"{small[0]['nonzeros']:,} nonzeros, MiB": [small[0]["peak"]],
                f"{twice['nonzeros']:,} nonzeros, MiB": [twice["peak"]],
            },
            "the same memory for a stream twice as long over that for the shorter one",
        ),
        ratio(
            "regroup_vs_radix",
            turns,
            f"CPU time to take {small[0]['nonzeros']:,} nonzeros by token and have a finished store by latent, "
            "checksums and all files written, over that of numpy's stable radix argsort and gather with everything "
            "in memory and nothing written",
            target=2,
            inverse=True,
            lower_is_better=True,
        ),
        Figure(
            "store_read_latent_us",
            [read["us"]],
            "µs",
            f"median time to read all positions and values of one of {_READ:,} latents drawn at random, files in the "
            f"page cache; half of them fire on {read['firings']:,.0f} tokens or more",
        ),
    ]


def _ns(taken: dict[str, Any]) -> float:
    return float(taken["cpu"] / taken["nonzeros"] * 1e9)


# --- what runs in a process of its own ---


def _write(folder: Path, contexts: int) -> dict[str, Any]:
    """Write a generated stream as a store."""
    before = peak_rss_mb()
    tokens = corpus(contexts)
    writer = ActivationWriter(folder)
    began = cpu_seconds()
    writer.start(tokens, LATENTS)
    spent = cpu_seconds() - began
    for batch in batches(contexts, A_TOKEN):
        began = cpu_seconds()
        writer.add(batch.position, batch.latent, batch.value)
        writer.advance(batch.contexts)
        spent += cpu_seconds() - began
    began = cpu_seconds()
    store = writer.finish()
    spent += cpu_seconds() - began
    nonzeros = len(store.position)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {"cpu": spent, "nonzeros": nonzeros, "bytes": size / nonzeros, "peak": peak_rss_mb() - before}


def _radix(contexts: int) -> dict[str, Any]:
    """Sort the same stream in memory."""
    columns = [(b.position.astype(np.uint32), b.latent.astype(np.uint16), b.value) for b in batches(contexts, A_TOKEN)]
    position, latent, value = (np.concatenate(column) for column in zip(*columns, strict=True))
    del columns
    began = cpu_seconds()
    order = np.argsort(latent, kind="stable")
    indptr = np.cumsum(np.bincount(latent, minlength=LATENTS))
    position, value = position[order], value[order].astype(np.float16)
    return {"cpu": cpu_seconds() - began, "nonzeros": int(indptr[-1])}


def _read(folder: Path) -> dict[str, Any]:
    """Read latents, each for the second time."""
    store = ActivationStore.open(folder)
    taken = []
    latents = np.random.default_rng(3).permutation(LATENTS)[:_READ]
    for latent in (int(i) for i in latents):
        store.activations(latent)
        began = time.perf_counter()
        store.activations(latent)
        taken.append(time.perf_counter() - began)
    return {"us": statistics.median(taken) * 1e6, "firings": statistics.median(store.firings[latents].tolist())}


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "read":
        print(json.dumps(_read(place)))
    else:
        count = round(float(sys.argv[3]) / (CONTEXT * _DISTINCT))
        print(json.dumps(_write(place, count) if what == "write" else _radix(count)))
