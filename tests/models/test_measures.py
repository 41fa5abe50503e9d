"""Facts about coders and latents that stand beside scores have their known values."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from small_stores import dataset, write
from tiny import D, random_task, tiny_model

import saeval
from saeval import InputError
from saeval._run.pipeline import Pipeline
from saeval.activations.latent_stats import position_dependence, token_share
from saeval.models import coders, live
from saeval.models.fidelity import measure_fidelity
from saeval.models.screening import Screen
from saeval.plugin import ActivationStore, ActivationWriter, HookPoint, LinearCoder, LiveModel, Subject, TokenDataset


def coder(scale: float) -> LinearCoder:
    """Every coordinate and its opposite as a latent; what is read comes back times `scale`."""
    identity = torch.eye(D)
    both = torch.cat([identity, -identity])
    return LinearCoder(
        encoder=both.T, decoder=scale * both, threshold=torch.zeros(2 * D), architecture="mirror", autoencoder=True
    )


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    live = LiveModel.load(str(tiny_model(tmp_path_factory.mktemp("model"), "llama")))
    return Subject(live, live.hookpoint("layers.0"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, subject):
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, size=(9, 17), dtype=np.int32)
    tokens[:, 0] = subject.live.tokenizer.bos_token_id or 0
    lengths = np.array([17, 17, 12, 17, 17, 17, 17, 17, 9], dtype=np.int32)
    mask = (np.arange(17) < lengths[:, None]) & (np.arange(17) > 0)
    data = TokenDataset(tokens, lengths, mask, np.arange(9, dtype=np.int32), tuple("abcdefghi"),
                        dict.fromkeys(range(60), b"x"), lead=1)  # fmt: skip
    writer = ActivationWriter(tmp_path_factory.mktemp("store") / "store")
    writer.start(data, 4)
    # Latent 0 fires on everything, 1 at the first text token only, 2 on one token only, 3 never.
    flat, is_text = tokens.ravel(), mask.ravel()
    position = np.flatnonzero(is_text)
    found = [(p, 0) for p in position]
    found += [(p, 1) for p in position if p % 17 == 1]
    found += [(p, 2) for p in position if flat[p] == flat[position[3]]]
    found.sort()
    p, latent = (np.array(column, dtype=np.int64) for column in zip(*found, strict=True))
    writer.add(p, latent, np.ones(len(p), dtype=np.float32))
    writer.advance(9)
    return writer.finish()


def test_perfect_reconstruction_recovers_everything_and_zero_nothing(subject, store):
    perfect, nothing = (
        measure_fidelity(subject, coder(1.0), store, 10_000),
        measure_fidelity(subject, coder(0.0), store, 10_000),
    )
    assert perfect.recovered == pytest.approx(1, abs=1e-4) and nothing.recovered == pytest.approx(0, abs=1e-6)
    assert perfect.clean == nothing.clean and nothing.spliced == pytest.approx(nothing.ablated)
    assert perfect.tokens == int(store.mask[:, 1:].sum())


def test_clean_cross_entropy_is_the_model_s_own(subject, store):
    found = measure_fidelity(subject, coder(1.0), store, 10_000)
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids, length in zip(store.tokens, store.lengths, strict=True):
            row = torch.from_numpy(ids[:length].astype(np.int64))[None]
            output = subject.live.model(row, labels=row)
            total, count = total + float(output.loss) * (length - 1), count + int(length) - 1
    assert found.clean == pytest.approx(total / count, abs=1e-4)


def test_coder_of_centred_activations_reconstructs_centred_ones(tmp_path, store):
    live = LiveModel.load(str(tiny_model(tmp_path / "model", "gpt2")))
    with torch.no_grad():
        live.model.transformer.wpe.weight.add_(1.5)  # gives the stream a mean, which the norms remove
    keep = 0.5 * torch.eye(D) + torch.linspace(0, 0.3, D)[None]  # its reconstruction depends on the mean
    point = HookPoint("h.0", center=True)
    linear = LinearCoder(torch.cat([keep, -keep], dim=1), decoder=torch.cat([torch.eye(D), -torch.eye(D)]))
    found = measure_fidelity(Subject(live, point), linear, store, 10_000)

    def centred_then_kept(text, module, inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        made = torch.where(text[None, :, None], (x - x.mean(dim=-1, keepdim=True)) @ keep, x)
        return (made, *output[1:]) if isinstance(output, tuple) else made

    total, count = 0.0, 0
    for ids, length, mask in zip(store.tokens, store.lengths, store.mask, strict=True):
        row = torch.from_numpy(ids[:length].astype(np.int64))[None]
        hook = live.model.transformer.h[0].register_forward_hook(
            partial(centred_then_kept, torch.from_numpy(np.array(mask[:length])))
        )
        with torch.inference_mode():
            total += float(live.model(row, labels=row).loss) * (length - 1)
        hook.remove()
        count += int(length) - 1
    assert found.spliced == pytest.approx(total / count, abs=1e-4)
    uncentred = measure_fidelity(Subject(live, HookPoint("h.0")), linear, store, 10_000)
    assert abs(uncentred.spliced - found.spliced) > 0.01


def test_part_of_the_corpus_is_spread_over_it(subject, store):
    assert measure_fidelity(subject, coder(1.0), store, 32).tokens == int(store.mask[[0, 8]].sum())


def test_transcoder_is_refused_in_a_sentence(subject, store):
    other = coder(1.0)
    other.autoencoder = False
    with pytest.raises(InputError, match="does not reconstruct its input"):
        measure_fidelity(subject, other, store)


def measured(folder):
    """A task with a model of its own whose coder is measured."""
    changes = {"scorers": {"detection": {"with": {"batch": 1}}}, "measure": ["l0", "ce_recovered"]}
    return random_task(folder, n_latents=64, window=8, score=10, **changes)


def test_run_measures_it_when_asked_and_only_once(tmp_path, monkeypatch):
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(measured(tmp_path)))
    result = saeval.run(tmp_path / "task.yaml", out=tmp_path / "run")
    measures = result.cells[0].measures
    assert set(measures) == {"l0", "fvu", "ce_recovered", "ce_clean", "ce_spliced", "ce_ablated"}
    expected = (measures["ce_ablated"] - measures["ce_spliced"]) / (measures["ce_ablated"] - measures["ce_clean"])
    assert measures["ce_recovered"] == pytest.approx(expected)
    monkeypatch.setattr("saeval._run.runner.measure_fidelity", None)
    assert saeval.run(tmp_path / "task.yaml", out=tmp_path / "run").cells[0].measures == measures
    rows = pq.read_table(tmp_path / "run" / "cells" / "all" / "latents.parquet").to_pylist()
    assert all(0 < row["token_share"] <= 1 and 0 <= row["position_dependence"] <= 1 for row in rows)
    assert all(0 < row["mean_square"] <= row["density"] * row["max_activation"] ** 2 for row in rows)
    assert all(row["explanation_words"] > 0 for row in rows)


def test_model_leaves_the_gpu_when_activations_are_collected_and_nothing_else_needs_it(tmp_path, monkeypatch):
    task, run, held = measured(tmp_path), Pipeline.run, []
    saeval.run(task, out=tmp_path / "usual")

    def look(self):
        held.append(sum(key[0] == str(tmp_path / "model") for key in live._LOADED))
        return run(self)

    monkeypatch.setattr(Pipeline, "run", look)
    monkeypatch.setattr("saeval._run.runner.on_gpu", lambda: True)
    saeval.run(task, out=tmp_path / "gpu")
    monkeypatch.setattr("saeval._run.runner.on_gpu", lambda: False)
    saeval.run(task, out=tmp_path / "kept")
    assert held == [0, 1]
    names = ["latent", "promoted", "suppressed", "neighbours"]
    files = [tmp_path / run / "cells" / "all" / "latents.parquet" for run in ("usual", "gpu")]
    tables = [pq.read_table(file, columns=names) for file in files]
    assert tables[0] == tables[1] and tables[0]["promoted"][0].as_py()


def test_run_that_screens_stores_the_same_firings(tmp_path, monkeypatch):
    task, stores, computed, exact = measured(tmp_path) | {"measure": ["l0"]}, {}, [], Screen.exact
    monkeypatch.setattr(coders, "_MOST_CANDIDATES", 1.0)
    monkeypatch.setattr(Screen, "exact", lambda *some: computed.append(1) or exact(*some))
    for screen in (False, True):
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / f"cache-{screen}"))
        saeval.run(task | {"run": {"screen": screen}}, out=tmp_path / f"run-{screen}")
        assert bool(computed) == screen
        (manifest,) = (tmp_path / f"cache-{screen}").glob("stores/*/manifest.json")
        stores[screen] = ActivationStore.open(manifest.parent)
    assert stores[True].path.name == stores[False].path.name and stores[True].indptr[-1] > 500
    assert np.array_equal(stores[True].firings, stores[False].firings)
    for latent in range(64):
        (position, value), (own, mine) = (stores[screen].activations(latent) for screen in (False, True))
        assert np.array_equal(position, own) and np.allclose(value, mine, rtol=2e-3, atol=1e-5)


def test_latent_that_fires_all_over_the_turns_of_a_role_does_not_depend_on_the_position(tmp_path):
    data = dataset()
    data = replace(data, mask=data.mask & (np.arange(65) > 48))  # one turn at the end of each context
    everywhere = data.mask[..., None].astype(np.float32)
    store = write(tmp_path / "s", data, everywhere, facts={"roles": ["assistant"]})
    assert position_dependence(store, 0) == pytest.approx(0, abs=1e-12)


def test_latent_of_one_token_or_one_place_is_known_by_it(store):
    assert token_share(store, 2) == 1.0 and token_share(store, 0) < 0.2
    assert position_dependence(store, 0) == pytest.approx(0, abs=1e-12)
    first = store.mask[:, 1].sum() / store.mask.sum()
    assert position_dependence(store, 1) == pytest.approx(1 - first)
    assert math.isnan(token_share(store, 3)) and math.isnan(position_dependence(store, 3))
