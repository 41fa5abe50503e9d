"""What a run costs per latent, from the first window to the last page of the report, and what it writes.

`python -m benchmarks.latents run FOLDER 1000` does it for a number of your own and prints what it took; `judged FOLDER
1000 URL` with a judge that listens there, `bare FOLDER 1000` with one scorer of two calls. `large FOLDER 200000 [URL]`
judges 10 activating and 10 other windows of each latent in one call, which is how a whole SAE is scored.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Figure, cpu_seconds, peak_rss_mb

_LATENTS, _CONTEXT, _WORDS, _A_TOKEN = 24_576, 256, 5000, 16
_SKEW = 1.7  # the larger, the more often the commonest latents fire
_SIZES = (200, 600)
_ANSWERS, _AT_ONCE = 200_000, 64
_WHAT = (
    "two scorers of 20 calls each (`detection` and `fuzzing`, 50 activating and 50 other windows of 32 tokens, five a "
    "prompt) with a scripted judge, explanations by `top_tokens`; all stages, all tables and the whole report"
)


def measure(bench: Bench) -> list[Figure]:
    """Return CPU time, disk and bytes per latent and answer, and the time of running a finished run again."""
    folder = bench.folder / "latents"
    sizes = [n // 2 for n in _SIZES] if bench.quick else _SIZES
    runs = [bench.saeval("latents", "run", folder, n) for n in sizes]
    small, large = ({key: float(run[key]) for key in run} for run in runs)
    each = {key: (large[key] - small[key]) / (sizes[1] - sizes[0]) for key in large}
    slope = f"slope between {sizes[0]} and {sizes[1]} latents: {_WHAT}"
    bare = bench.saeval("latents", "bare", folder, 1000 if bench.quick else 5000)
    answers = bench.saeval("latents", "answers", folder, _ANSWERS // (10 if bench.quick else 1))
    return [
        Figure("latent_cpu_ms", [1000 * each["cpu"]], "ms", slope, target=12, lower_is_better=True),
        Figure("latent_disk_kb", [each["disk"]], "kB", slope + "; the cache of answers counts", 60, True),
        Figure(
            "cached_answer_bytes",
            [answers["bytes"]],
            "B",
            f"bytes that the process hands to the system for each of {answers['n']:,} answers, {_AT_ONCE} a "
            f"transaction; the file holds {answers['size']:.0f} bytes for each",
            1000,
            True,
        ),
        Figure(
            "rerun_finished_seconds",
            [bare["again"]],
            "s",
            f"wall-clock of `saeval.run` on a finished run of {bare['n']:,} latents, with one scorer of two calls; "
            f"it took {bare['seconds']:.0f} s at first",
            3,
            True,
        ),
    ]


def store(folder: Path, latents: int = _LATENTS) -> Path:
    """Make the store that all runs with as many latents share, unless it is there; return its path."""
    import numpy as np

    from benchmarks.generated import activations
    from saeval.plugin import ActivationWriter, TokenDataset

    place = folder / ("store" if latents == _LATENTS else f"store-{latents}")
    if place.exists():
        return place
    contexts = 6000
    rng = np.random.default_rng(0)
    tokens = rng.integers(_WORDS, size=(contexts, _CONTEXT), dtype=np.int32)
    documents = np.arange(contexts, dtype=np.int32) // 4
    names = tuple(f"d{i}" for i in range(int(documents[-1]) + 1))
    words = {i: f" w{i}".encode() for i in range(_WORDS)}
    lengths = np.full(contexts, _CONTEXT, np.int32)
    data = TokenDataset(tokens, lengths, np.ones(tokens.shape, bool), documents, names, words, 0)
    writer = ActivationWriter(place)
    writer.start(data, latents)
    for start in range(0, contexts, 100):
        here = min(100, contexts - start) * _CONTEXT
        latent = np.sort((latents * rng.random((here, _A_TOKEN)) ** _SKEW).astype(np.int64), axis=1)
        new = np.diff(latent, axis=1, prepend=-1) != 0
        position = start * _CONTEXT + np.nonzero(new)[0]
        writer.add(position, latent[new], activations(len(position), rng))
        writer.advance(start + here // _CONTEXT)
    writer.finish()
    return place


def _task(place: Path, n: int, model: dict[str, Any], kind: str) -> dict[str, Any]:
    scorers: dict[str, Any] = {"detection": {}, "fuzzing": {}}
    sampler: dict[str, Any] = {"use": "delphi", "with": {"window": 32}}
    if kind == "bare":
        scorers = {"detection": {"with": {"batch": 50}}}
    elif kind == "large":
        scorers = {"detection": {"with": {"batch": 20}}}
        windows = {"window": 32, "explain": 10, "score": 10, "non_activating": {"n": 10}}
        sampler = {"use": "random", "with": windows}
    return {
        "saeval": 1,
        "task": "latents",
        "version": "1.0",
        "llms": {"judge": model},
        "source": {"use": "recorded", "with": {"path": str(place)}},
        "latents": {"n": n, "min_windows": 40},
        "sampler": sampler,
        "explainer": {"use": "top_tokens"},
        "scorers": scorers,
        "leaderboard": {"rank_by": "detection.balanced_accuracy"},
    }


def _run(folder: Path, n: int, model: dict[str, Any], kind: str) -> dict[str, float]:
    """Run a task of n latents in a cache of its own; return what it took."""
    import saeval

    place = folder / f"run-{n}"
    shutil.rmtree(place, ignore_errors=True)
    os.environ["SAEVAL_CACHE"] = str(place / "cache")
    task = _task(store(folder, max(_LATENTS, n + n // 4)), n, model, kind)
    cpu, began = cpu_seconds(), time.monotonic()
    saeval.run(task, out=place / "out", display="none")
    cpu, seconds = cpu_seconds() - cpu, time.monotonic() - began
    began = time.monotonic()
    saeval.run(task, out=place / "out", display="none")
    again = time.monotonic() - began
    out = sum(file.stat().st_size for file in (place / "out").rglob("*") if file.is_file())
    answers = place / "cache" / "calls.sqlite"
    disk = out + answers.stat().st_size
    return {"n": n, "cpu": cpu, "seconds": seconds, "again": again, "disk": disk / 1000, "peak": peak_rss_mb()}


def _answers(folder: Path, n: int) -> dict[str, float]:
    """Keep n answers in a new cache; return what was written."""
    from saeval.llm import AnswerCache
    from saeval.plugin import Reply, Usage, content_hash

    file = folder / "answers" / "calls.sqlite"
    shutil.rmtree(file.parent, ignore_errors=True)
    cache, before = AnswerCache(file), _handed_over()
    cpu = cpu_seconds()
    for start in range(0, n, _AT_ONCE):
        keys = [content_hash("answer", i) for i in range(start, min(n, start + _AT_ONCE))]
        replies = {
            key: Reply("[1, 0, 1, 0, 1]", Usage(812, 16, 0, 0.000123, "provider"), served="gpt-4o-mini-2024-07-18")
            for key in keys
            if cache.get(key) is None
        }
        cache.put(replies, "openai/gpt-4o-mini")
    cache.close()
    took = cpu_seconds() - cpu
    return {"n": n, "bytes": (_handed_over() - before) / n, "size": file.stat().st_size / n, "us": 1e6 * took / n}


def _handed_over() -> int:
    """Bytes that this process has written so far, pages that are written again included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def main() -> None:
    """Measure one thing, and print it as JSON."""
    kind, folder, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    windows = {"bare": 50, "large": 20}.get(kind, 5)
    model: dict[str, Any] = {"model": "scripted/x", "reply": json.dumps([i % 2 for i in range(windows)])}
    if len(sys.argv) > 4:
        free = {"usd_per_million_input": 0.0, "usd_per_million_output": 0.0}
        model = {"model": "openai_compatible/x", "api_base": sys.argv[4], **free}
    if kind == "answers":
        print(json.dumps(_answers(folder, n)))
    else:
        print(json.dumps(_run(folder, n, model, kind)))


if __name__ == "__main__":
    main()
