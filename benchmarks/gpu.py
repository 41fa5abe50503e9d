"""Measures collecting on one GPU with random weights of real shapes, in one session of minutes.

    python -m benchmarks.gpu --out gpu-out            (`--tiny` runs every section in seconds, also on a CPU)

Gemma 2 9B up to layer 20 with 131,072 JumpReLU latents, and GPT-2 small up to block 8 with 24,576; no hub and no files
are needed. Each result is a line of JSON, on standard output and in `results.jsonl`; profiles lie beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from saeval_plugins.sources import Transformers

from saeval.models import screened
from saeval.models.screening import screens
from saeval.plugin import ActivationStore, ActivationWriter, Coder, Corpus, LinearCoder, LiveModel, TokenDataset

CONTEXT = 257


class Size(NamedTuple):
    """Shape of a subject and its coder, and what to collect."""

    kind: str
    width: int
    latents: int
    place: str
    l0: int
    tokens: int


SIZES = {
    "gemma": Size("gemma2", 3584, 131_072, "layers.20", 100, 400_000),
    "gpt2": Size("gpt2", 768, 24_576, "h.8", 60, 2_000_000),
}
TINY = {"gemma": Size("gemma2", 64, 1024, "layers.1", 20, 4000), "gpt2": Size("gpt2", 64, 512, "h.1", 20, 4000)}
GEMMA_9B: dict[str, Any] = {
    "vocab_size": 256_000, "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip
TINY_GEMMA: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
TINY_GPT2: dict[str, Any] = {"vocab_size": 300, "n_embd": 64, "n_head": 4, "n_layer": 3}


class Tokenizer:
    """As much of a tokenizer as collecting random tokens needs."""

    bos_token_id = eos_token_id = 1
    pad_token_id = 0


@dataclass
class Session:
    """Where results go, and the model that is loaded."""

    out: Path
    work: Path
    tiny: bool
    device: str
    loaded: tuple[str, LiveModel] | None = None

    def say(self, **facts: Any) -> None:
        """Write a result down."""
        line = json.dumps(facts)
        print(line, flush=True)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    def wait(self) -> None:
        """Wait until the GPU has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ms(self, do: Callable[[], object], rounds: int = 10) -> float:
        """Return the milliseconds that something takes, warmed up."""
        for _ in range(3):
            do()
        self.wait()
        began = time.perf_counter()
        for _ in range(rounds):
            do()
        self.wait()
        return 1000 * (time.perf_counter() - began) / rounds

    def size(self, name: str) -> Size:
        """Return the shape of a subject."""
        return (TINY if self.tiny else SIZES)[name]

    def model(self, name: str) -> LiveModel:
        """Return a subject with random weights, one at a time."""
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None
            self.loaded = name, LiveModel(name, self._made(name), Tokenizer())
        return self.loaded[1]

    def _made(self, name: str) -> Any:
        import transformers

        tiny, real = (TINY_GEMMA, GEMMA_9B) if name == "gemma" else (TINY_GPT2, {})
        options = tiny if self.tiny else real
        config = transformers.AutoConfig.for_model(self.size(name).kind, **options)
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if self.device == "cuda" else torch.float32)
        try:
            with torch.device(self.device):
                model = transformers.AutoModelForCausalLM.from_config(config)
        finally:
            torch.set_default_dtype(before)
        return model.eval().requires_grad_(False)


def limits(session: Session) -> None:
    """Measure what the machine can do: bfloat16 products, memory, and copies to the host."""
    n = 256 if session.tiny else 8192
    a = torch.randn(n, n, device=session.device, dtype=torch.bfloat16)
    session.say(what="bf16 product, TFLOP/s", value=2 * n**3 / session.ms(lambda: a @ a) / 1e9)
    x = torch.empty(1 << (20 if session.tiny else 30), dtype=torch.uint8, device=session.device)
    y = torch.empty_like(x)
    session.say(
        what="copy on the device, GB/s read and written", value=2 * len(x) / session.ms(lambda: y.copy_(x)) / 1e6
    )
    part = x[: 64 << 20]
    session.say(what="copy to pageable memory, GB/s", value=len(part) / session.ms(part.cpu) / 1e6)
    if session.device == "cuda":
        pinned = torch.empty(len(part), dtype=torch.uint8, pin_memory=True)
        took = session.ms(lambda: pinned.copy_(part, non_blocking=True))
        session.say(what="copy to pinned memory, GB/s", value=len(part) / took / 1e6)


def encode(session: Session) -> None:
    """Measure the parts of encoding: products in three precisions, thresholds, top-k, sorting by latent."""
    for name in SIZES:
        size = session.size(name)
        rows = 64 if session.tiny else 512
        x = torch.randn(rows, size.width, device=session.device)
        weights = torch.randn(size.width, size.latents, device=session.device) / size.width**0.5
        precisions = ("fp32", False, torch.float32), ("tf32", True, torch.float32), ("bf16", False, torch.bfloat16)
        for label, tf32, kind in precisions:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            took = session.ms(partial(torch.matmul, x.to(kind), weights.to(kind)))
            session.say(what=f"product {name} {label}, us a token", value=1000 * took / rows)
        torch.backends.cuda.matmul.allow_tf32 = False
        dense = x @ weights
        threshold = _threshold(dense[:8], size)
        took = session.ms(lambda dense=dense, threshold=threshold: (dense > threshold).nonzero())
        session.say(what=f"threshold and nonzero {name}, us a token", value=1000 * took / rows)
        took = session.ms(partial(torch.topk, dense, 64, sorted=False))
        session.say(what=f"top 64 {name}, us a token", value=1000 * took / rows)
        n = 10_000 if session.tiny else 8_000_000
        latent = torch.randint(size.latents, (n,), device=session.device, dtype=torch.int32)
        took = session.ms(partial(torch.sort, latent, stable=True), 5)
        session.say(what=f"sort by latent {name}, ns a nonzero", value=1e6 * took / n)


def _threshold(dense: torch.Tensor, size: Size) -> float:
    """Return the threshold above which a token has `l0` latents."""
    flat = dense.float().flatten().cpu()
    return float(flat.kthvalue(int(len(flat) * (1 - size.l0 / size.latents))).values)


def collect(
    session: Session,
    name: str,
    tokens: int,
    kind: str = "jumprelu",
    *,
    profile: bool = False,
    ragged: bool = False,
    **options: Any,
) -> ActivationStore:
    """Collect random tokens with saeval's own source and writer, and say how fast that was.

    Args:
        session: Where results go.
        name: Subject.
        tokens: Text tokens, about.
        kind: `jumprelu` or `topk`.
        profile: Whether to measure how long the GPU is busy.
        ragged: Whether contexts differ in length.
        options: Of the source.
    """
    size, live = session.size(name), session.model(name)
    data = _text(live.vocabulary, max(8, tokens // (CONTEXT - 1)), ragged=ragged)
    coders = [_coder(session, live, size, data, kind)]

    class InMemory(Coder):
        name = "in_memory"

        def load(self, device: str, d_in: int) -> LinearCoder:
            return coders.pop()  # held by nobody else, so that what it drops is free

    class Source(Transformers):
        name = "bench"

        def _live(self) -> LiveModel:
            return live

    class Writer(ActivationWriter):
        def tokens(self, make: Any) -> TokenDataset:
            return data

    source = Source(model="bench", hookpoint=size.place, coder=InMemory(), corpus=Corpus(dataset="none"), **options)
    folder = session.work / "store"
    for old in session.work.glob("store*"):
        shutil.rmtree(old)
    writer, busy, cpu = Writer(folder), None, time.process_time()
    session.wait()
    if session.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    if profile:
        busy = _profiled(session, name, lambda: Source.collect_many([source], [writer]))
    else:
        Source.collect_many([source], [writer])
    session.wait()
    passed = time.perf_counter() - began
    store = writer.finish()
    took = time.perf_counter() - began
    session.say(
        what=f"collect {name} {kind}",
        tokens_per_s=round(store.n_tokens / took),
        tokens=store.n_tokens,
        screen=screens(),
        ragged=ragged,
        **options,
        **{key: store.facts[key] for key in ("tokens_a_batch", "padding") if key in store.facts},
        pass_s=round(passed, 2),
        finish_s=round(took - passed, 2),
        gpu_busy_share=busy and round(busy / passed, 3),
        cpu_s=round(time.process_time() - cpu, 2),
        l0=float(store.indptr[-1]) / store.n_tokens,
        gpu_peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2) if session.device == "cuda" else None,
        rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    )
    return store


def _text(vocabulary: int, contexts: int, *, ragged: bool = False) -> TokenDataset:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, vocabulary, size=(contexts, CONTEXT), dtype=np.int32)
    tokens[:, 0] = 1
    lengths = np.full(contexts, CONTEXT, np.int32)
    if ragged:
        lengths = np.minimum(CONTEXT, 2 + rng.lognormal(4.5, 0.8, contexts)).astype(np.int32)
    place = np.arange(CONTEXT)
    mask = (place < lengths[:, None]) & (place > 0)
    documents = np.arange(contexts, dtype=np.int32)
    return TokenDataset(
        tokens, lengths, mask, documents, tuple(map(str, range(contexts))), dict.fromkeys(range(vocabulary), b"x"), 1
    )


def _coder(session: Session, live: LiveModel, size: Size, data: TokenDataset, kind: str) -> LinearCoder:
    """Return a random coder whose L0 on the text is the size's."""
    generator = torch.Generator(device=session.device).manual_seed(0)
    decoder = torch.randn(size.latents, size.width, device=session.device, generator=generator)
    decoder = torch.nn.functional.normalize(decoder, dim=-1)
    biases = torch.zeros(size.latents, device=session.device), torch.zeros(size.width, device=session.device)
    if kind == "topk":
        return LinearCoder(decoder.T.contiguous(), decoder, *biases, k=size.l0)
    point = live.hookpoint(size.place)
    with torch.inference_mode():
        seen = live.capture(torch.from_numpy(data.tokens[:4].astype(np.int64)), [point])[point][:, 1:].flatten(0, 1)
        level = _threshold(seen[:256] @ decoder.T, size)
    threshold = torch.full((size.latents,), level, device=session.device)
    return LinearCoder(decoder.T.contiguous(), decoder, *biases, threshold=threshold)


def _profiled(session: Session, name: str, do: Callable[[], object]) -> float | None:
    """Return the seconds that the GPU was busy, and write the profile down; None without a GPU."""
    from torch.profiler import ProfilerActivity, profile

    if session.device != "cuda":
        do()
        return None
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        do()
        session.wait()
    rows = found.key_averages()
    tables = [rows.table(sort_by=key, row_limit=40) for key in ("self_device_time_total", "self_cpu_time_total")]
    (session.out / f"profile-{name}.txt").write_text("\n".join(tables))
    return sum(float(row.self_device_time_total) for row in rows) / 1e6


def collect_gpt2(session: Session) -> None:
    """Collect with GPT-2 small."""
    _collect(session, "gpt2")


def collect_gemma(session: Session) -> None:
    """Collect with Gemma 2 9B."""
    _collect(session, "gemma")


def _collect(session: Session, name: str) -> None:
    n = session.size(name).tokens
    collect(session, name, n // 8, profile=True)
    plain = collect(session, name, n)
    firings = int(plain.indptr[-1])
    for precision in ("bf16", "tf32"):
        with screened(precision):
            missed = firings - int(collect(session, name, n).indptr[-1])
        session.say(what=f"screening {name} in {precision}, firings missed", value=missed, firings=firings)
    with screened():
        collect(session, name, n // 2, kind="topk")
    collect(session, name, n // 2, kind="topk")


def sort_gpt2(session: Session) -> None:
    """Compare ways to collect with GPT-2 small."""
    _sort(session, "gpt2")


def sort_gemma(session: Session) -> None:
    """Compare ways to collect with Gemma 2 9B."""
    _sort(session, "gemma")


def _sort(session: Session, name: str) -> None:
    """Compare sorting on the host and on the device, decoders on the device or not, and batches by length."""
    n = session.size(name).tokens // 2
    plain = collect(session, name, n)
    there = collect(session, name, n, sort_on_device=True, profile=True)
    same = plain.manifest["files"] == there.manifest["files"]
    session.say(what=f"sorting on the device {name}", store_is_identical=same)
    with screened():
        collect(session, name, n, sort_on_device=True, batch_tokens="auto", fvu=False)
    for tokens in (8192, "auto"):
        collect(session, name, n, ragged=True, sort_on_device=True, batch_tokens=tokens)


def batch(session: Session) -> None:
    """Compare sizes of batches."""
    for name in ("gpt2", "gemma"):
        for tokens in (2048, 8192, 32768):
            collect(session, name, session.size(name).tokens // 2, batch_tokens=tokens)


def agree(session: Session) -> None:
    """Compare the firings of one coder on the CPU and on the device, as they are, in TF32 and screened."""
    size, generator = session.size("gpt2"), torch.Generator().manual_seed(0)
    weights = torch.randn(size.width, size.latents, generator=generator) / size.width**0.5
    x = torch.randn(500, size.width, generator=generator)
    level = torch.full((size.latents,), 3.0)
    want = _firings(LinearCoder(weights, weights.T.contiguous(), threshold=level), x)
    place = [tensor.to(session.device) for tensor in (weights, weights.T.contiguous(), level)]
    kinds = ("fp32", False, False), ("tf32", True, False), ("screened", False, "bf16"), ("screened tf32", False, "tf32")
    for label, tf32, precision in kinds:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        with screened(precision):
            have = _firings(LinearCoder(place[0], place[1], threshold=place[2]), x.to(session.device))
        off = max((abs(want[key] - have[key]) / want[key] for key in want.keys() & have.keys()), default=0)
        one_side = len(want.keys() ^ have.keys())
        session.say(what=f"CPU against device, {label}", firings=len(want), on_one_side=one_side, largest_relative=off)
    torch.backends.cuda.matmul.allow_tf32 = False


def _firings(coder: LinearCoder, x: torch.Tensor) -> dict[tuple[int, int], float]:
    rows, latents, values = (part.tolist() for part in coder.encode(x))
    return dict(zip(zip(rows, latents, strict=True), values, strict=True))


def oom(session: Session) -> None:
    """Leave the GPU little memory: batches have to be halved, and the store must be whole all the same."""
    if session.device != "cuda":
        session.say(what="back-off", skipped="needs CUDA")
        return
    full = collect(session, "gpt2", 100_000, batch_tokens=1 << 17)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_allocated() + (1500 << 20)
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.get_device_properties(0).total_memory))
    try:
        small = collect(session, "gpt2", 100_000, batch_tokens=1 << 17)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    halved, firings = small.facts.get("contexts_in_smaller_batches"), (int(full.indptr[-1]), int(small.indptr[-1]))
    session.say(what="back-off", contexts_in_smaller_batches=halved, firings=firings)


def judge(session: Session) -> None:
    """Measure how fast an in-process judge of 9B shapes answers, one token at a time."""
    model, steps = session.model("gemma").model, 4 if session.tiny else 32
    ids = torch.randint(5, 250, (1, 20 if session.tiny else 700), device=session.device)
    with torch.inference_mode():
        reply = model(ids, use_cache=True, logits_to_keep=1)
        past = reply.past_key_values
        session.wait()
        began = time.perf_counter()
        for _ in range(steps):
            chosen = reply.logits[:, -1:].argmax(-1)
            reply = model(chosen, past_key_values=past, use_cache=True, logits_to_keep=1)
        session.wait()
        session.say(what="judge, one answer at a time, tokens/s", value=steps / (time.perf_counter() - began))


SECTIONS: dict[str, Callable[[Session], None]] = {
    "limits": limits, "encode": encode, "agree": agree, "collect-gemma": collect_gemma, "collect-gpt2": collect_gpt2,
    "sort-gemma": sort_gemma, "sort-gpt2": sort_gpt2, "oom": oom, "judge": judge, "batch": batch,
}  # fmt: skip
"""In the order of what they are worth, should the session end early."""


def main(arguments: list[str] | None = None) -> int:
    """Run sections as long as there is time, and return how many failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"default: all, of {', '.join(SECTIONS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder for results")
    parser.add_argument("--minutes", type=float, default=7.5, help="no section begins later than this")
    parser.add_argument("--tiny", action="store_true", help="a dry run with tiny shapes")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not chosen.tiny:
        parser.error("there is no GPU; --tiny makes a dry run")
    chosen.out.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as work:
        session = Session(chosen.out, Path(work), chosen.tiny, device)
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        session.say(what="machine", device=name, torch=torch.__version__, tiny=chosen.tiny)
        for section in chosen.sections or SECTIONS:
            since = time.monotonic()
            if since - began > 60 * chosen.minutes:
                session.say(what=f"section {section}", skipped="no time left")
                continue
            try:
                SECTIONS[section](session)
            except Exception as error:  # noqa: BLE001 - the other sections are worth having
                failed += 1
                session.say(what=f"section {section}", failed=repr(error)[:400])
                traceback.print_exc()
            session.say(what=f"section {section}", seconds=round(time.monotonic() - since, 1))
    return failed


if __name__ == "__main__":
    raise SystemExit(min(1, main()))
