"""Nonzeros that are sorted on the device make the store that is made on the host, without waiting for the device."""

from __future__ import annotations

import threading
import time
from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
from interrupted import interrupted_after
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens
from saeval_plugins.sources import _on_device, transformers
from saeval_plugins.sources._on_device import Copy, Nonzeros, WriterThread
from saeval_plugins.sources.transformers import Transformers
from tiny import tiny_corpus, tiny_model, tiny_sae
from torch.utils._python_dispatch import TorchDispatchMode
from two_gpus import FIRST, Placed, spread, two_gpus

from saeval import InputError
from saeval.activations.store.chunks import pair_type
from saeval.models import screened
from saeval.plugin import ActivationWriter, Coder, Corpus, LinearCoder, LiveModel, ModuleCoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sorted")


@pytest.fixture(scope="module")
def plain(folder):
    corpus = Corpus(path=tiny_corpus(folder / "corpus.jsonl"), context=32)
    coder = SaeLens(path=tiny_sae(folder / "sae"))
    return Transformers(model=str(tiny_model(folder / "model")), corpus=corpus, coder=coder, batch_tokens=150)


@pytest.fixture
def shards(monkeypatch):
    """Shards of two batches, four contexts each."""
    monkeypatch.setattr(Transformers, "_shard_tokens", 2 * 4 * 33)


def on_device(source):
    return source.model_copy(update={"sort_on_device": True})


def collect(sources, folder):
    folder.mkdir()
    writers = [ActivationWriter(folder / str(i)) for i in range(len(sources))]
    Transformers.collect_many(sources, writers)
    return [writer.finish() for writer in writers]


def files(store):
    return {name: file["blake2b"] for name, file in store.manifest["files"].items()}


def same(one, other):
    assert files(one) == files(other) and int(one.indptr[-1]) > 100
    assert {**one.facts, "fvu": 0} == {**other.facts, "fvu": 0}
    assert one.facts.get("fvu", 0) == pytest.approx(other.facts.get("fvu", 0), rel=1e-12)


class Whole(Coder):
    """Latents that depend on all tokens before, some of them negative."""

    name = "whole"

    def load(self, device, d_in):
        return ModuleCoder(lambda x: x.cumsum(1), d_in, d_in, "whole", token_wise=False)


@pytest.mark.parametrize(("held", "screen"), [(200, False), (10**9, "bf16")], ids=["many blocks", "whole shards"])
def test_stores_are_bit_identical_for_all_coders_of_a_pass(plain, folder, shards, tmp_path, monkeypatch, screen, held):
    monkeypatch.setattr(transformers, "_MAX_ON_DEVICE", held)
    kinds = ("standard", "jumprelu", "gated")
    read = [SaeLens(path=tiny_sae(folder / kind, kind)) for kind in kinds]
    coders = [*read, RandomSae(n_latents=64, k=6), Neurons(k=5), Whole()]
    sources = [plain, *(plain.with_coder(coder) for coder in coders)]
    sources.append(sources[2].only([3, 7, 30]))
    with screened(screen):
        here = collect(sources, tmp_path / "here")
        there = collect([on_device(source) for source in sources], tmp_path / "there")
    for one, other in zip(here, there, strict=True):
        same(one, other)
    assert there[-1].latents == {3, 7, 30}


# --- What waits for the device ---

_WAIT = {"aten.nonzero.default", "aten._local_scalar_dense.default", "aten.item.default", "aten.is_nonzero.default"}
_WAIT |= {"aten.masked_select.default", "aten.repeat_interleave.Tensor", "aten.bincount.default", "aten.equal.default"}


class Waits(TorchDispatchMode):
    """Counts operations that wait for the device, and copies from it."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name, kwargs = str(op), kwargs or {}
        placed = [x for x in args if isinstance(x, Placed)]
        to_host = name == "aten.copy_.default" and isinstance(args[1], Placed) and not isinstance(args[0], Placed)
        asked = kwargs.get("device")
        moved = name == "aten._to_copy.default" and asked is not None and torch.device(asked).type == "cpu"
        masks = name == "aten.index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if placed and (name in _WAIT or to_host or moved or masks):
            self.found["copies" if to_host or moved else name] += 1
        return op(*args, **kwargs)


def on_gpu(source, kind):
    """The source, its model on a GPU that is pretended, and a coder there of some kind."""
    live = LiveModel.load(source.model)
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(live.width(live.hookpoint("layers.1")), 64, generator=generator)
    options = {"k": 5} if kind == "topk" else {"threshold": torch.full((64,), 2.0)}
    with two_gpus():
        placed = {key: x.to(FIRST) if isinstance(x, torch.Tensor) else x for key, x in options.items()}
        coder = LinearCoder(encoder.to(FIRST), encoder.T.contiguous().to(FIRST), **placed)
        other = LinearCoder(encoder, encoder.T.contiguous(), **options)

    class Made(Coder):
        name = "made"

        def load(self, device, d_in):
            return coder if device == FIRST else other

    return source.model_copy(update={"coder": Made(), "hookpoint": "layers.1", "accept_mismatch": True})


@pytest.fixture(scope="module")
def gpu(plain):
    """The model, on a GPU that is pretended."""
    pytest.importorskip("accelerate")
    live = LiveModel.load(plain.model)
    model = deepcopy(live.model)
    with two_gpus():
        spread(model, {name: FIRST for name, _ in model.named_children()})
        return LiveModel("tiny", model, live.tokenizer)


@pytest.mark.parametrize(("kind", "screen"), [("jumprelu", False), ("jumprelu", "bf16"), ("topk", False)])
def test_batch_waits_for_the_device_four_times_at_most(plain, gpu, tmp_path, monkeypatch, kind, screen):
    source, batches = on_device(on_gpu(plain, kind)), []
    with screened(screen):
        (expected,) = collect([source], tmp_path / "here")
        in_batches = transformers.in_batches

        def counted(read, *rest):
            def one(low, high):
                with Waits() as waits:
                    read(low, high)
                batches.append(waits.found)

            in_batches(one, *rest)

        monkeypatch.setattr(transformers, "in_batches", counted)
        monkeypatch.setattr(Transformers, "_live", lambda self: gpu)
        with two_gpus():
            (store,) = collect([source], tmp_path / "there")
    assert np.array_equal(store.position, expected.position), "and no tensors of two devices are mixed"
    assert len(batches) > 3
    assert max(sum(found.values()) for found in batches) <= 4, batches
    assert sum(found["copies"] for found in batches) == 1, "the last batch of the shard copies all at once"


# --- Order and failures of the thread ---


def test_calls_keep_their_order_and_few_of_them_wait():
    done, begun = [], threading.Event()
    with WriterThread() as thread:
        thread.call(begun.wait, 10)
        thread.call(done.append, 1)
        blocked = threading.Timer(0.05, begun.set)
        blocked.start()
        since = time.monotonic()
        thread.call(done.append, 2)
        assert time.monotonic() - since >= 0.04, "a third call waits for room"
        for number in range(3, 20):
            thread.call(done.append, number)
    assert done == list(range(1, 20))


def test_failure_in_the_thread_is_raised_and_nothing_behind_it_is_done():
    done = []

    def fail():
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"), WriterThread() as thread:
        thread.call(done.append, 1)
        thread.call(fail)
        for number in range(2, 9):
            thread.call(done.append, number)
    assert done == [1]


def test_interrupt_lets_the_call_that_has_begun_end_and_drops_the_others():
    done, begun = [], threading.Event()

    def slow():
        begun.set()
        time.sleep(0.05)
        done.append("begun")

    with pytest.raises(KeyboardInterrupt), WriterThread() as thread:
        thread.call(slow)
        thread.call(done.append, "waiting")
        begun.wait(10)
        raise KeyboardInterrupt
    assert done == ["begun"]


def test_interrupted_collection_resumes_to_the_same_store(plain, shards, tmp_path, monkeypatch):
    (whole,) = collect([plain], tmp_path / "whole")
    writer, capture, calls = ActivationWriter(tmp_path / "cut"), LiveModel.capture, []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LiveModel, "capture", interrupted_after(9))
        on_device(plain).collect(writer)
    writer, read = ActivationWriter(tmp_path / "cut"), len(whole.tokens)

    def counted(self, tokens, *rest):
        calls.append(len(tokens))
        return capture(self, tokens, *rest)

    monkeypatch.setattr(LiveModel, "capture", counted)
    on_device(plain).collect(writer)
    assert 0 < sum(n for n in calls if n > 1) < read, "the first shard was there"
    same(writer.finish(), whole)


def test_disk_that_fills_while_the_thread_writes_stops_the_collection(plain, shards, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ActivationWriter, "add_sorted", full)
    with pytest.raises(OSError, match="No space left"):
        collect([on_device(plain)], tmp_path / "full")


class Broken(Coder):
    """Gives NaN."""

    name = "broken"

    def load(self, device, d_in):
        return ModuleCoder(lambda x: x * float("nan"), d_in, d_in, "broken")


def test_activations_that_are_not_finite_stop_the_collection(plain, tmp_path):
    with pytest.raises(InputError, match=r"read by broken in float32, is NaN or infinite"):
        collect([on_device(plain.with_coder(Broken()))], tmp_path / "broken")


@pytest.mark.parametrize("where", ["in a batch", "while sorting"])
def test_batches_are_halved_where_memory_runs_out_and_nothing_is_lost(plain, shards, tmp_path, monkeypatch, where):
    (whole,) = collect([plain], tmp_path / "whole")
    failed, encode, to_sort = [], LinearCoder.encode, Nonzeros.sorted

    def small(self, x):
        if len(x) > 70 and where == "in a batch":
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return encode(self, x)

    def crowded(self, device):
        if len(failed) < 2 and where == "while sorting":
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return to_sort(self, device)

    monkeypatch.setattr(LinearCoder, "encode", small)
    monkeypatch.setattr(Nonzeros, "sorted", crowded)
    (store,) = collect([on_device(plain)], tmp_path / "store")
    assert failed and np.array_equal(store.position, whole.position)
    assert np.allclose(store.value, whole.value, rtol=1e-2)
    assert store.facts["fvu"] == pytest.approx(whole.facts["fvu"], rel=1e-4)


# --- Positions ---


@pytest.mark.parametrize("first", [0, 2**31 - 50, 2**32 - 50, 2**40])
def test_positions_of_large_corpora_do_not_wrap(first):
    kind = pair_type(first + 1000)
    nonzeros, rng = Nonzeros(200_000, 1000, kind), np.random.default_rng(0)
    nonzeros.begin(first)
    place = np.sort(rng.choice(1000, 300, replace=False))
    latent, value = rng.integers(200_000, size=300), rng.random(300).astype(np.float32) + 1
    for part in (slice(200, 300), slice(0, 200)):  # whatever the order
        where = torch.from_numpy(first + place[part])
        nonzeros.add(where, torch.from_numpy(latent[part]), torch.from_numpy(value[part]))
    copy = nonzeros.sorted("cpu")
    assert isinstance(copy, Copy)
    block, order = copy.block(), np.lexsort([place, latent])
    assert block.pairs["position"].tolist() == (first + place)[order].tolist()
    assert block.pairs["value"].tolist() == value[order].tolist()
    assert np.array_equal(np.diff(block.bounds), np.bincount(latent, minlength=200_000))


def test_tensors_reach_other_devices_as_they_are():
    with two_gpus():
        assert _on_device.to_device(torch.arange(3), FIRST).tolist() == [0, 1, 2]
