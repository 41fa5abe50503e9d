"""Coders in other libraries' files, single directions, and transcoders' places."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from coder_files import F, K, dictionary, random
from pydantic import ValidationError
from root import ROOT
from saeval_plugins.coders.caa import Caa
from saeval_plugins.coders.dictionary_learning import DictionaryLearning
from saeval_plugins.coders.direction import Direction
from saeval_plugins.coders.gemma_scope import GemmaScope
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens
from saeval_plugins.coders.sparsify import Sparsify
from saeval_plugins.sources.transformers import Transformers
from safetensors.torch import load_file, save_file
from tiny import D, tiny_corpus, tiny_model, tiny_sae
from tiny_hub import tiny_hub

from saeval import InputError
from saeval.cli.group import main
from saeval.plugin import ActivationWriter, Corpus, HookPoint, LiveModel, down_projection
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.testing.contracts import check_coder, check_source

X = torch.randn(50, D, generator=torch.Generator().manual_seed(1)) * 3


def dense(sparse, latents=F):
    out = torch.zeros(len(X), latents)
    out[sparse.rows, sparse.latents] = sparse.values
    return out


def largest(pre, k, by=lambda x: x):
    """Set all but the k largest of each row to zero."""
    out = torch.zeros_like(pre)
    for row, values in enumerate(pre):
        kept = sorted(range(len(values)), key=lambda i: -by(values)[i].item())[:k]
        out[row, kept] = values[kept]
    return out


# --- sparsify -----------------------------------------------------------------------------------------------


def sparsify(folder, width=D, **options):
    """Write a coder as sparsify does."""
    config = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, **options, "d_in": width,
    }  # fmt: skip
    latents = config["num_latents"] or width * config["expansion_factor"]
    tensors = {
        "encoder.weight": random(latents, width), "encoder.bias": random(latents), "W_dec": random(latents, width, seed=1),
        "b_dec": random(width, seed=2),
    }  # fmt: skip
    if config["skip_connection"]:
        tensors["W_skip"] = random(width, width, seed=3)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    save_file(tensors, folder / "sae.safetensors")
    return folder


SPARSIFY = {
    "sae": {},
    "multi_topk": {"multi_topk": True, "normalize_decoder": False},
    "signed": {"signed": True},
    "groupmax": {"activation": "groupmax"},
    "transcoder": {"transcode": True},
    "skip": {"transcode": True, "skip_connection": True},
    "groupmax_transcoder": {"transcode": True, "activation": "groupmax"},
    "old": {"activation": None, "multi_topk": None, "skip_connection": None, "transcode": None, "signed": False},
    "expanded": {"num_latents": 0, "expansion_factor": 2},
}


@pytest.mark.parametrize("options", SPARSIFY.values(), ids=SPARSIFY)
def test_sparsify_is_read_as_its_formula_says(tmp_path, options):
    folder = sparsify(tmp_path / "layers.1.mlp", **options)
    plugin = Sparsify(path=folder)
    plugin.check()
    check_coder(plugin, D)
    coder, w = plugin.load("cpu", D), load_file(folder / "sae.safetensors")
    transcode = bool(options.get("transcode"))
    pre = (X if transcode else X - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    if options.get("signed"):
        expected = largest(pre, K, torch.abs)
        assert (expected < 0).any()
    elif options.get("activation") == "groupmax":
        size = F // K
        groups = [largest(pre[:, i : i + size].relu(), 1) for i in range(0, F, size)]
        expected = torch.cat(groups, dim=1)
    else:
        expected = largest(pre.relu(), K)
    sparse = coder.encode(X)
    assert torch.allclose(dense(sparse, len(pre[0])), expected, atol=1e-5)
    decoded = coder.decode(sparse, len(X))
    if options.get("skip_connection"):
        assert decoded is None
    else:
        assert torch.allclose(decoded, expected @ w["W_dec"] + w["b_dec"], atol=1e-4)
    assert torch.equal(coder.direction(3), w["W_dec"][3])
    assert torch.equal(coder.encoder_direction(3), w["encoder.weight"][3])
    assert (coder.autoencoder, coder.transcoder) == (not transcode, transcode)
    assert plugin.width() == D


def test_sparsify_folders_are_named_after_the_module_that_is_read(tmp_path):
    sae = sparsify(tmp_path / "a" / "layers.1.mlp")
    sparsify(tmp_path / "b" / "h.1.mlp", transcode=True)
    assert Sparsify(path=sae).hookpoint() == "layers.1.mlp"
    assert Sparsify(path=sae).load("cpu", D).writes is None
    reads_input = Sparsify(path=tmp_path / "b", folder="h.1.mlp")
    assert reads_input.hookpoint() == "h.1.mlp.input"
    assert reads_input.load("cpu", D).writes == "h.1.mlp"
    assert reads_input.site("h.1.mlp", []) == HookPoint("h.1.mlp", "in")
    assert reads_input.site("h.1.ln_2", []) == HookPoint("h.1.ln_2", "out")
    elsewhere = sparsify(tmp_path / "my-sae", transcode=True)
    assert Sparsify(path=elsewhere).hookpoint() is None
    assert Sparsify(path=elsewhere).load("cpu", D).writes is None
    assert Sparsify(path=elsewhere).load("cpu", D).transcoder


@pytest.mark.parametrize("folder", ["layers.1.mlp", "layers.1.mlp/seed0", "a copy", "layers.1"])
def test_a_transcoder_reads_the_input_of_its_module_whatever_its_folder_is_called(tmp_path, folder):
    model = tiny_model(tmp_path / "model")
    corpus = Corpus(path=tiny_corpus(tmp_path / "corpus.jsonl"), context=32)
    coder = Sparsify(path=sparsify(tmp_path / folder, transcode=True))
    named = Transformers(model=str(model), corpus=corpus, coder=coder, hookpoint="layers.1.mlp")
    by_folder = Transformers(model=str(model), corpus=corpus, coder=coder)
    named = named.model_copy(update={"accept_mismatch": folder == "layers.1"})
    for i, source in enumerate([named, by_folder] if "mlp" in folder else [named]):
        source.check()
        writer = ActivationWriter(tmp_path / f"store{i}")
        source.collect(writer)
        assert writer.finish().facts["hookpoint"] == "layers.1.mlp.input"


# --- dictionary_learning ------------------------------------------------------------------------------------

CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_is_read_as_its_formula_says(tmp_path, kind):
    plugin = DictionaryLearning(path=dictionary(tmp_path, kind))
    plugin.check()
    check_coder(plugin, D)
    coder, w = plugin.load("cpu", D), torch.load(tmp_path / "ae.pt", weights_only=True)
    encoder = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    decoder = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    bias = w[bias.get(kind, "b_dec")]
    h = (X if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else X - bias) @ encoder
    if kind == "GatedAutoEncoder":
        expected = (h + w["gate_bias"] > 0) * (w["r_mag"].exp() * h + w["mag_bias"]).relu()
    else:
        h = h + (w["b_enc"] if "b_enc" in w else w["encoder.bias"])
        expected = h.relu()
        if kind == "AutoEncoderTopK":
            expected = largest(expected, K)
        elif "threshold" in w:
            expected = expected * (expected > w["threshold"])
    sparse = coder.encode(X)
    assert torch.allclose(dense(sparse), expected, atol=1e-5)
    assert 0 < len(sparse.values) < X.shape[0] * F
    assert torch.allclose(coder.decode(sparse, len(X)), expected @ decoder + bias, atol=1e-4)
    assert torch.allclose(coder.direction(7), decoder[7])
    assert (coder.architecture, coder.autoencoder, coder.transcoder) == (kind, True, False)
    assert (plugin.hookpoint(), plugin.width()) == ("blocks.1.hook_resid_post", D)


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ("mlp_out_layer_3", "blocks.3.hook_mlp_out"),
        ("attention_out_layer_0", "blocks.0.hook_attn_out"),
        ("gpt_neox.layers.3.mlp", "gpt_neox.layers.3.mlp"),
        ("something_layer_3", None),
        (None, None),
    ],
)
def test_dictionary_learning_names_places_in_its_own_way(tmp_path, named, place):
    plugin = DictionaryLearning(path=dictionary(tmp_path, "AutoEncoder", submodule_name=named))
    assert plugin.hookpoint() == place


# --- Gemma Scope --------------------------------------------------------------------------------------------


def gemma(folder, **changes):
    """Write a coder as Gemma Scope does."""
    tensors = {
        "W_enc": random(D, F), "W_dec": random(F, D), "b_enc": random(F), "b_dec": random(D),
        "threshold": random(F, seed=4).abs(), **changes,
    }  # fmt: skip
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    return folder


def gemma_2(folder, config=None, **more):
    """Write a coder as Gemma Scope 2 does."""
    tensors = {
        "w_enc": random(D, F), "w_dec": random(F, D), "b_enc": random(F), "b_dec": random(D),
        "threshold": random(F, seed=4).abs(), **more,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("write", [gemma, gemma_2])
def test_gemma_scope_is_read_as_its_formula_says(tmp_path, write):
    plugin = GemmaScope(path=write(tmp_path))
    plugin.check()
    check_coder(plugin, D)
    coder = plugin.load("cpu", D)
    pre = X @ random(D, F) + random(F)
    expected = torch.where(pre > random(F, seed=4).abs(), pre, torch.tensor(0.0))
    sparse = coder.encode(X)
    assert torch.allclose(dense(sparse), expected, atol=1e-5)
    assert torch.allclose(coder.decode(sparse, len(X)), expected @ random(F, D) + random(D), atol=1e-4)
    assert plugin.width() == D
    assert plugin.hookpoint() is None, "nothing tells where it belongs"


def test_gemma_scope_may_be_named_by_its_file(tmp_path):
    folder = gemma(tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_71")
    for path in (folder, folder / "params.npz"):
        assert GemmaScope(path=path).hookpoint() == "blocks.3.hook_resid_post"
    assert GemmaScope(path=folder).fingerprint() == GemmaScope(path=folder / "params.npz").fingerprint()


@pytest.mark.parametrize(
    ("folder", "reads", "writes"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "blocks.20.hook_resid_post", None),
        ("gemma-scope-9b-it-res/layer_9/width_16k/average_l0_14", "blocks.9.hook_resid_post", None),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "hook_embed", None),
        ("gemma-scope-9b-pt-mlp/layer_0/width_1m/average_l0_9", "blocks.0.hook_mlp_out", None),
        ("gemma-scope-2b-pt-att/layer_7/width_65k/average_l0_9", "blocks.7.attn.hook_z", None),
        (
            "gemma-scope-2b-pt-transcoders/layer_7/width_16k/average_l0_9",
            "blocks.7.ln2.hook_normalized",
            "blocks.7.hook_mlp_out",
        ),
    ],
)
def test_gemma_scope_tells_its_place_by_the_names_of_its_folders(tmp_path, folder, reads, writes):
    plugin = GemmaScope(path=gemma(tmp_path / folder))
    coder = plugin.load("cpu", D)
    assert (plugin.hookpoint(), coder.writes) == (reads, writes)
    assert coder.transcoder == (writes is not None) == (not coder.autoencoder)


@pytest.mark.parametrize(
    ("folder", "reads", "writes"),
    [
        ("resid_post/layer_12_width_16k_l0_medium", "model.layers.12.output", None),
        ("resid_post_all/layer_1_width_16k_l0_big", "model.layers.1.output", None),
        ("mlp_out_all/layer_3_width_16k_l0_big", "model.layers.3.post_feedforward_layernorm.output", None),
        ("attn_out/layer_3_width_16k_l0_big", "model.layers.3.self_attn.o_proj.input", None),
        (
            "transcoder/layer_9_width_16k_l0_small_affine",
            "model.layers.9.pre_feedforward_layernorm.output",
            "model.layers.9.post_feedforward_layernorm.output",
        ),
    ],
)
def test_gemma_scope_2_tells_its_place_by_its_folders_where_it_has_no_configuration(tmp_path, folder, reads, writes):
    plugin = GemmaScope(path=gemma_2(tmp_path / folder))
    coder = plugin.load("cpu", D)
    assert (plugin.hookpoint(), coder.writes) == (reads, writes)
    assert coder.transcoder == (writes is not None)


def test_gemma_scope_2_transcoders_have_a_skip_connection_and_two_places(tmp_path):
    config = {
        "architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": True,
        "hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output",
    }  # fmt: skip
    plugin = GemmaScope(path=gemma_2(tmp_path / "mine", config, affine_skip_connection=random(D, D)))
    plugin.check()
    coder = plugin.load("cpu", D)
    assert coder.decode(coder.encode(X), len(X)) is None
    assert (coder.architecture, coder.autoencoder) == ("jumprelu_skip_transcoder", False)
    live = LiveModel.load(str(tiny_model(tmp_path / "model", "gemma3_text")))
    assert str(live.hookpoint(plugin.hookpoint())) == "layers.1.pre_feedforward_layernorm"
    assert str(live.hookpoint(coder.writes)) == "layers.1.post_feedforward_layernorm"
    (tmp_path / "mine" / "config.json").write_text('{"architecture": "topk"}')
    with pytest.raises(InputError, match="unknown architecture 'topk'"):
        GemmaScope(path=tmp_path / "mine").load("cpu", D)


@pytest.mark.parametrize("odd", [{"hf_hook_point_in": ["layers.1"]}, {"model_name": 3}])
def test_gemma_scope_2_skips_what_is_no_text_in_its_configuration(tmp_path, odd):
    plugin = GemmaScope(path=gemma_2(tmp_path / "resid_post" / "layer_1_width_16k_l0_small", odd))
    plugin.check()
    assert (plugin.hookpoint(), plugin.made_for().model) == ("model.layers.1.output", None)


def test_cross_layer_transcoders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cross-layer transcoder.*use: sae_lens"):
        GemmaScope(path=gemma_2(tmp_path / "clt" / "width_262k")).check()


# --- sae-lens: what the others share ------------------------------------------------------------------------


def test_transcoders_of_sae_lens_say_where_they_write(tmp_path):
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    coder = SaeLens(path=tiny_sae(tmp_path / "a", "transcoder", metadata=metadata)).load("cpu", D)
    assert (coder.transcoder, coder.writes) == (True, "blocks.1.hook_mlp_out")
    metadata["hf_hook_name_out"] = "model.layers.1.mlp.output"
    coder = SaeLens(path=tiny_sae(tmp_path / "b", "skip_transcoder", metadata=metadata)).load("cpu", D)
    assert (coder.transcoder, coder.writes) == (True, "model.layers.1.mlp.output")
    coder = SaeLens(path=tiny_sae(tmp_path / "c", "jumprelu")).load("cpu", D)
    assert (coder.transcoder, coder.writes) == (False, None)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "topk"}, {"architecture": "standard"}, {"architecture": None}, {"architecture": "abstopk"},
    ],
)  # fmt: skip
def test_top_k_saes_of_sae_lens_4_and_5_keep_k_where_those_versions_put_it(tmp_path, config):
    now = tiny_sae(tmp_path / "now", "abstopk" if config["architecture"] == "abstopk" else "topk", k=4)
    shutil.copytree(now, tmp_path / "then")
    old = {
        **config, "d_in": D, "d_sae": F, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "hook_name": "blocks.1.hook_resid_post",
        "hook_layer": 1, "apply_b_dec_to_input": True, "normalize_activations": "none", "prepend_bos": False, "context_size": 64,
        "sae_lens_training_version": "5.3.0",
    }  # fmt: skip
    (tmp_path / "then" / "cfg.json").write_text(json.dumps(old))
    then = SaeLens(path=tmp_path / "then")
    then.check()
    assert torch.equal(dense(then.load("cpu", D).encode(X)), dense(SaeLens(path=now).load("cpu", D).encode(X)))
    made = then.made_for()
    assert (made.place, made.layer, made.context_size, made.prepend_bos, made.l0) == (
        "blocks.1.hook_resid_post", 1, 64, False, 4,
    )  # fmt: skip


def test_a_pruned_latent_with_an_infinite_threshold_is_silent_and_no_fault(tmp_path):
    folder = tiny_sae(tmp_path / "sae", "jumprelu", d_sae=F)
    edit_weights(folder / "sae_weights.safetensors", threshold=torch.full((F,), torch.inf))
    assert not SaeLens(path=folder).load("cpu", D).encode(X).values.numel()
    edit_weights(folder / "sae_weights.safetensors", threshold=torch.full((F,), torch.nan))
    with pytest.raises(InputError, match="threshold contains NaN"):
        SaeLens(path=folder).load("cpu", D)


def test_the_backup_of_an_interrupted_training_is_refused_for_what_it_is(tmp_path):
    folder = dictionary(tmp_path / "dict", "AutoEncoder")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({"step": 500, "ae": state, "optimizer": {"state": {}}, "norm_factor": 3.7}, folder / "ae.pt")
    with pytest.raises(InputError, match=r"backup of an interrupted training run.*norm_factor"):
        DictionaryLearning(path=folder).check()


def test_folders_and_files_of_other_tools_are_said_for_what_they_are(tmp_path):
    sparsify(tmp_path / "run" / "layers.0")
    sparsify(tmp_path / "run" / "layers.1")
    tiny_sae(tmp_path / "lens")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    torch.save({"W_enc": random(D, F)}, tmp_path / "layer1.sae.pt")
    (tmp_path / "lens" / "notes.bin").write_bytes(b"x")
    for plugin, place, message in (
        (Sparsify, "run", r"name one of them \(layers.0, layers.1\)"),
        (SaeLens, "run/layers.1", "it contains a coder of sparsify: write `use: sparsify`"),
        (Sparsify, "lens", "it contains an SAE of sae-lens: write `use: sae_lens`"),
        (DictionaryLearning, "model", "it contains a language model, not a coder"),
        (SaeLens, "layer1.sae.pt", "it is a file in a folder with files of Qwen Scope"),
        (SaeLens, "lens/notes.bin", "it is a file; set `path` to its folder"),
        (SaeLens, "nowhere", "no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            plugin(path=tmp_path / place).check()
    Sparsify(path=tmp_path / "run" / "layers.1" / "cfg.json").check()  # a file of the folder means the folder


@pytest.mark.parametrize(
    ("release", "sae_id", "message"),
    [
        ("gpt2-small-res-jbb", "blocks.1.hook_resid_pre", "did you mean 'gpt2-small-res-jb'"),
        ("gpt2-small-res-jb", "blocks.99.hook_resid_pre", "but no 'blocks.99.hook_resid_pre'; did you mean"),
        ("google/gemma-scope-2b-pt-res", "layer_0/x", "that is a repository, which sae-lens lists as the release"),
        ("nobody/nothing", "x", "set `repo` and `folder`"),
    ],
)
def test_releases_that_sae_lens_does_not_list_are_refused_by_check(release, sae_id, message):
    with pytest.raises(InputError, match=message):
        SaeLens(release=release, sae_id=sae_id).check()


def test_a_listed_release_tells_its_model_without_a_download():
    plugin = SaeLens(release="gpt2-small-res-jb", sae_id="blocks.1.hook_resid_pre")
    plugin.check()
    made = plugin.made_for(fetch=False)
    assert (made.model, made.place) == ("gpt2-small", "blocks.1.hook_resid_pre")
    assert made.context_size is None and made.partial  # which its own cfg.json on the hub tells
    made = SaeLens(release="gemma-scope-2b-pt-res-canonical", sae_id="layer_12/width_16k/canonical").made_for(
        fetch=False
    )
    assert (made.model, made.context_size) == ("gemma-2-2b", 1024)


@pytest.mark.parametrize("key", ["hook_head_index", "hook_point_head_index"])
def test_saes_of_a_single_attention_head_are_refused_by_either_key(tmp_path, key):
    folder = tiny_sae(tmp_path / "head", "standard")
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]
    (folder / "cfg.json").write_text(json.dumps({**config, "hook_point": "blocks.1.attn.hook_z", key: 0}))
    with pytest.raises(InputError, match="attention head 0"):
        SaeLens(path=folder).check()


def test_saes_of_a_single_attention_head_are_refused(tmp_path):
    folder = tiny_sae(tmp_path, metadata={"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 0})
    with pytest.raises(InputError, match="only attention head 0"):
        SaeLens(path=folder).check()


class Fetched:
    """What sae-lens gives for a release."""

    def __init__(self, folder):
        self.cfg = self
        self.config = json.loads((folder / "cfg.json").read_text())
        self.tensors = load_file(folder / "sae_weights.safetensors")

    def to_dict(self):
        return self.config

    def state_dict(self):
        return self.tensors


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A folder that sae-lens fetches for every release, and what was fetched."""
    fetched = []

    def from_pretrained(release, sae_id, **options):
        fetched.append((release, sae_id))
        return Fetched(tmp_path / "released")

    monkeypatch.setattr("sae_lens.SAE.from_pretrained", from_pretrained)
    return tmp_path / "released", fetched


def test_contexts_without_a_length_are_as_long_as_the_releases_own_and_its_baselines_the_same(
    tmp_path, released, monkeypatch
):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    folder, fetched = released
    tiny_sae(folder, "standard", metadata={"context_size": 24, "model_name": "gpt2-small"})
    model, corpus = tiny_model(tmp_path / "gpt2", "gpt2"), tiny_corpus(tmp_path / "c.jsonl")
    coder = SaeLens(release="gpt2-small-res_sll-ajt", sae_id="blocks.2.hook_resid_pre")
    own = Transformers(model=str(model), coder=coder, corpus=Corpus(path=corpus))
    sources = [own, own.with_coder(RandomSae()), own.with_coder(Neurons())]
    for source in sources:
        source.check()
    assert not fetched
    writers = [ActivationWriter(tmp_path / f"store{i}") for i in range(3)]
    assert len({source.shares() for source in sources}) == 1
    Transformers.collect_many(sources, writers)
    stores = [writer.finish() for writer in writers]
    assert {store.tokens.shape[1] for store in stores} == {24}
    l0, beside = (store.firings.sum() / store.n_tokens for store in stores[:2])
    assert stores[1].n_latents == 40 and beside == pytest.approx(l0, abs=1)


def test_releases_are_known_by_the_content_of_their_weights(tmp_path):
    def release(seed):
        sae = SaeLens(release="release", sae_id="blocks.1.hook_resid_post")
        sae.__dict__["_download"] = Fetched(tiny_sae(tmp_path / str(seed), seed=seed))
        return sae

    assert release(0).fingerprint() == release(0).fingerprint() != release(1).fingerprint()
    assert torch.equal(
        dense(release(0).load("cpu", D).encode(X)), dense(SaeLens(path=tmp_path / "0").load("cpu", D).encode(X))
    )


# --- What is refused ----------------------------------------------------------------------------------------


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('ran').touch()",))


def write_npz(folder, **arrays):
    np.savez(folder / "params.npz", **arrays)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(file, **changes):
    config = json.loads(file.read_text())
    config.get("trainer", config).update(changes)
    file.write_text(json.dumps(config))


def edit_weights(file, **changes):
    if file.suffix == ".pt":
        torch.save({**torch.load(file, weights_only=True), **changes}, file)
    else:
        save_file({**load_file(file), **changes}, file)


REFUSED = {
    Sparsify: [
        (shutil.rmtree, "no such folder"),
        (lambda f: (f / "cfg.json").unlink(), r"has no cfg\.json; check that sparsify saved it"),
        (lambda f: (f / "sae.safetensors").unlink(), r"has no sae\.safetensors"),
        (lambda f: (f / "cfg.json").write_text("{"), r"cfg\.json cannot be read"),
        (lambda f: (f / "cfg.json").write_text("3"), "does not contain a JSON object"),
        (lambda f: cut(f / "sae.safetensors"), "damaged or truncated"),
        (lambda f: (f / "sae.safetensors").write_bytes(pickle.dumps(Evil())), "damaged or truncated"),
        (lambda f: edit(f / "cfg.json", activation="softmax"), "unknown activation 'softmax'"),
        (lambda f: edit(f / "cfg.json", k=0), "k is 0"),
        (lambda f: edit(f / "cfg.json", d_in=True), "d_in is True"),
        (lambda f: edit(f / "cfg.json", k=41), "more than its 40 latents"),
        (lambda f: edit(f / "cfg.json", activation="groupmax", k=7), "do not divide into 7 equal groups"),
        (lambda f: edit(f / "cfg.json", num_latents=41), r"W_dec has shape \[40, 16\]|encoder.weight has shape"),
        (lambda f: edit(f / "cfg.json", skip_connection=True), "lacks W_skip"),
        (lambda f: edit_weights(f / "sae.safetensors", W_skip=random(D, D)), "has W_skip"),
    ],
    DictionaryLearning: [
        (shutil.rmtree, "no such folder"),
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "ae.pt").unlink(), r"has no ae\.pt"),
        (lambda f: (f / "config.json").write_text("{}"), r"has no trainer\.dict_class"),
        (lambda f: cut(f / "ae.pt"), "damaged or truncated"),
        (
            lambda f: (f / "ae.pt").write_bytes(b"\xff" * 8 + (f / "ae.pt").read_bytes()[8:]),
            "damaged or truncated|weights only",
        ),
        (lambda f: (f / "ae.pt").write_bytes(pickle.dumps(Evil(), 2)), "damaged or truncated|weights only"),
        (lambda f: edit(f / "config.json", dict_class="CrossCoder"), "unknown class 'CrossCoder'"),
        (lambda f: edit(f / "config.json", dict_size="40"), "dict_size is '40'"),
    ],
    GemmaScope: [
        (shutil.rmtree, "no such folder"),
        (lambda f: (f / "params.npz").unlink(), r"has no params\.npz or params\.safetensors"),
        (lambda f: cut(f / "params.npz"), "damaged or truncated"),
        (lambda f: (f / "params.npz").write_bytes(b""), "damaged or truncated"),
        (lambda f: (f / "params.npz").write_bytes(pickle.dumps(Evil())), "damaged or truncated"),
        (lambda f: write_npz(f, W_enc=np.array([Evil()], dtype=object)), "contains Python objects.*weights only"),
        (lambda f: gemma(f, threshold=None), "lacks threshold"),
        (lambda f: gemma(f, scale=random(3)), "has scale"),
        (lambda f: gemma(f, b_enc=random(F + 1)), r"b_enc has shape \[41\]"),
        (lambda f: gemma(f, W_enc=random(F)), r"W_enc has shape \[40\]"),
    ],
}
MADE = {Sparsify: sparsify, DictionaryLearning: lambda f: dictionary(f, "AutoEncoderTopK"), GemmaScope: gemma}


@pytest.mark.parametrize(("plugin", "spoil", "message"), [(p, *case) for p, cases in REFUSED.items() for case in cases])
def test_files_that_cannot_be_used_are_refused_by_check_and_by_load(tmp_path, monkeypatch, plugin, spoil, message):
    monkeypatch.chdir(tmp_path)
    folder = MADE[plugin](tmp_path / "coder")
    spoil(folder)
    for use in (lambda: plugin(path=folder).check(), lambda: plugin(path=folder).load("cpu", D)):
        with pytest.raises(InputError, match=message) as refusal:
            use()
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: torch.save(Evil(), f), "contains executable code.*state dict"),
        (lambda f: torch.save({"b_dec": Evil()}, f), "contains executable code.*state dict"),
        (lambda f: torch.save(torch.nn.Linear(3, 4), f), "contains executable code.*state dict"),
        (lambda f: torch.save([random(3)], f), "contains a list"),
        (lambda f: torch.save({"b_dec": "text"}, f), "contains b_dec, a str"),
        (lambda f: edit_weights(f, extra=random(3)), "has extra"),
        (lambda f: edit_weights(f, b_dec=random(D + 1)), r"b_dec has shape \[17\]"),
        (lambda f: edit_weights(f, b_dec=torch.full((D,), torch.nan)), "b_dec contains NaN"),
        (lambda f: edit_weights(f, k=torch.tensor(41)), "k is 41, more than its 40 latents"),
        (lambda f: edit_weights(f, k=torch.tensor(0)), "k is 0"),
    ],
)
def test_pickles_are_never_run_and_what_they_hold_has_to_fit(tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    folder = dictionary(tmp_path / "coder", "AutoEncoderTopK")
    spoil(folder / "ae.pt")
    with pytest.raises(InputError, match=message):
        DictionaryLearning(path=folder).load("cpu", D)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("plugin", MADE)
def test_a_wrong_width_is_refused_naming_both(tmp_path, plugin):
    with pytest.raises(InputError, match=r"width 16, .* width 24.*change `hookpoint`, `model` or the coder"):
        plugin(path=MADE[plugin](tmp_path)).load("cpu", 24)


@pytest.mark.parametrize("plugin", MADE)
def test_fingerprints_follow_content_and_not_place(tmp_path, plugin):
    folders = [MADE[plugin](tmp_path / name) for name in ("a", "b", "c")]
    file = next(f for name in plugin.weight_files if (f := folders[2] / name).exists())
    file.write_bytes(file.read_bytes() + b" ")
    a, b, c = (plugin(path=folder).fingerprint() for folder in folders)
    if plugin is not GemmaScope:  # NumPy writes the time into the file
        assert a == b
    shutil.copytree(folders[0], tmp_path / "d")
    assert a == plugin(path=tmp_path / "d").fingerprint() != c


def test_one_place_is_wanted(tmp_path):
    for options in ({}, {"path": tmp_path, "repo": "a/b"}, {"path": tmp_path, "revision": "main"}):
        with pytest.raises(ValidationError, match=r"set either path|revision requires"):
            Sparsify(**options)


# --- On the hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a repository of each format; yields what has been downloaded from it."""
    root = tmp_path / "hub"
    sparsify(root / "EleutherAI/sae-tiny/layers.1.mlp", transcode=True)
    sparsify(root / "EleutherAI/sae-tiny/layers.2.mlp")
    gemma(root / "google/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71")
    gemma_2(root / "google/gemma-scope-2-1b-pt/resid_post/layer_1_width_16k_l0_medium")
    dictionary(root / "someone/saes/trainer_0", "BatchTopKSAE")
    tiny_sae(root / "someone/lens/layer_1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with tiny_hub(root) as (address, downloaded):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield downloaded


def on_hub():
    """What names each repository of the hub, and the hookpoint that it tells."""
    return [
        (Sparsify, {"repo": "EleutherAI/sae-tiny", "folder": "layers.1.mlp"}, "layers.1.mlp.input"),
        (
            GemmaScope,
            {"repo": "google/gemma-scope-2b-pt-res", "folder": "layer_1/width_16k/average_l0_71"},
            "blocks.1.hook_resid_post",
        ),
        (
            GemmaScope,
            {"repo": "google/gemma-scope-2-1b-pt", "folder": "resid_post/layer_1_width_16k_l0_medium"},
            "model.layers.1.output",
        ),
        (DictionaryLearning, {"repo": "someone/saes", "folder": "trainer_0"}, "blocks.1.hook_resid_post"),
        (SaeLens, {"repo": "someone/lens", "folder": "layer_1", "revision": "main"}, "blocks.1.hook_resid_post"),
    ]


@pytest.mark.parametrize("i", range(5))
def test_coders_are_fetched_from_the_hub_and_nothing_else_is(tmp_path, hub, i):
    kind, options, place = on_hub()[i]
    coder = kind(**options)
    coder.check()
    assert coder.hookpoint() == place
    assert not [f for f in hub if f.endswith(kind.weight_files)], "a check downloads no weights"
    loaded = coder.load("cpu", D)
    folder = f"{options['repo']}/{options['folder']}"
    assert {f.rpartition("/")[0] for f in hub} == {folder}
    local = kind(path=tmp_path / "hub" / folder)
    assert torch.equal(dense(loaded.encode(X)), dense(local.load("cpu", D).encode(X)))
    assert coder.fingerprint() == local.fingerprint()


def test_what_was_fetched_once_is_used_without_a_connection(hub, monkeypatch):
    kind, options, _ = on_hub()[0]
    fetched = kind(**options)
    fetched.load("cpu", D)
    Sparsify(repo=options["repo"], folder="layers.2.mlp").width()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = kind(**options)
    again.check()
    assert torch.equal(dense(again.load("cpu", D).encode(X)), dense(fetched.load("cpu", D).encode(X)))
    with pytest.raises(InputError, match="not on this machine, and the hub cannot be reached"):
        Sparsify(repo=options["repo"], folder="layers.2.mlp").check()
    with pytest.raises(InputError, match="not on this machine, and the hub cannot be reached"):
        GemmaScope(repo="google/gemma-scope-2b-pt-res", folder="layer_1/width_16k/average_l0_71").check()


def test_plan_downloads_no_weights(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "saeval"))
    (tmp_path / "corpus.jsonl").write_text((json.dumps({"text": "The old captain walked along. " * 9}) + "\n") * 40)
    _, options, _ = on_hub()[0]
    source = {
        "model": str(tiny_model(tmp_path / "model", "llama")),
        "coder": {"use": "sparsify", "with": options},
        "corpus": {"path": str(tmp_path / "corpus.jsonl")},
        "accept_mismatch": True,
    }
    task = {
        "saeval": 1, "task": "planned", "version": "1.0", "llms": {"judge": {"model": "scripted/x", "reply": "[1]"}},
        "source": {"use": "transformers", "with": source}, "latents": {"n": 4}, "sampler": "random",
        "explainer": "top_tokens", "scorers": {"detection": {}},
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "task.yaml")])
    assert done.exit_code == 0 and "collect" in done.output, done.output
    assert hub and not [f for f in hub if f.endswith(Sparsify.weight_files)]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_what_is_not_on_the_hub_is_said_with_what_is(hub):
    close = {"repo": "google/gemma-scope-2b-pt-res", "folder": "layer_1/width_16k/average_l0_70"}
    with pytest.raises(InputError, match=r"no params\.npz .*did you mean folder: layer_1/width_16k/average_l0_71\?"):
        GemmaScope(**close).check()
    with pytest.raises(InputError, match=r"no cfg\.json.*did you mean folder: layers"):
        Sparsify(repo="EleutherAI/sae-tiny").load("cpu", D)
    with pytest.raises(InputError, match="there is no such repository"):
        Sparsify(repo="EleutherAI/none", folder="layers.1").check()
    with pytest.raises(InputError, match="no such revision"):
        Sparsify(repo="EleutherAI/sae-tiny", folder="layers.1.mlp", revision="later").check()
    with pytest.raises(InputError, match="not a repository name"):
        Sparsify(repo="not a name").check()


# --- Directions ---------------------------------------------------------------------------------------------

VECTOR = random(D, seed=9)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt", ".json"])
def test_a_direction_is_read_from_any_file(tmp_path, suffix):
    file = tmp_path / f"vector{suffix}"
    {
        ".npy": lambda: np.save(file, VECTOR.numpy()),
        ".npz": lambda: np.savez(file, v=VECTOR.numpy()),
        ".safetensors": lambda: save_file({"v": VECTOR[None]}, file),
        ".pt": lambda: torch.save(VECTOR, file),
        ".json": lambda: file.write_text(json.dumps(VECTOR.tolist())),
    }[suffix]()
    plugin = Direction(path=file)
    plugin.check()
    check_coder(plugin, D)
    coder = plugin.load("cpu", D)
    assert torch.allclose(dense(coder.encode(X), 1)[:, 0], (X @ VECTOR).relu(), atol=1e-5)
    assert torch.allclose(coder.direction(0), VECTOR)
    assert (coder.n_latents, coder.autoencoder, coder.transcoder, plugin.width()) == (1, False, False, D)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_probe_fires_where_weights_and_bias_exceed_the_threshold(tmp_path, suffix):
    file, other = tmp_path / f"probe{suffix}", tmp_path / f"sklearn{suffix}"
    for path, names in ((file, ("weight", "bias")), (other, ("coef_", "intercept_"))):
        arrays = dict(zip(names, (VECTOR[None], torch.tensor([0.25])), strict=True))
        if suffix == ".npz":
            np.savez(path, **{k: v.numpy() for k, v in arrays.items()})
        else:
            save_file(arrays, path)
    projection = X @ VECTOR + 0.25
    expected = torch.where(projection > 1.5, projection, torch.tensor(0.0))
    sparse = Direction(path=file, threshold=1.5).load("cpu", D).encode(X)
    assert torch.allclose(dense(sparse, 1)[:, 0], expected, atol=1e-5)
    assert 0 < len(sparse.values) < (projection > 0).sum()
    named = Direction(path=other, weight="coef_", bias="intercept_", threshold=1.5).load("cpu", D)
    assert torch.equal(dense(named.encode(X), 1), dense(sparse, 1))
    shifted = Direction(path=file, bias=3.0).load("cpu", D).encode(X)
    assert torch.allclose(dense(shifted, 1)[:, 0], (X @ VECTOR + 3).relu(), atol=1e-5)


def test_directions_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "d.pt"

    def refused(message, **options):
        with pytest.raises(InputError, match=message):
            Direction(path=options.pop("path", file), **options).load("cpu", D)

    refused("no such file")
    (tmp_path / "d.txt").write_text("1 2")
    refused("unknown format", path=tmp_path / "d.txt")
    for content, message in (
        (random(3, D), r"shape \[3, 16\], which is not one direction; save a single row"),
        (torch.tensor(1.0), "not one direction"),
        (torch.zeros(D), "are zero"),
        (random(D + 1), "has 17 numbers, but activations at the hookpoint have width 16"),
        ({"a": VECTOR, "b": VECTOR}, "contains a, b, but no 'weight'; set `weight`"),
        ({"weight": VECTOR, "bias": random(2)}, r"bias has shape \[2\]"),
        (Evil(), "contains executable code"),
    ):
        torch.save(content, file)
        refused(message)
    torch.save({"weight": VECTOR, "bias": torch.zeros(1)}, file)
    refused("contains no 'offset'", bias="offset")
    (tmp_path / "d.json").write_text('["a", "b"]')
    refused("d.json", path=tmp_path / "d.json")
    np.save(tmp_path / "d.npy", np.array([Evil()]), allow_pickle=True)
    refused("Python objects", path=tmp_path / "d.npy")
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Direction(path=file, threshold=-1)
    assert not (tmp_path / "ran").exists()


def test_fingerprints_of_directions_follow_their_options(tmp_path):
    torch.save(VECTOR, tmp_path / "a.pt")
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    a, b = Direction(path=tmp_path / "a.pt"), Direction(path=tmp_path / "b.pt")
    assert a.fingerprint() == b.fingerprint() != Direction(path=tmp_path / "a.pt", threshold=1).fingerprint()


# --- Contrastive activation addition ------------------------------------------------------------------------

PAIRS = [("The ship was a joy to see", "The grey sea"), ("Peace!", "The captain looked at the sea and was not glad")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"positive": p, "negative": n}) + "\n" for p, n in PAIRS))
    return path


def test_caa_is_the_mean_difference_at_the_last_token(model, pairs):
    plugin = Caa(pairs=pairs, model=model, at="layers.1")
    plugin.check()
    check_coder(plugin, D)
    live = LiveModel.load(model)

    def at_last_token(text):
        tokens = [live.tokenizer.bos_token_id, *live.tokenizer(text)["input_ids"]]
        seen = []
        hook = live.model.model.layers[1].register_forward_hook(lambda _m, _a, out: seen.append(out))
        live.model(torch.tensor([tokens]))
        hook.remove()
        return (seen[0] if torch.is_tensor(seen[0]) else seen[0][0])[0, -1].detach()

    positive, negative = (sum(at_last_token(pair[side]) for pair in PAIRS) / len(PAIRS) for side in (0, 1))
    coder = plugin.load("cpu", D)
    assert torch.allclose(coder.direction(0), positive - negative, atol=1e-4)
    expected = ((X - (positive + negative) / 2) @ (positive - negative)).relu()
    assert torch.allclose(dense(coder.encode(X), 1)[:, 0], expected, atol=1e-3)
    plain = Caa(pairs=pairs, model=model, at="layers.1", midpoint=False).load("cpu", D)
    assert torch.allclose(dense(plain.encode(X), 1)[:, 0], (X @ (positive - negative)).relu(), atol=1e-3)
    at_means = coder.encode(torch.stack([positive, negative]))
    assert at_means.rows.tolist() == [0], "it fires on the positive side of the midpoint"


def test_caa_with_a_share_fires_on_so_many_of_the_pairs_tokens_those_that_project_furthest(model, pairs):
    wide, narrow = (Caa(pairs=pairs, model=model, at="layers.1", share=share).load("cpu", D) for share in (None, 0.1))
    live = LiveModel.load(model)
    states = []
    for text in (text for pair in PAIRS for text in pair):
        tokens = torch.tensor([[live.tokenizer.bos_token_id, *live.tokenizer(text)["input_ids"]]])
        point = live.hookpoint("layers.1")
        states.append(live.capture(tokens, [point])[point][0, 1:])
    x = torch.cat(states)
    every, few = torch.zeros(len(x)), torch.zeros(len(x))
    for values, coder in ((every, wide), (few, narrow)):
        sparse = coder.encode(x)
        values[sparse.rows] = sparse.values
    assert abs(int((few > 0).sum()) - 0.1 * len(x)) <= 1
    assert torch.equal(few[few > 0], every[few > 0]) and few[few > 0].min() > every[few == 0].max()


def test_caa_works_in_a_source_that_is_told_no_hookpoint(model, pairs, tmp_path):
    corpus = Corpus(path=tiny_corpus(tmp_path / "corpus.jsonl"), context=32)
    source = Transformers(model=model, corpus=corpus, coder=Caa(pairs=pairs, model=model, at="layers.1"))
    source.check()
    (tmp_path / "source").mkdir()
    check_source(source, tmp_path / "source")
    assert torch.equal(source.weights().direction(0), source.coder.load("cpu", D).direction(0))


def test_fingerprint_of_caa_follows_pairs_and_place(model, pairs, tmp_path):
    plugin = Caa(pairs=pairs, model=model, at="layers.1")
    copied = shutil.copy(pairs, tmp_path / "copy.jsonl")
    assert plugin.fingerprint() == Caa(pairs=copied, model=model, at="layers.1").fingerprint()
    assert plugin.fingerprint() != Caa(pairs=pairs, model=model, at="layers.2").fingerprint()
    pairs.write_text(pairs.read_text() * 2)
    assert plugin.fingerprint() != Caa(pairs=copied, model=model, at="layers.1").fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no pairs"),
        ('{"positive": "a", "negative": "b"}\n{"positive": "a"}\n', "line 2: it must have the texts"),
        ("[1, 2]\n", "line 1"),
        ("not json\n", "line 1"),
        ('{"positive": "a", "negative": 3}\n', "line 1"),
        ('{"positive": "a", "negative": " "}\n', "line 1"),
    ],
)
def test_contrast_pairs_that_are_none_are_refused(model, pairs, text, message):
    pairs.write_text(text)
    with pytest.raises(InputError, match=message):
        Caa(pairs=pairs, model=model, at="layers.1").check()


def test_contrast_pairs_without_contrast_or_place_are_refused(model, pairs, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Caa(pairs=tmp_path / "none.jsonl", model=model, at="layers.1").check()
    with pytest.raises(InputError, match=r"width 16, but at the source's hookpoint 24"):
        Caa(pairs=pairs, model=model, at="layers.1").load("cpu", 24)
    pairs.write_text('{"positive": "same", "negative": "same"}\n')
    with pytest.raises(InputError, match="there is no direction"):
        Caa(pairs=pairs, model=model, at="layers.1").load("cpu", D)


# --- Neurons of every kind of MLP ---------------------------------------------------------------------------

MLPS = {
    "gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h", "bloom": "mlp.dense_4h_to_h", "gptj": "mlp.fc_out",
    "phi": "mlp.fc2", "opt": "fc2", "llama": "mlp.down_proj", "lfm2": "feed_forward.w2", "rwkv": "feed_forward.value",
    "recurrent_gemma": "mlp_block.down_proj", "xlstm": "ffn.proj_down", "granitemoehybrid": "shared_mlp.output_linear",
    "jamba": "feed_forward.down_proj", "mamba": "mixer.out_proj", "falcon_mamba": "mixer.out_proj",
    "nemotron_h": "mixer.down_proj",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), MLPS.items(), ids=MLPS)
def test_neurons_are_found_in_every_kind_of_mlp(kind, name):
    transformers = pytest.importorskip("transformers")
    options = {"layers_block_type": ["mlp", "mamba"]} if kind == "nemotron_h" else {"num_hidden_layers": 2}
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(kind, **options)
        model = transformers.AutoModelForCausalLM.from_config(config).base_model
    modules = [path for path, _ in model.named_modules() if path]
    block = next(m.removesuffix(f".{name}") for m in modules if m.endswith(f".0.{name}"))
    assert down_projection(block, modules) == f"{block}.{name}"
    assert Neurons().site(block, modules) == HookPoint(f"{block}.{name}", "in")


def test_a_block_with_experts_has_no_neurons_even_beside_a_mixer():
    modules = [
        "layers.1",
        "layers.1.mamba",
        "layers.1.mamba.out_proj",
        "layers.1.feed_forward",
        "layers.1.feed_forward.experts",
    ]
    assert down_projection("layers.1", modules) is None
    assert down_projection("layers.1", modules[:-1]) == "layers.1.mamba.out_proj"


# --- Documentation, and coders of one's own -----------------------------------------------------------------

PAGE = (ROOT / "docs" / "coders.md").read_text()


def block(language):
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


def test_coders_of_the_documentation_are_there():
    registry = Registry()
    shown = yaml.safe_load(block("yaml"))
    for part in shown:
        registry.get("coder", part["use"]).cls(**part["with"])
    built_in = {p.cls.name for p in registry.names("coder") if p.id.startswith("saeval/")}
    assert {part["use"] for part in shown} == built_in == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))


def test_a_coder_of_ones_own_is_known_by_its_file_and_marks_the_run(model, tmp_path):
    (tmp_path / "mine.py").write_text(block("python"))

    def task():
        source = {
            "use": "transformers",
            "with": {
                "model": model, "hookpoint": "layers.1", "corpus": {"path": str(tiny_corpus(tmp_path / "corpus.jsonl"))},
                "coder": {"use": f"{tmp_path}/mine.py:Mine"},
            },
        }  # fmt: skip
        spec = {
            "saeval": 1,
            "task": "mine",
            "version": "1",
            "source": source,
            "explainer": "top_tokens",
            "scorers": {"embedding": {}},
        }
        return load_task(spec, registry=Registry())

    source = task().cells[0].source
    check_coder(source.plugin.coder, D)
    expected = torch.cat([X, -X], dim=-1).relu()
    assert torch.equal(dense(source.plugin.coder.load("cpu", D).encode(X), 2 * D), expected)
    assert [part.loaded.sha is not None for part in source.nested] == [True], "this is what marks a run"
    before = source.identity
    assert task().cells[0].source.identity == before
    (tmp_path / "mine.py").write_text(block("python") + "# changed\n")
    assert task().cells[0].source.identity != before
