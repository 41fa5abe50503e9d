"""Train a small SAE and score its checkpoints on the same latents, with saeval inside the loop.

    python examples/training_loop.py google/gemma-3-270m layers.9 prose.jsonl --judge openai/gpt-4o-mini

The model's activations are computed once, by `LiveModel`; `prose.jsonl` has a document per line under
`text`. Every `--every` steps the SAE is saved in sparsify's format and scored; the board of all checkpoints and the
comparison of the last with the first are printed at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

import saeval
from saeval.plugin import LiveModel

CONTEXT = 32
"""Tokens per context, in training and scoring."""
LATENTS = 10
"""Latents that every checkpoint is scored on: those whose firing rate at the first one is nearest to `RATE`."""
RATE = 0.05


class TopK(torch.nn.Module):
    """A top-k SAE, as sparsify stores it."""

    def __init__(self, d_in: int, n_latents: int, k: int):
        super().__init__()
        self.k = k
        self.encoder = torch.nn.Linear(d_in, n_latents)
        self.W_dec = torch.nn.Parameter(torch.nn.functional.normalize(self.encoder.weight.detach().clone(), dim=-1))
        self.b_dec = torch.nn.Parameter(torch.zeros(d_in))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return reconstructions, and activations.  x [tokens, d_in]"""
        before = torch.relu(self.encoder(x - self.b_dec))
        top = before.topk(self.k, dim=-1)
        activations = torch.zeros_like(before).scatter(-1, top.indices, top.values)
        return activations @ self.W_dec + self.b_dec, activations

    def save(self, folder: Path) -> Path:
        """Write a checkpoint."""
        n_latents, d_in = self.W_dec.shape
        config = {"activation": "topk", "k": self.k, "d_in": d_in, "num_latents": n_latents, "normalize_decoder": True}
        folder.mkdir(parents=True)
        (folder / "cfg.json").write_text(json.dumps(config))
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "sae.safetensors")
        return folder


def spec_for(model: str, hookpoint: str, corpus: Path, judge: saeval.RoleSpec) -> saeval.Spec:
    """Return the task that scores a checkpoint; the loop fills in which checkpoint, and which latents."""
    source = {"model": model, "hookpoint": hookpoint, "coder": {"use": "sparsify", "with": {"path": ""}}}
    return saeval.Spec(
        saeval=1,
        task="checkpoints",
        version="1.0",
        llms={"judge": judge},
        source={"use": "transformers", "with": {**source, "corpus": {"path": str(corpus), "context": CONTEXT}}},
        latents={"select": "list", "indices": [], "min_windows": 10},
        sampler={"use": "random", "with": {"window": 8, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        explainer="top_tokens",
        scorers={"detection": {"with": {"batch": 5}}},
    )


def batches(x: torch.Tensor, steps: int, size: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Yield random batches of activations."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield x[torch.randint(len(x), (size,), generator=generator)]


def train(
    x: torch.Tensor, spec: saeval.Spec, out: Path, *, n_latents: int, k: int, steps: int, every: int
) -> list[Path]:
    """Train on activations, and return the runs that scored the checkpoints.  x [tokens, d_in]"""
    torch.manual_seed(0)
    sae, runs = TopK(x.shape[1], n_latents, k), []
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    latents: list[int] = []
    for step, batch in enumerate(batches(x, steps, 256), 1):
        loss = (sae(batch)[0] - batch).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every:
            continue
        with torch.no_grad():
            firing = (sae(x)[1] > 0).float().mean(0)
        latents = latents or (firing - RATE).abs().topk(LATENTS, largest=False).indices.tolist()
        checkpoint = sae.save(out / f"step-{step}" / "sae")
        changes = {"source.with.coder.with.path": str(checkpoint), "latents.indices": latents}
        run = saeval.run(spec.changed(changes), out=out / f"step-{step}" / "run", display="none")
        row = run.cells[0].scores[0]
        print(f"step {step}: loss {loss:.4f}, {row.scorer} {row.value} {row.ci95} on {row.n} latents")
        runs.append(out / f"step-{step}" / "run")
    return runs


def activations(model: str, hookpoint: str, corpus: Path) -> torch.Tensor:
    """Return the activations at a hookpoint, for the tokens of a corpus.  [tokens, d_in]"""
    live = LiveModel.load(model)
    point, found = live.hookpoint(hookpoint), []
    for line in corpus.read_text(encoding="utf-8").splitlines():
        ids = live.tokenizer(json.loads(line)["text"], return_tensors="pt")["input_ids"]
        for context in ids.split(CONTEXT, dim=1):
            found.append(live.capture(context, [point])[point][0].float())
    return torch.cat(found)


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("hookpoint")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--out", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=250)
    options = parser.parse_args()
    spec = spec_for(options.model, options.hookpoint, options.corpus.absolute(), saeval.RoleSpec(model=options.judge))
    x = activations(options.model, options.hookpoint, options.corpus)
    runs = train(x, spec, options.out, n_latents=1024, k=16, steps=options.steps, every=options.every)
    for contrast in saeval.compare(runs[0], runs[-1], paired=True).contrasts:
        print(f"last against first: {contrast.metric} {contrast.difference} {contrast.ci95}")


if __name__ == "__main__":
    main()
