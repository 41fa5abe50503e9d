"""Whether merging the pieces of a store takes time in proportion to its nonzeros.

`python -m benchmarks.merge FOLDER PIECES` merges so many pieces, in little memory, and prints what it took.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bench, Figure, cpu_seconds, peak_rss_mb
from saeval.activations.store.chunks import Chunk, by_latent, merge, pair_type

_LATENTS, _A_PIECE = 4096, 50_000
_BUDGET = 500_000  # a hundredth of what a machine with some gigabytes takes, for a thousand times fewer nonzeros
_PIECES = (500, 1000, 2000)


def measure(bench: Bench) -> list[Figure]:
    """Return how much more a nonzero costs in the largest of three stores than in the smallest."""
    folder = bench.folder / "merge"
    pieces = _PIECES[:2] if bench.quick else _PIECES
    taken = {n: bench.saeval("merge", folder, n) for n in pieces}
    sides = {f"{n * _A_PIECE:,} nonzeros in {n} pieces, CPU ns each": [one["ns"]] for n, one in taken.items()}
    first, last = taken[pieces[0]]["ns"], taken[pieces[-1]]["ns"]
    method = (
        f"CPU time per nonzero to merge {pieces[-1]} pieces of {_A_PIECE:,} nonzeros over that for {pieces[0]}, with "
        f"memory for {_BUDGET:,} of them: 1 where time is in proportion to the nonzeros"
    )
    return [Figure("merge_growth", [last / first], "×", method, lower_is_better=True, sides=sides)]


def _run(folder: Path, pieces: int) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind, rng = pair_type(pieces * _A_PIECE), np.random.default_rng(0)
    chunks = []
    for n in range(pieces):
        latent = (_LATENTS * rng.random(_A_PIECE) ** 1.7).astype(np.uint16)
        pairs = np.empty(_A_PIECE, dtype=kind)
        pairs["position"], pairs["value"] = n * _A_PIECE + np.arange(_A_PIECE), 1.0
        chunks.append(Chunk(folder / str(n), _LATENTS, kind))
        chunks[-1].write(*by_latent(latent, pairs, _LATENTS))
    (folder / "merged").mkdir()
    held, began = peak_rss_mb(), cpu_seconds()
    nonzeros = merge(chunks, _LATENTS, kind, folder / "merged", _BUDGET)
    found = {"ns": (cpu_seconds() - began) / nonzeros * 1e9, "mb": peak_rss_mb() - held}
    shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), int(sys.argv[2]))))
