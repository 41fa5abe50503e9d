from __future__ import annotations

import gc
import json
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from interrupted import interrupted_after
from pydantic import ValidationError
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens
from saeval_plugins.sources import _batches, transformers
from saeval_plugins.sources.transformers import Transformers
from tiny import D_FF, D, random_task, tiny_corpus, tiny_model, tiny_sae, tiny_source

import saeval
from saeval import InputError, StoreError
from saeval.cli.group import main
from saeval.plugin import ActivationStore, ActivationWriter, Coder, Corpus, LinearCoder, LiveModel, ModuleCoder
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task

if TYPE_CHECKING:
    from saeval.plugin import SparseCoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("source")


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model(folder / "model")


@pytest.fixture(scope="module")
def corpus(folder):
    return Corpus(path=tiny_corpus(folder / "corpus.jsonl"), context=32)


@pytest.fixture(scope="module")
def sae(folder):
    return SaeLens(path=tiny_sae(folder / "sae"))


@pytest.fixture
def source(model, corpus, sae):
    return Transformers(model=str(model), corpus=corpus, coder=sae, batch_tokens=150)


def collect(source, path, **options):
    writer = ActivationWriter(path, **options)
    source.collect(writer)
    return writer.finish()


def dense(store):
    out = np.zeros((store.tokens.size, store.n_latents), dtype=np.float32)
    for latent in range(store.n_latents):
        position, value = store.activations(latent)
        out[position, latent] = value
    return out.reshape(*store.tokens.shape, store.n_latents)


def expected(model, store, coder, place):
    """Encode each context by itself, without padding or early exit."""
    live = LiveModel.load(str(model))
    point = live.hookpoint(place)
    out = np.zeros((*store.tokens.shape, coder.n_latents), dtype=np.float32)
    for i, length in enumerate(store.lengths):
        x = live.capture(torch.from_numpy(store.tokens[i : i + 1, :length].astype(np.int64)), [point])[point][0]
        rows, latents, values = coder.encode(x)
        out[i, rows, latents] = values.relu()
        out[i, 0] = 0  # BOS
    return out


def test_stored_activations_are_those_of_every_context_by_itself(source, model, sae, tmp_path):
    store = collect(source, tmp_path / "store")
    assert set(store.lengths.tolist()) != {33}, "some context should be padded"
    assert np.allclose(dense(store), expected(model, store, sae.load("cpu", D), "layers.1"), atol=1e-2)
    assert store.facts["hookpoint"] == "layers.1"
    assert store.facts["subject"] == str(model)
    assert {k: store.facts[k] for k in ("architecture", "d_sae", "d_in")} == {
        "architecture": "topk",
        "d_sae": 40,
        "d_in": D,
    }
    assert store.facts["metadata"]["hook_name"] == "blocks.1.hook_resid_post"


def test_bos_is_in_the_models_input_and_its_activations_are_not_in_the_store(source, tmp_path):
    seen = []
    live = LiveModel.load(source.model)
    handle = live.model.base_model.embed_tokens.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    store = collect(source, tmp_path / "store")
    handle.remove()
    assert all((batch[:, 0] == 0).all() for batch in seen)
    assert (store.tokens[:, 0] == 0).all()
    activations = dense(store)
    real = np.arange(store.tokens.shape[1]) < store.lengths[:, None]
    assert not activations[:, 0].any()
    assert not activations[~real].any()
    assert ((activations > 0).sum(-1)[real][1:] > 0).any()


@pytest.mark.parametrize("bos", [None, False, "<eos>"])
def test_prompts_for_steering_begin_like_the_contexts_of_the_corpus(source, bos):
    told = source.model_copy(update={"corpus": source.corpus.model_copy(update={"bos": bos})})
    subject = told.subject()
    (context,) = told.corpus.contexts("the old captain", subject.live.tokenizer)
    window = subject.live.tokenizer("the old captain", add_special_tokens=False)["input_ids"]
    for prompts in (subject, subject.at("layers.0")):
        assert prompts.prompt(window) == context


def test_sources_of_one_subject_share_one_pass_that_ends_at_the_last_hookpoint(source, model, sae, tmp_path):
    variants = [
        source,
        source.model_copy(update={"hookpoint": "layers.0", "accept_mismatch": True}),
        source.with_coder(Neurons(k=5)),
        source.with_coder(RandomSae(n_latents=64, k=6)),
    ]
    assert len({str(s.shares()) for s in variants}) == 1
    alone = [dense(collect(s, tmp_path / f"alone{i}")) for i, s in enumerate(variants)]
    live = LiveModel.load(str(model))
    runs, too_far = [], []
    handles = [
        live.model.base_model.layers[0].register_forward_pre_hook(lambda _m, args: runs.append(args[0].shape)),
        live.model.base_model.layers[2].register_forward_pre_hook(lambda *_: too_far.append(1)),
    ]
    writers = [ActivationWriter(tmp_path / f"together{i}") for i in range(len(variants))]
    Transformers.collect_many(variants, writers)
    for handle in handles:
        handle.remove()
    stores = [writer.finish() for writer in writers]
    assert not too_far
    whole_batches = [shape for shape in runs if shape[0] > 1]
    assert len(whole_batches) == -(-len(stores[0].tokens) // 4), "contexts of 33 tokens go 4 at a time, once"
    for store, by_itself in zip(stores, alone, strict=True):
        assert np.array_equal(dense(store), by_itself)
    assert [s.facts["hookpoint"] for s in stores] == [
        "layers.1",
        "layers.0",
        "layers.1.mlp.down_proj.input",
        "layers.1",
    ]
    assert stores[2].n_latents == D_FF
    assert dense(stores[2])[stores[2].tokens > 2].astype(bool).sum(-1).max() <= 5


def test_neurons_can_be_read_from_any_hookpoint_in_a_block(source, tmp_path):
    at_the_mlp = source.model_copy(update={"hookpoint": "blocks.1.hook_mlp_out", "coder": Neurons()})
    at_the_block = source.with_coder(Neurons())
    assert np.array_equal(dense(collect(at_the_mlp, tmp_path / "a")), dense(collect(at_the_block, tmp_path / "b")))


def test_inputs_of_modules_are_read_where_the_hookpoint_says_so(source, model, sae, tmp_path):
    store = collect(
        source.model_copy(update={"hookpoint": "layers.1.mlp.input", "accept_mismatch": True}), tmp_path / "store"
    )
    assert np.allclose(dense(store), expected(model, store, sae.load("cpu", D), "blocks.1.mlp.hook_in"), atol=1e-2)


def test_sae_of_another_width_than_its_place_is_refused_before_anything_is_collected(
    model, corpus, sae, tmp_path, monkeypatch
):
    source = {
        "model": str(model), "hookpoint": "layers.1.mlp.down_proj.input", "accept_mismatch": True,
        "coder": {"use": "sae_lens", "with": {"path": str(sae.path)}}, "corpus": {"path": str(corpus.path), "context": 32},
    }  # fmt: skip
    spec = {
        "saeval": 1, "task": "wrong", "version": "1", "source": {"use": "transformers", "with": source},
        "latents": {"n": 2}, "explainer": "top_tokens", "scorers": {"embedding": {}},
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(spec))
    capture, read = LiveModel.capture, []

    def counted(live, tokens, *given, **named):
        read.append(tokens.numel())
        return capture(live, tokens, *given, **named)

    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LiveModel, "capture", counted)
    done = CliRunner().invoke(main, ["run", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert f"reads activations of width {D}, but those at the hookpoint have width {D_FF}" in done.output
    assert read == [2]  # two tokens, to learn the width


@pytest.mark.parametrize("budget", [200, 5000])
def test_an_interrupted_collection_resumes_to_the_same_store(source, tmp_path, budget, monkeypatch):
    whole = collect(source, tmp_path / "whole", budget=budget)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LiveModel, "capture", interrupted_after(7))
        collect(source, tmp_path / "cut", budget=budget)
    resumed = collect(source, tmp_path / "cut", budget=budget)
    assert np.array_equal(dense(resumed), dense(whole))
    assert resumed.facts == whole.facts, "the unexplained variance, too, is that of all tokens"


def test_streamed_dataset_is_not_read_again_by_a_collection_that_resumes(source, corpus, tmp_path, monkeypatch):
    """The pass over the model was interrupted, so all rows have come; what was kept of them goes when it is done."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(corpus.path.read_bytes())
    streamed = source.model_copy(update={"corpus": Corpus(dataset=str(tmp_path / "data"), context=32)})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LiveModel, "capture", interrupted_after(7))
        collect(streamed, tmp_path / "cut", budget=200)
    assert [place.name for place in tmp_path.glob("cut.stream*")] == ["cut.stream.partial"]
    (tmp_path / "data" / "train.jsonl").unlink()
    resumed = collect(streamed, tmp_path / "cut", budget=200)
    assert np.array_equal(dense(resumed), dense(collect(source, tmp_path / "whole")))
    assert not [*tmp_path.glob("cut.*")]


def test_going_on_with_other_batches_writes_nothing_twice(source, tmp_path, monkeypatch):
    whole = collect(source, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LiveModel, "capture", interrupted_after(4))
        collect(source, tmp_path / "cut", budget=100)
    resumed = collect(source.model_copy(update={"batch_tokens": 33 * 5}), tmp_path / "cut")
    assert np.array_equal(resumed.firings, whole.firings)
    assert np.allclose(dense(resumed), dense(whole), atol=1e-2)


def test_sources_that_stopped_at_different_places_resume_together(source, tmp_path, monkeypatch):
    other = source.with_coder(RandomSae(n_latents=64, k=6))
    whole = [dense(collect(s, tmp_path / f"whole{i}")) for i, s in enumerate((source, other))]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LiveModel, "capture", interrupted_after(5))
        collect(source, tmp_path / "0", budget=100)
    writers = [ActivationWriter(tmp_path / "0"), ActivationWriter(tmp_path / "1")]
    Transformers.collect_many([source, other], writers)
    for store, expected_values in zip((w.finish() for w in writers), whole, strict=True):
        assert np.array_equal(dense(store), expected_values)


# --- Shards ---


@pytest.fixture
def shards(monkeypatch):
    """Shards of two batches, four contexts each."""
    monkeypatch.setattr(Transformers, "_shard_tokens", 2 * 4 * 33)


def shared(sources, folder, number, of, **options):
    """Collect a share of the shards, and return the writers."""
    writers = [ActivationWriter(folder / str(i), share=(number, of), **options) for i in range(len(sources))]
    Transformers.collect_many(sources, writers)
    return writers


def files(store):
    return {name: file["blake2b"] for name, file in store.manifest["files"].items()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_collected_apart_make_the_same_store_bit_for_bit(source, shards, tmp_path, order):
    sources = [source, source.with_coder(RandomSae(n_latents=64, k=6))]
    whole = [writer.finish() for writer in shared(sources, tmp_path / "whole", 0, 1)]
    assert len(whole[0].tokens) > 3 * 8, "there are shards for all three"
    for number in order[:2]:
        early = shared(sources, tmp_path / "shared", number, 3, budget=300)
        assert not any(writer.complete for writer in early)
    with pytest.raises(StoreError, match=f"of {len(whole[0].tokens)} contexts"):
        early[0].finish()
    last = shared(sources, tmp_path / "shared", order[2], 3, budget=300)
    assert all(writer.complete for writer in last)
    for writer, alone in zip(last, whole, strict=True):
        store = writer.finish()
        assert files(store) == files(alone)
        assert {**store.facts, "fvu": 0} == {**alone.facts, "fvu": 0}
        assert store.facts["fvu"] == pytest.approx(alone.facts["fvu"], rel=1e-12)
    assert sorted(p.name for p in (tmp_path / "shared").iterdir() if p.suffix != ".lock") == ["0", "1"]


def test_unexplained_variance_is_summed_alike_whichever_process_collects_a_shard(source, shards, tmp_path):
    alone = collect(source, tmp_path / "alone")
    for number in (1, 0):
        (writer,) = shared([source], tmp_path / "shared", number, 2)
    assert writer.finish().facts == alone.facts


def test_shards_that_are_there_are_not_collected_again_unless_they_are_damaged(source, shards, tmp_path, monkeypatch):
    read, capture = [], LiveModel.capture

    def counted(self, tokens, points, lengths=None):
        read.append(tokens.shape[0])
        return capture(self, tokens, points, lengths)

    shared([source], tmp_path / "s", 0, 2)
    shared([source], tmp_path / "s", 1, 2)
    monkeypatch.setattr(LiveModel, "capture", counted)
    read.clear()
    shared([source], tmp_path / "s", 0, 2)
    widths = [n for n in read if n > 1]  # places and widths are found with one context
    assert not widths
    pairs = sorted(tmp_path.glob("s/*.partial/*/pairs"))[1]
    pairs.write_bytes(pairs.read_bytes()[:-1] + b"x")
    (writer,) = shared([source], tmp_path / "s", 1, 2)
    assert [n for n in read if n > 1] == [4, 4]
    assert files(writer.finish()) == files(collect(source, tmp_path / "alone"))
    read.clear()
    shared([source], tmp_path / "s", 0, 2)  # as Ray asks once more who died when all was done
    assert not [n for n in read if n > 1]


# --- Memory and devices ---


def test_batches_are_halved_where_memory_runs_out(source, tmp_path, monkeypatch):
    other = source.with_coder(RandomSae(n_latents=64, k=6))
    whole = collect(source, tmp_path / "whole")
    assert whole.facts["contexts_a_batch"] == 4
    encode, capture, failed = LinearCoder.encode, LiveModel.capture, []

    def small_encode(self, x):
        if self.n_latents == 64 and len(x) > 70:  # the second coder, when the first has written already
            failed.append("coder")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return encode(self, x)

    def small_capture(self, tokens, points, lengths=None):
        if len(tokens) > 3:
            failed.append("model")
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return capture(self, tokens, points, lengths)

    monkeypatch.setattr(LinearCoder, "encode", small_encode)
    writers = [ActivationWriter(tmp_path / "0"), ActivationWriter(tmp_path / "1")]
    Transformers.collect_many([source, other], writers)
    first, second = (writer.finish() for writer in writers)
    assert failed == ["coder"]
    contexts = len(whole.lengths)
    assert "contexts_in_smaller_batches" not in whole.facts
    assert [s.facts["contexts_in_smaller_batches"] for s in (first, second)] == [contexts - 4, contexts]
    assert np.array_equal(first.firings, whole.firings), "nothing is written twice"
    assert first.facts["fvu"] == pytest.approx(whole.facts["fvu"], rel=1e-4), "and nothing counted twice"
    assert np.allclose(dense(first), dense(whole), atol=1e-2)
    monkeypatch.setattr(LinearCoder, "encode", encode)
    monkeypatch.setattr(LiveModel, "capture", small_capture)
    assert np.allclose(dense(collect(source, tmp_path / "2")), dense(whole), atol=1e-2)
    assert failed == ["coder", "model"]


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_too_little_memory_for_one_context_is_said(source, tmp_path, monkeypatch, said):
    def capture(self, tokens, points, lengths=None):
        if tokens.shape[1] > 2:
            raise RuntimeError(said)
        return real(self, tokens, points, lengths)

    real = LiveModel.capture
    monkeypatch.setattr(LiveModel, "capture", capture)
    with pytest.raises(InputError, match="not enough memory for a single context"):
        collect(source, tmp_path / "store")


@pytest.mark.parametrize("why", ["no room to load", "no room for another", "no room for a context"])
def test_coders_that_do_not_fit_together_are_read_in_groups(source, tmp_path, monkeypatch, why):
    sources = [source, *(source.with_coder(RandomSae(n_latents=n, k=6)) for n in (64, 65, 66))]
    alone = [files(collect(s, tmp_path / f"alone{i}")) for i, s in enumerate(sources)]
    load, encode, read, passes, there = RandomSae.load, LinearCoder.encode, transformers._read, [], []

    def counted(live, data, some, *rest):
        passes.append(len(some))
        return read(live, data, some, *rest)

    def together():
        return sum(type(o) is transformers._Reading for o in gc.get_objects())

    def full(self, device, d_in):
        there[:] = [ref for ref in there if ref() is not None]
        if len(there) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        there.append(weakref.ref(coder := load(self, device, d_in)))
        return coder

    def crowded(self, x):
        if together() > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return encode(self, x)

    if why == "no room to load":
        monkeypatch.setattr(RandomSae, "load", full)
    elif why == "no room for another":
        monkeypatch.setattr(_batches, "free_memory", lambda device: (11 - 2 * together()) << 30)
    else:
        monkeypatch.setattr(LinearCoder, "encode", crowded)
    monkeypatch.setattr(transformers, "_read", counted)
    writers = [ActivationWriter(tmp_path / f"{i}") for i in range(4)]
    Transformers.collect_many(sources, writers)
    assert passes == ([4, 2, 2] if why == "no room for a context" else [3, 1])
    assert [files(writer.finish()) for writer in writers] == alone


def test_other_failures_are_not_taken_for_a_lack_of_memory(source, tmp_path, monkeypatch):
    monkeypatch.setattr(LinearCoder, "encode", lambda self, x: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        collect(source, tmp_path / "store")


def test_coders_are_compiled_on_cuda_only(source, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("on the CPU"))
    wanting = source.model_copy(update={"compile": True})
    store = collect(wanting, tmp_path / "store")
    assert store.facts["compiled"] is False
    assert (store.facts["device"], store.facts["dtype"]) == ("cpu", "float32")
    assert wanting.fingerprint() != source.fingerprint()


# --- Some latents alone ---


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_chosen_latents_are_stored_as_among_all_others_and_the_others_are_unknown(
    source, folder, tmp_path, architecture
):
    coder = SaeLens(path=tiny_sae(folder / f"one-{architecture}", architecture))
    source = source.model_copy(update={"coder": coder})
    whole, some = collect(source, tmp_path / "whole"), collect(source.only([7, 2, 30]), tmp_path / "some")
    assert some.n_latents == whole.n_latents
    assert some.latents == {2, 7, 30}
    assert whole.latents is None
    assert whole.firings[[2, 7, 30]].sum() > 0
    for latent in (2, 7, 30):
        assert np.array_equal(some.activations(latent)[0], whole.activations(latent)[0])
        assert np.allclose(some.activations(latent)[1], whole.activations(latent)[1], rtol=1e-3)
    contexts = np.arange(len(some.lengths))
    assert some.knows(7, contexts).all()
    assert not some.knows(8, contexts).any()
    assert len(some.silent_windows(8, 8, 5, np.random.default_rng(0))) == 0
    assert "fvu" not in some.facts
    assert source.only([7]).fingerprint() not in (source.fingerprint(), source.only([2]).fingerprint())


def test_where_latents_compete_all_are_collected(source):
    assert source.only([1, 2]) is source


def test_chosen_latents_outside_the_dictionary_are_refused(source, folder, tmp_path):
    coder = SaeLens(path=tiny_sae(folder / "narrow", "jumprelu"))
    with pytest.raises(InputError, match=r"\[40\] are not in a dictionary of 40 latents"):
        collect(source.model_copy(update={"coder": coder}).only([3, 40]), tmp_path / "store")


def test_unexplained_variance_is_that_of_all_counted_tokens_at_once(source, model, sae, tmp_path):
    store = collect(source, tmp_path / "store")
    live, coder = LiveModel.load(str(model)), sae.load("cpu", D)
    point = live.hookpoint("layers.1")
    rows = []
    for i, length in enumerate(store.lengths):
        tokens = torch.from_numpy(store.tokens[i : i + 1, :length].astype(np.int64))
        rows.append(live.capture(tokens, [point])[point][0, 1:])
    x = torch.cat(rows)
    residual = (x - coder.decode(coder.encode(x), len(x))).square().sum()
    assert store.facts["fvu"] == pytest.approx(float(residual / (x - x.mean(0)).square().sum()), rel=1e-4)


def test_coders_that_predict_another_place_have_no_unexplained_variance(source, folder, tmp_path):
    for i, coder in enumerate((Neurons(), SaeLens(path=tiny_sae(folder / "transcoder", "transcoder")))):
        assert "fvu" not in collect(source.with_coder(coder), tmp_path / f"store{i}").facts


class RunningSum(Coder):
    """Latents that depend on all tokens before, BOS included."""

    name = "running_sum"

    def load(self, device: str, d_in: int) -> SparseCoder:
        return ModuleCoder(lambda x: x.cumsum(1).relu(), d_in, d_in, "running sum", token_wise=False)


def test_coders_that_look_at_whole_contexts_are_given_them(source, model, tmp_path):
    store = collect(source.with_coder(RunningSum()), tmp_path / "store")
    live = LiveModel.load(str(model))
    point = live.hookpoint("layers.1")
    tokens = torch.from_numpy(store.tokens[:1].astype(np.int64))
    sums = live.capture(tokens, [point])[point][0].cumsum(0).relu()
    assert np.allclose(dense(store)[0, 1:], sums[1:].numpy(), rtol=1e-2, atol=1e-2)
    assert not dense(store)[:, 0].any()


class Signed(Coder):
    """Activations as they are, negative ones too."""

    name = "signed"

    def load(self, device: str, d_in: int) -> SparseCoder:
        return ModuleCoder(lambda x: x, d_in, d_in, "signed")


def test_the_negative_side_of_signed_latents_counts_as_silence(source, tmp_path):
    store = collect(source.with_coder(Signed()), tmp_path / "store")
    assert (np.asarray(store.value) > 0).all()
    assert 0.2 < store.firings.sum() / store.n_tokens / D < 0.8


class Broken(Coder):
    """Gives NaN."""

    name = "broken"

    def load(self, device: str, d_in: int) -> SparseCoder:
        return ModuleCoder(lambda x: x * float("nan"), d_in, d_in, "broken")


def test_activations_that_are_not_finite_stop_the_collection(source, tmp_path):
    with pytest.raises(InputError, match=r"at layers\.1 of .*, read by broken in float32, is NaN or infinite"):
        collect(source.with_coder(Broken()), tmp_path / "store")


def test_progress_is_told_in_text_tokens(source, tmp_path):
    told = []
    store = collect(source, tmp_path / "store", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (store.n_tokens, store.n_tokens)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# --- Checks before anything is loaded ---


def test_check_loads_no_model_and_passes_what_fits(source, monkeypatch):
    monkeypatch.setattr(LiveModel, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    source.check()
    source.fingerprint()
    source.shares()


def test_check_names_what_is_missing(source, folder, tmp_path):
    for update, message in (
        ({"model": str(tmp_path / "nowhere")}, "no such file or folder"),
        ({"model": "package:gema"}, "no asset"),
        ({"coder": SaeLens(path=tmp_path / "no-sae")}, "no such folder"),
        ({"corpus": Corpus(path=tmp_path / "none.txt")}, "no such file"),
        ({"coder": RandomSae()}, "name no hookpoint; set `hookpoint`"),
    ):
        with pytest.raises(InputError, match=message):
            source.model_copy(update=update).check()


def test_a_wrong_width_is_seen_from_configuration_files_alone(source, folder):
    wide = SaeLens(path=tiny_sae(folder / "wide", d_in=24))
    for place in (None, "layers.1", "model.layers.1.output", "blocks.1.hook_resid_pre"):
        with pytest.raises(InputError, match=r"width 24, but at .* have width 16; change"):
            source.model_copy(update={"coder": wide, "hookpoint": place}).check()
    elsewhere = {"coder": wide, "hookpoint": "layers.1.mlp.down_proj.input", "accept_mismatch": True}
    source.model_copy(update=elsewhere).check()


def test_a_wrong_width_stops_the_collection_before_the_pass(source, folder, tmp_path, monkeypatch):
    wide = source.with_coder(SaeLens(path=tiny_sae(folder / "wide2", d_in=24)))
    batches = []
    capture = LiveModel.capture
    monkeypatch.setattr(
        LiveModel, "capture", lambda self, tokens, *a: batches.append(len(tokens)) or capture(self, tokens, *a)
    )
    with pytest.raises(InputError, match=r"width 24, .* width 16; it was made for blocks\.1\.hook_resid_post of tiny"):
        Transformers.collect_many([source, wide], [ActivationWriter(tmp_path / n) for n in "ab"])
    assert set(batches) == {1}, "only widths were looked at"


def test_fingerprints_tell_apart_what_changes_activations_and_nothing_else(source, folder, corpus):
    def key(**update):
        return json.dumps(source.model_copy(update=update).fingerprint())

    assert key() == key(device="cpu") == key(batch_tokens=999) == key(hookpoint="blocks.1.hook_resid_post")
    others = [
        key(hookpoint="layers.0"),
        key(dtype="bfloat16"),
        key(coder=RandomSae(), hookpoint="layers.1"),
        key(corpus=corpus.model_copy(update={"context": 16})),
        key(model=str(tiny_model(folder / "other", seed=1))),
        key(randomise="weights"),
        key(randomise="embeddings"),
        key(randomise="weights", randomise_seed=1),
    ]
    assert len({key(), *others}) == 9
    assert key() == key(randomise_seed=1), "nothing is shuffled"


def test_sources_with_another_corpus_or_model_do_not_share_a_pass(source, corpus):
    assert source.shares() == source.with_coder(RandomSae()).shares()
    assert source.shares() != source.model_copy(update={"corpus": corpus.model_copy(update={"tokens": 99})}).shares()
    assert source.shares() != source.model_copy(update={"dtype": "bfloat16"}).shares()
    assert source.shares() != source.model_copy(update={"randomise": "weights"}).shares()


def test_all_that_reads_a_shuffled_model_reads_the_same_one(source, model, sae, tmp_path):
    plain = collect(source, tmp_path / "plain")
    shuffled = source.model_copy(update={"randomise": "weights"})
    store = collect(shuffled, tmp_path / "store")
    assert store.facts["subject"] == f"{model} (weights shuffled, seed 0)"
    assert np.array_equal(store.tokens, plain.tokens)
    assert not np.allclose(dense(store), dense(plain), atol=0.1)
    live = LiveModel.load(str(model), randomise="weights")
    assert shuffled.subject().live is live is shuffled.with_coder(RandomSae()).subject().live
    text = live.tokenizer.decode(store.tokens[0, 1 : store.lengths[0]].tolist())
    ((_, seen),) = shuffled.activations_on(text, 3)
    assert np.allclose(seen, dense(store)[0, 1 : store.lengths[0], 3], atol=1e-2)
    assert source.subject().live is LiveModel.load(str(model))


def test_a_random_sae_matches_decoder_norms_and_firing_rates_of_the_sae_beside_it(source, sae, tmp_path):
    matched = source.with_coder(RandomSae(match="rates"))
    stores = [collect(s, tmp_path / n) for s, n in ((source, "own"), (matched, "matched"))]
    fired, expected = (store.firings.astype(int) for store in stores[::-1])
    assert (fired > 0).tolist() == (expected > 0).tolist() and np.unique(expected).size > 5
    assert np.abs(fired - expected).max() <= 3  # the texts repeat each other, so activations are often equal
    own, drawn = sae.load("cpu", D), matched.weights()
    assert torch.allclose(drawn.decoder.norm(dim=1), own.decoder.norm(dim=1), atol=1e-4)
    assert not torch.allclose(drawn.decoder, own.decoder, atol=0.1)
    assert matched.fingerprint() != source.with_coder(RandomSae()).fingerprint()
    with pytest.raises(InputError, match="requires an SAE to compare with"):
        collect(
            source.model_copy(update={"coder": RandomSae(match="rates"), "hookpoint": "layers.1"}), tmp_path / "alone"
        )
    with pytest.raises(ValidationError, match="omit `n_latents` and `k`"):
        RandomSae(match="rates", k=3)


def test_what_a_baseline_copies_of_the_coder_beside_it_is_measured_once(source, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    passes = []
    capture = LiveModel.capture
    monkeypatch.setattr(LiveModel, "capture", lambda *given: passes.append(given) or capture(*given))

    def weights(**options):
        passes.clear()
        found = source.with_coder(RandomSae(match="rates", **options)).weights()
        return found, len(passes)

    (measured, many), (again, few), (others, own) = weights(), weights(), weights(seed=1)
    assert many == own > few <= 1, "a pass tells the width"
    assert torch.equal(measured.encoder_bias, again.encoder_bias) and torch.equal(measured.decoder, again.decoder)
    assert not torch.equal(measured.encoder_bias, others.encoder_bias)
    for file in (tmp_path / "cache" / "fits").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    repaired, passed = weights()
    assert passed == many and torch.equal(repaired.encoder_bias, measured.encoder_bias)


def test_options_are_checked(source):
    with pytest.raises(ValidationError, match="hook_point"):
        Transformers(**{**dict(source), "hook_point": "layers.1"})


@pytest.fixture
def listing(model, corpus, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    sae = tiny_sae(folder / "listed", "jumprelu")
    return {
        "saeval": 1, "task": "listed", "version": "1.0",
        "source": {"use": "transformers", "with": {
            "model": str(model), "hookpoint": "layers.1", "coder": {"use": "sae_lens", "with": {"path": str(sae)}},
            "corpus": {"path": str(corpus.path), "context": 32},
        }},
        "latents": {"select": "list", "indices": [3, 7, 11, 30], "min_windows": 2},
        "sampler": {"use": "random", "with": {"window": 4, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "llms": {"judge": {"model": "scripted/no", "reply": "[0]"}}, "explainer": "top_tokens",
        "scorers": {"detection": {"with": {"batch": 1}}},
    }  # fmt: skip


def stores(tmp_path):
    folders = sorted(path for path in (tmp_path / "cache" / "stores").iterdir() if path.is_dir())
    return {path: ActivationStore.open(path).latents for path in folders}


def test_listed_latents_are_collected_alone_and_come_out_the_same(listing, tmp_path):
    whole = saeval.run(listing, out=tmp_path / "whole")
    (everything,) = stores(tmp_path)
    some = saeval.run({**listing, "measure": ["d_sae", "tokens"]}, out=tmp_path / "some")
    assert [latents for path, latents in stores(tmp_path).items() if path != everything] == [{3, 7, 11, 30}]
    assert {"l0", "frac_alive", "fvu"} <= set(whole.cells[0].measures)
    assert set(some.cells[0].measures) == {"d_sae", "tokens"}
    assert some.cells[0].measures["d_sae"] == 40
    assert some.cells[0].counts["sampled"] == whole.cells[0].counts["sampled"] > 0
    assert some.cells[0].scores == whole.cells[0].scores
    rows = [
        pq.read_table(tmp_path / name / "cells" / "all" / "latents.parquet").to_pylist() for name in ("whole", "some")
    ]
    told = [[(row["latent"], row["firings"], row["windows"]) for row in cell] for cell in rows]
    assert told[0] == told[1] != []


@pytest.mark.parametrize(
    "change",
    [
        {"measure": ["l0"]},
        {"latents": {"n": 2, "min_windows": 2}},
        {"sampler": {"use": "random", "with": {"window": 4, "non_activating": {"use": "neighbours", "n": 5}}}},
    ],
    ids=["measured", "drawn", "neighbours"],
)
def test_all_latents_are_collected_where_others_are_wanted(listing, change):
    task = load_task({**listing, "measure": [], **change}, registry=Registry())
    assert task.cells[0].collected is task.cells[0].source
    assert load_task({**listing, "measure": []}, registry=Registry()).cells[0].collected is not task.cells[0].source


def test_latents_that_were_not_collected_have_no_measures_and_cannot_be_listed(listing, tmp_path):
    saeval.run({**listing, "measure": []}, out=tmp_path / "some")
    (path,) = stores(tmp_path)
    recorded = {
        **listing,
        "source": {"use": "recorded", "with": {"path": str(path)}},
        "measure": ["l0", "d_sae", "fvu"],
    }
    again = saeval.run(recorded, out=tmp_path / "again")
    assert set(again.cells[0].measures) == {"d_sae"}
    with pytest.raises(InputError, match=r"\[4\] are not among the 4 latents that were collected"):
        saeval.run({**recorded, "latents": {"select": "list", "indices": [3, 4]}}, out=tmp_path / "other")


@pytest.mark.parametrize(("weights", "kind"), [(torch.eye(D), "Tensor"), (None, "NoneType")])
def test_coder_that_loads_something_else_is_named_with_what_it_returned(source, tmp_path, weights, kind):
    class Matrix(Coder):
        name = "matrix"

        def load(self, device, d_in):
            return weights

    odd = source.model_copy(update={"coder": Matrix(), "hookpoint": "layers.1"})
    with pytest.raises(InputError, match=f"the coder 'matrix': its `load` returned {kind} instead of SparseCoder"):
        collect(odd, tmp_path / "store")
    with pytest.raises(InputError, match=f"the coder 'matrix': its `load` returned {kind} instead of SparseCoder"):
        odd.weights()


def test_run_within_autocast_has_the_activations_of_one_without(tmp_path, monkeypatch):
    task = random_task(tmp_path, n_latents=32, window=8, score=5, source=tiny_source(tmp_path))
    plain = saeval.run(task, out=tmp_path / "plain")
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "another"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = saeval.run(task, out=tmp_path / "within")
        assert torch.is_autocast_enabled("cpu")
    assert within.cells == plain.cells and within.examples == plain.examples
