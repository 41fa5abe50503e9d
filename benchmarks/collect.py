"""How fast activations are collected, against a bare loop and against eai-delphi's LatentCache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Bench, Figure, cpu_seconds, peak_rss_mb, ratio

if TYPE_CHECKING:
    from saeval.plugin import SparseCoder

WIDTH, LATENTS, K, CONTEXT, BATCH = 256, 32_768, 32, 256, 8
LAYERS, MANY_LAYERS, EARLY, WORDS = 4, 24, 1, 1_000
THRESHOLD = 0.45  # of the JumpReLU: some tens of latents fire on a token
CHOSEN = 200
_BATCHES = 5
_SETTINGS = ("last", "early", "subset")
"""Top-k at the last of few layers; the same early in a model of many; chosen latents of a JumpReLU at the last."""
_LABEL = "CPU ms per token"


def measure(bench: Bench) -> list[Figure]:
    """Return how CPU time per token compares on the same model, coder and tokens."""
    folder = bench.folder / "collect"
    if not folder.exists():
        bench.saeval("collect", "make", folder, _BATCHES)
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "saeval": partial(bench.saeval, "collect", "saeval", folder),
        "loop": partial(bench.saeval, "collect", "loop", folder),
        "delphi": partial(bench.delphi, "collect", folder),
    }
    turns = max(1, bench.rounds // 2) if bench.quick else bench.rounds
    rounds = [{side: run() for side, run in sides.items()} for _ in range(turns)]

    def against(other: str, setting: str) -> dict[str, list[float]]:
        labels = {"saeval": "saeval", "loop": "bare loop", "delphi": "eai-delphi"}
        return {f"{labels[s]}, {_LABEL}": [r[s][setting] for r in rounds] for s in ("saeval", other)}

    what = (
        f"CPU time per token over {_BATCHES * BATCH * CONTEXT:,} random tokens in batches of {BATCH} contexts of "
        f"{CONTEXT}; a Llama of width {WIDTH} with random weights, a coder of {LATENTS:,} latents; one thread; "
        "loading is not counted, writing is"
    )
    topk = f"{what}; top-{K} at the last of {LAYERS} layers"
    return [
        ratio(
            "collect_vs_limit",
            against("loop", "last"),
            f"{topk}; the bare loop stops after the hooked layer, too, and appends (u16, f16) pairs to a file, "
            "unsorted, with neither checks nor sums for unexplained variance; saeval tokenises, sorts by latent and "
            "makes a store",
            target=0.9,
        ),
        ratio("collect_vs_delphi", against("delphi", "last"), f"{topk}; LatentCache.run and save_splits", target=2.2),
        ratio(
            "collect_vs_delphi_early_exit",
            against("delphi", "early"),
            f"{what}; top-{K} at layer {EARLY} of {MANY_LAYERS}, after which saeval stops and eai-delphi continues",
            target=4,
        ),
        ratio(
            "collect_vs_delphi_subset",
            against("delphi", "subset"),
            f"{what}; {CHOSEN} chosen latents of a JumpReLU at the last of {LAYERS} layers, given to eai-delphi as "
            "filters",
            target=4,
        ),
        Figure(
            "collect_peak_rss_mb",
            [r["saeval"]["peak_rss_mb"] for r in rounds],
            "MiB",
            f"peak memory of the process that collects; {topk}; eai-delphi's medians in the same place: "
            f"{sorted(r['delphi']['peak_rss_mb'] for r in rounds)[len(rounds) // 2]:,.0f} MiB",
            lower_is_better=True,
        ),
    ]


# --- What is generated ---


def make(folder: Path, batches: int) -> None:
    """Write models, weights of the coders, and the same random words as text and as tokens."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Metaspace

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    backend = Tokenizer(WordLevel({f"▁w{i}": i for i in range(WORDS)}, unk_token="▁w0"))
    backend.pre_tokenizer = Metaspace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    for name, layers in (("last", LAYERS), ("early", MANY_LAYERS)):
        config = transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH), dim=-1)
    save_file({"decoder": decoder}, folder / "coder.safetensors")
    tokens = np.random.default_rng(0).integers(WORDS, size=(batches * BATCH, CONTEXT))
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "chosen.npy", np.sort(np.random.default_rng(1).permutation(LATENTS)[:CHOSEN]))
    lines = [json.dumps({"text": " ".join(f"w{i}" for i in row)}) for row in tokens.tolist()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))


def model_of(setting: str) -> tuple[str, str]:
    """Return the folder of a setting's model, and where it is read."""
    return ("early", f"layers.{EARLY}") if setting == "early" else ("last", f"layers.{LAYERS - 1}")


def _coders(folder: Path) -> dict[str, Any]:
    """Return a coder for every setting, its weights in memory."""
    import torch
    from safetensors.torch import load_file

    from saeval.plugin import Coder, LinearCoder

    decoder = load_file(folder / "coder.safetensors")["decoder"]
    topk = LinearCoder(decoder.T, decoder, k=K)
    jumprelu = LinearCoder(decoder.T.contiguous(), decoder, threshold=torch.full((LATENTS,), THRESHOLD))

    class InMemory(Coder):
        name = "in_memory"
        jumps: bool = False

        def separable(self) -> bool:
            return self.jumps

        def load(self, device: str, d_in: int) -> SparseCoder:
            return jumprelu if self.jumps else topk

    return {"last": InMemory(), "early": InMemory(), "subset": InMemory(jumps=True)}


# --- Sides, each in a process of its own ---


def saeval_side(folder: Path) -> dict[str, float]:
    """Collect as a run does; return CPU ms per token by setting."""
    import torch
    from saeval_plugins.sources import Transformers

    from saeval.plugin import ActivationWriter, Corpus, LiveModel

    coders = _coders(folder)
    chosen = np.load(folder / "chosen.npy").tolist()
    tokens = np.load(folder / "tokens.npy")
    found: dict[str, float] = {}
    for setting in _SETTINGS:
        name, place = model_of(setting)
        live = LiveModel.load(str(folder / name))
        live.capture(torch.from_numpy(tokens[:BATCH]), [live.hookpoint(place)])  # the first pass sets things up
        source = Transformers(
            model=str(folder / name),
            hookpoint=place,
            coder=coders[setting],
            corpus=Corpus(path=folder / "corpus.jsonl", context=CONTEXT),
        )
        if setting == "subset":
            source = source.only(chosen)
        writer = ActivationWriter(folder / f"store-{setting}")
        began = cpu_seconds()
        type(source).collect_many([source], [writer])
        store = writer.finish()
        found[setting] = 1000 * (cpu_seconds() - began) / store.n_tokens
        found.setdefault("peak_rss_mb", peak_rss_mb())
    return found


def loop_side(folder: Path) -> dict[str, float]:
    """Run the least that gives what a store holds; return CPU ms per token."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    name, place = model_of("last")
    model = AutoModelForCausalLM.from_pretrained(folder / name).eval().model
    decoder = load_file(folder / "coder.safetensors")["decoder"]
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))

    class Enough(Exception):
        pass

    caught = []

    def catch(_module: Any, _given: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise Enough

    model.get_submodule(place).register_forward_hook(catch)

    def encode(batch: torch.Tensor) -> tuple[bytes, bytes]:
        with torch.inference_mode():
            with suppress(Enough):
                model(batch, use_cache=False)
            values, indices = (caught.pop().flatten(0, 1) @ decoder.T).topk(K, dim=-1, sorted=False)
            return indices.to(torch.uint16).numpy().tobytes(), values.half().numpy().tobytes()

    encode(tokens[:BATCH])
    began = cpu_seconds()
    with (folder / "loop.bin").open("wb") as file:
        for batch in tokens.split(BATCH):
            for part in encode(batch):
                file.write(part)
    return {"last": 1000 * (cpu_seconds() - began) / tokens.numel(), "peak_rss_mb": peak_rss_mb()}


if __name__ == "__main__":
    side, folder = sys.argv[1], Path(sys.argv[2])
    if side == "make":
        make(folder, int(sys.argv[3]))
        print("{}")
    else:
        import torch

        torch.set_num_threads(1)  # threads that wait for one another would count as CPU time
        print(json.dumps({"saeval": saeval_side, "loop": loop_side}[side](folder)))
