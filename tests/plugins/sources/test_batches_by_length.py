"""`batch_tokens: auto`: contexts of like length are read together, as many as memory allows, and stores stay the same."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from interrupted import interrupted_after
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens
from saeval_plugins.sources import _batches
from saeval_plugins.sources._forward import batch_tokens, batches_by_length, groups
from saeval_plugins.sources.transformers import Transformers
from tiny import TEXT, tiny_model, tiny_sae

import saeval
from saeval.plugin import ActivationWriter, Coder, Corpus, LinearCoder, LiveModel, ModuleCoder
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Texts of all lengths, the longest as long as a context."""
    folder = tmp_path_factory.mktemp("lengths")
    words, rng = TEXT.split(), np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=n)) for n in rng.integers(1, 12, size=110)]
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    model, coder = str(tiny_model(folder / "model")), SaeLens(path=tiny_sae(folder / "sae"))
    return Transformers(model=model, corpus=Corpus(path=path, context=32), coder=coder, batch_tokens=150)


def auto(source, **update):
    return source.model_copy(update={"batch_tokens": "auto", **update})


@pytest.fixture
def small(monkeypatch):
    """Shards of 40 whole contexts, batches of 4."""
    monkeypatch.setattr(Transformers, "_shard_tokens", 40 * 33)
    monkeypatch.setattr("saeval_plugins.sources.transformers.batch_tokens", lambda free: 4 * 33)


@pytest.fixture
def read(monkeypatch):
    """Shapes of what the model reads, without looks for widths."""
    capture, shapes = LiveModel.capture, []

    def seen(self, tokens, points, lengths=None):
        if len(tokens) > 1 or tokens.shape[1] > 8:
            shapes.append(tuple(tokens.shape))
        return capture(self, tokens, points, lengths)

    monkeypatch.setattr(LiveModel, "capture", seen)
    return shapes


def collect(sources, folder):
    folder.mkdir()
    writers = [ActivationWriter(folder / str(i)) for i in range(len(sources))]
    Transformers.collect_many(sources, writers)
    return [writer.finish() for writer in writers]


def same(one, other):
    assert np.array_equal(one.indptr, other.indptr) and np.array_equal(one.position, other.position)
    assert np.allclose(one.value, other.value, atol=1e-2) and int(one.indptr[-1]) > 100


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), most=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_every_context_is_in_one_batch_beside_others_of_like_length(lengths, most):
    lengths = np.array(lengths, dtype=np.int32)
    batches = batches_by_length(lengths, most)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= most for b in batches)
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(lengths[a].min() >= lengths[b].max() for a, b in itertools.pairwise(batches))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), tokens=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_groups_hold_all_contexts_in_their_order_and_about_four_batches_each(lengths, tokens):
    lengths = np.array(lengths, dtype=np.int32)
    found = groups(lengths, tokens)
    assert [i for low, high in found for i in range(low, high)] == list(range(len(lengths)))
    assert all(high > low for low, high in found)
    assert max(lengths[low:high].sum() for low, high in found) <= 4 * tokens + lengths.max()


def test_size_of_batches_follows_the_free_memory_of_the_gpu(monkeypatch):
    free = [(n << 30, 80 << 30) for n in (0, 1, 5, 9, 20, 33, 140)]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: free.pop(0))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    sizes = [batch_tokens(_batches.free_memory("cuda:0")) for _ in range(7)]
    assert sizes == [2048, 2048, 4096, 8192, 16384, 32768, 32768]
    assert batch_tokens(_batches.free_memory("cpu")) == 2048


@pytest.mark.parametrize("on_device", [False, True])
def test_stores_are_those_of_contexts_in_order_and_less_is_padded(source, small, read, tmp_path, on_device):
    sources = [source, source.with_coder(RandomSae(n_latents=64, k=6)), source.with_coder(Neurons(k=5))]
    plain = collect(sources, tmp_path / "plain")
    in_order = sum(n * length for n, length in read)
    read.clear()
    sorted_ = collect([auto(s, sort_on_device=on_device) for s in sources], tmp_path / "sorted")
    for one, other in zip(plain, sorted_, strict=True):
        same(one, other)
        assert other.facts.get("fvu", 0) == pytest.approx(one.facts.get("fvu", 0), rel=1e-4)
    computed, lengths = sum(n * length for n, length in read), int(plain[0].lengths.sum())
    assert computed < 0.8 * in_order and max(n * length for n, length in read) <= 4 * 33
    assert sorted_[0].facts["padding"] == round((computed - lengths) / computed, 4) < 0.25
    assert "padding" not in plain[0].facts


def test_interrupted_collection_resumes_to_the_same_store_bit_for_bit(source, small, tmp_path, monkeypatch):
    (whole,) = collect([auto(source)], tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LiveModel, "capture", interrupted_after(14))
        auto(source).collect(ActivationWriter(tmp_path / "cut", budget=300))
    writer = ActivationWriter(tmp_path / "cut", budget=300)
    auto(source).collect(writer)
    store = writer.finish()
    assert store.manifest["files"] == whole.manifest["files"]


def test_shards_are_the_same_on_gpus_with_more_and_less_memory(source, small, tmp_path, monkeypatch):
    (whole,) = collect([auto(source)], tmp_path / "whole")
    for number, contexts in enumerate((4, 9)):
        monkeypatch.setattr("saeval_plugins.sources.transformers.batch_tokens", lambda free, n=contexts: n * 33)
        writer = ActivationWriter(tmp_path / "shared", share=(number, 2))
        auto(source).collect(writer)
    assert writer.complete
    same(writer.finish(), whole)


def test_groups_are_halved_where_memory_runs_out(source, small, tmp_path, monkeypatch):
    (whole,) = collect([source], tmp_path / "whole")
    encode, failed = LinearCoder.encode, []

    def small_encode(self, x):
        if len(x) > 60:
            failed.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return encode(self, x)

    monkeypatch.setattr(LinearCoder, "encode", small_encode)
    (store,) = collect([auto(source, sort_on_device=True)], tmp_path / "store")
    same(store, whole)
    assert failed and store.facts["contexts_in_smaller_batches"] > 0
    assert store.facts["fvu"] == pytest.approx(whole.facts["fvu"], rel=1e-4), "nothing is counted twice"


class Whole(Coder):
    """Latents that depend on all tokens before."""

    name = "whole"

    def load(self, device, d_in):
        return ModuleCoder(lambda x: x.cumsum(1).relu(), d_in, d_in, "whole", token_wise=False)


def test_coders_that_look_at_whole_contexts_are_given_them_in_order(source, small, tmp_path):
    sources = [source.with_coder(Whole()), source]
    plain = collect(sources, tmp_path / "plain")
    for one, other in zip(plain, collect([auto(s) for s in sources], tmp_path / "auto"), strict=True):
        same(one, other)
        assert "padding" not in other.facts


# --- Decoders that nobody needs ---


def test_decoders_do_not_stay_where_unexplained_variance_is_not_measured(source, tmp_path, monkeypatch):
    with_it, without = collect([source], tmp_path / "with"), []
    decoders, encode = [], LinearCoder.encode

    def seen(self, x):
        decoders.append(self.decoder.shape[1])
        return encode(self, x)

    monkeypatch.setattr(LinearCoder, "encode", seen)
    lean = source.model_copy(update={"fvu": False})
    without = collect([lean], tmp_path / "without")
    assert set(decoders) == {0}
    assert with_it[0].manifest["files"] == without[0].manifest["files"]
    assert "fvu" in with_it[0].facts and "fvu" not in without[0].facts
    assert lean.fingerprint() != source.fingerprint() == source.model_copy(update={"fvu": True}).fingerprint()
    assert lean.weights().decoder.shape[1] > 0, "lenses and steering have theirs"


@pytest.mark.parametrize("options", [{"k": 3, "scale_by_decoder_norm": True}, {"scale_by_decoder_norm": True}, {}])
def test_coders_without_their_decoder_encode_the_same(options):
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(40, 8, generator=generator)
    coder = LinearCoder(torch.randn(8, 40, generator=generator), decoder, decoder_bias=torch.ones(8), **options)
    x = torch.randn(12, 8, generator=generator)
    lean = coder.encoding_only()
    for one, other in zip(coder.encode(x), lean.encode(x), strict=True):
        assert torch.equal(one, other)
    assert not lean.autoencoder and lean.decoder.untyped_storage().nbytes() == 0 and coder.decoder is decoder


# --- All of it, from a spec ---


def test_task_with_all_options_for_gpus_gives_the_results_of_one_without(source, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    read = {
        "model": source.model, "corpus": {"path": str(source.corpus.path), "context": 32},
        "coder": {"use": "sae_lens", "with": {"path": str(source.coder.path)}},
    }  # fmt: skip
    spec = {
        "saeval": 1, "task": "gpu", "version": "1.0", "latents": {"n": 4, "min_windows": 2},
        "sampler": {"use": "random", "with": {"window": 4, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "llms": {"judge": {"model": "scripted/no", "reply": "[0]"}}, "explainer": "top_tokens",
        "scorers": {"detection": {"with": {"batch": 1}}},
    }  # fmt: skip
    options = {"sort_on_device": True, "batch_tokens": "auto", "fvu": False}
    found = [
        saeval.run(
            {**spec, "source": {"use": "transformers", "with": {**read, **more}}, "run": run}, out=tmp_path / name
        )
        for name, more, run in (("plain", {}, {}), ("options", options, {"screen": "tf32"}))
    ]
    plain, with_options = (result.cells[0] for result in found)
    assert plain.counts == with_options.counts and plain.counts["sampled"] > 0
    assert plain.scores == with_options.scores
    assert {**with_options.measures, "fvu": plain.measures["fvu"]} == plain.measures
    assert "fvu" not in with_options.measures
    with pytest.raises(saeval.SpecError, match="batch_tokens"):
        load_task(
            {**spec, "source": {"use": "transformers", "with": {**read, "batch_tokens": "all"}}}, registry=Registry()
        )
