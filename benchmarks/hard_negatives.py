"""What finding and drawing hard non-activating windows takes per latent, and how many files a store keeps open.

`python -m benchmarks.hard_negatives FOLDER 1e7` makes a store of that many nonzeros and prints what it took.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated import CONTEXT, activations, corpus
from benchmarks.harness import Bench, Figure, cpu_seconds, peak_rss_mb
from saeval.plugin import ActivationStore, ActivationWriter, LatentId, derive_rng

_LATENTS, _A_TOKEN = 131_072, 100
_SKEW = 1.7  # the larger, the more often the commonest latents fire
_BATCH = 64  # contexts
_SIZES = (1e7, 5e7, 2e8)  # below, what does not grow hides what does
_ASKED = 1e9
_SAMPLED = 2048


def measure(bench: Bench) -> list[Figure]:
    """Return the cost per latent at a thousand million nonzeros, by the line through what smaller stores take."""
    folder = bench.folder / "hard-negatives"
    sizes = _SIZES[:-1] if bench.quick else _SIZES
    taken = [bench.saeval("hard_negatives", folder, size) for size in sizes]
    nonzeros = [one["nonzeros"] for one in taken]
    figures = []
    shared = f"in a dictionary of {_LATENTS:,}, {_A_TOKEN} of which fire on a token"
    for name, key, what, target in (
        ("hard_negative_ms", "find", f"to find the ten neighbours of all latents by co-occurrence, {shared}", 10),
        (
            "hard_negative_draw_ms",
            "draw",
            f"to draw the windows of such a latent again, as each step does, {shared}",
            None,
        ),
    ):
        slope, fixed = np.polyfit(nonzeros, [one[key] for one in taken], 1)
        sides = {f"{n:,} nonzeros, ms": [one[key]] for n, one in zip(nonzeros, taken, strict=True)}
        method = (
            f"CPU time per latent {what}; extrapolated to {_ASKED:,.0f} nonzeros by the line through the sizes below, "
            f"{fixed:.3g} ms and {slope * 1e9:.3g} ms per 10⁹"
        )
        figures.append(
            Figure(name, [fixed + slope * _ASKED], "ms", method, target=target, lower_is_better=True, sides=sides)
        )
    figures.append(
        Figure(
            "open_files_per_cell",
            [taken[-1]["files"]],
            "",
            "files of a cell's store that stay open, after its latents were sampled",
            target=1,
            lower_is_better=True,
        )
    )
    return figures


def _store(path: Path, nonzeros: int) -> ActivationStore:
    contexts = max(1, round(nonzeros / (CONTEXT * _A_TOKEN)))
    writer = ActivationWriter(path)
    writer.start(corpus(contexts), _LATENTS)
    rng = np.random.default_rng(0)
    for start in range(0, contexts, _BATCH):
        n = min(_BATCH, contexts - start)
        drawn = (_LATENTS * rng.random((n * CONTEXT, _A_TOKEN)) ** _SKEW).astype(np.int64)
        latent = np.sort(drawn, axis=1)
        new = np.diff(latent, axis=1, prepend=-1) != 0
        position = start * CONTEXT + np.nonzero(new)[0]
        writer.add(position, latent[new], activations(len(position), rng))
        writer.advance(start + n)
    return writer.finish()


def _run(folder: Path, nonzeros: int) -> dict[str, Any]:
    """Make a store, then sample hard windows of some of its latents."""
    from saeval_plugins.samplers import RandomSampler

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = _store(folder / "store", nonzeros)
    store = ActivationStore.open(store.path)
    # Windows shrink to what the smallest store has; what they cost does not depend on how many are asked for.
    sampler = RandomSampler(explain=5, score=10, non_activating={"use": "neighbours", "n": 10})
    enough = np.flatnonzero(store.firings >= 5)
    latents = np.random.default_rng(1).permutation(enough)[:_SAMPLED].tolist()
    _ = store.position.sum(), store.mask.sum()  # into the page cache
    held, began = peak_rss_mb(), cpu_seconds()
    sampler.prepare(store, latents[:1])  # turns the store round, once for all latents
    once = cpu_seconds() - began
    sampler.prepare(store, latents)
    find = cpu_seconds() - began - once
    some = latents[:200]
    for latent in some[:20]:
        sampler.sample(store, LatentId("h", latent), derive_rng(0, latent))
    began = cpu_seconds()
    for latent in some:
        sampler.sample(store, LatentId("h", latent), derive_rng(0, latent))
    draw = cpu_seconds() - began
    result = {
        "nonzeros": len(store.position),
        "find": (find / len(latents) + once / _LATENTS) * 1e3,
        "draw": draw / len(some) * 1e3,
        "mb": peak_rss_mb() - held,
        "files": _open_under(folder),
    }
    shutil.rmtree(folder)
    return result


def _open_under(folder: Path) -> int:
    """Count this process's open files under a folder."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += link.readlink().is_relative_to(folder.resolve())
        except OSError:  # the listing's own
            continue
    return found


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), round(float(sys.argv[2])))))
