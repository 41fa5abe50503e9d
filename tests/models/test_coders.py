from __future__ import annotations

import json
import shutil

import pytest
import torch
from pydantic import ValidationError
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens
from safetensors.torch import load_file, save_file
from tiny import D_FF, D, tiny_model, tiny_sae

import saeval.models.coders
import saeval.models.packed_matmul
from saeval import InputError
from saeval.plugin import HookPoint, LinearCoder, LiveModel, ModuleCoder, NeuronCoder, down_projection, encoding_pass

NATIVE = (
    "standard", "gated", "topk", "abstopk", "jumprelu",
    "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
VARIANTS = [
    *((a, {}) for a in NATIVE),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("abstopk", {"rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("jumprelu", {"normalize_activations": "layer_norm"}),
    ("topk", {"normalize_activations": "constant_norm_rescale"}),
    ("jumprelu_skip_transcoder", {"d_out": 24}),
]
IDS = ["-".join([a, *map(str, o)]) for a, o in VARIANTS]
X = torch.randn(50, D, generator=torch.Generator().manual_seed(1)) * 3


def dense(sparse, shape):
    out = torch.zeros(shape)
    out[sparse.rows, sparse.latents] = sparse.values
    return out


def load(folder, d_in=D):
    return SaeLens(path=folder).load("cpu", d_in)


# --- Encoding ---


@pytest.fixture(scope="module")
def sae_lens():
    return pytest.importorskip("sae_lens")


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "options"), VARIANTS, ids=IDS)
def test_encoding_is_bit_equal_to_that_of_sae_lens(sae_lens, tmp_path, architecture, options):
    folder = tiny_sae(tmp_path, architecture, **options)
    reference = sae_lens.SAE.load_from_disk(folder, device="cpu").eval().requires_grad_(False)
    coder = load(folder)
    expected = reference.encode(X)
    sparse = coder.encode(X)
    assert torch.equal(dense(sparse, expected.shape), expected)
    assert (sparse.values != 0).all()
    assert len(sparse.values) == (expected != 0).sum() > 0
    assert (sparse.rows.diff() >= 0).all()
    decoded = coder.decode(sparse, len(X))
    if "skip" in architecture or "normalize_activations" in options:
        assert decoded is None
    else:
        assert torch.allclose(decoded, reference.decode(expected), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["temporal", "matching_pursuit"])
def test_unusual_architectures_are_encoded_by_sae_lens(sae_lens, tmp_path, architecture):
    from sae_lens.registry import SAE_CLASS_REGISTRY

    cls, config = SAE_CLASS_REGISTRY[architecture]
    torch.manual_seed(0)
    options = {
        "temporal": {"d_sae": 128, "n_heads": 2, "bottleneck_factor": 64, "kval_topk": 4},
        "matching_pursuit": {"d_sae": 40, "max_iterations": 4},
    }
    cls(config(d_in=D, dtype="float32", device="cpu", **options[architecture])).save_model(tmp_path)
    SaeLens(path=tmp_path).check()
    coder = load(tmp_path)
    assert coder.token_wise == (architecture == "matching_pursuit")
    x = X if coder.token_wise else X.view(5, 10, D)
    expected = sae_lens.SAE.load_from_disk(tmp_path, device="cpu").encode(x).detach().reshape(50, -1)
    assert torch.allclose(dense(coder.encode(x), expected.shape), expected, atol=1e-6)
    assert coder.direction(3).shape == (D,)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_batchtopk_is_read_as_it_is_saved_for_inference_and_refused_in_training(sae_lens, tmp_path, architecture):
    from sae_lens.registry import get_sae_training_class

    cls, config = get_sae_training_class(architecture)
    widths = {"matryoshka_widths": [8, 16]} if architecture.startswith("matryoshka") else {}
    sae = cls(config(d_in=D, d_sae=32, k=4, dtype="float32", device="cpu", **widths))
    sae.save_inference_model(tmp_path / "inference")
    assert load(tmp_path / "inference").architecture == "jumprelu"
    sae.save_model(tmp_path / "training")
    with pytest.raises(InputError, match=r"training checkpoint.*save_inference_model"):
        SaeLens(path=tmp_path / "training").check()


@pytest.mark.parametrize(("architecture", "options"), VARIANTS, ids=IDS)
def test_tiles_change_nothing(tmp_path, monkeypatch, architecture, options):
    coder = load(tiny_sae(tmp_path, architecture, **options))
    whole = dense(coder.encode(X), (50, 40))
    monkeypatch.setattr(saeval.models.coders, "_TILE_BYTES", 4 * 40 * 7)
    tiled = coder.encode(X)
    assert torch.allclose(dense(tiled, (50, 40)), whole, atol=1e-5)
    assert (tiled.rows.diff() >= 0).all()
    monkeypatch.setattr(saeval.models.coders, "_TILE_BYTES", 1)
    assert torch.allclose(dense(coder.encode(X), (50, 40)), whole, atol=1e-5)


SEPARABLE = [(a, o) for a, o in VARIANTS if a not in ("topk", "abstopk")]


@pytest.mark.parametrize(
    ("architecture", "options"), SEPARABLE, ids=["-".join([a, *map(str, o)]) for a, o in SEPARABLE]
)
def test_chosen_latents_are_encoded_as_among_all_others(tmp_path, architecture, options):
    folder = tiny_sae(tmp_path, architecture, **options)
    coder, chosen = load(folder), [31, 3, 4, 17, 3]
    some, every = coder.only(chosen).encode(X), dense(coder.encode(X), (50, 40))
    kept = torch.zeros_like(every)
    kept[:, chosen] = every[:, chosen]
    assert (kept > 0).sum() > 10
    assert torch.equal(dense(some, (50, 40)) != 0, kept != 0)
    assert torch.allclose(dense(some, (50, 40)), kept, atol=1e-5)
    assert coder.only(chosen).n_latents == 40
    assert SaeLens(path=folder).separable()


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_latents_that_compete_cannot_be_encoded_without_the_others(tmp_path, architecture):
    folder = tiny_sae(tmp_path, architecture)
    assert load(folder).only([1, 2]) is None
    assert not SaeLens(path=folder).separable()
    assert not RandomSae().separable()


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5])
def test_jumprelu_keeps_what_is_above_threshold_and_0_and_what_is_not_a_number(threshold):
    encoder = torch.eye(4)
    coder = LinearCoder(encoder, encoder, threshold=torch.full((4,), threshold))
    rows, latents, values = coder.encode(torch.tensor([[-0.5, 0.0, 0.5, 2.0], [0.7, float("nan"), 0.0, 0.0]]))
    pairs = [(r, c, v) for r, c, v in zip(rows.tolist(), latents.tolist(), values.tolist(), strict=True) if v == v]
    expected = [(0, 3, 2.0)] if threshold == 0.5 else [(0, 2, 0.5), (0, 3, 2.0)]
    assert pairs == expected
    assert values.isnan().sum() == 4, "the whole row, as the encoder multiplies NaN by 0"


def test_compiled_coders_encode_the_same(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    plain, coder = (load(tiny_sae(tmp_path, "jumprelu")) for _ in range(2))
    assert coder.compile()
    assert coder.only([3]).compile()
    assert len(compiled) == 2
    assert all(map(torch.equal, coder.encode(X), plain.encode(X)))
    assert not NeuronCoder(D).compile()


@pytest.mark.parametrize(("architecture", "options"), VARIANTS, ids=IDS)
@pytest.mark.parametrize("packed", [True, False])
def test_a_pass_changes_nothing_but_rounding(tmp_path, monkeypatch, architecture, options, packed):
    monkeypatch.setattr(saeval.models.packed_matmul, "_PACKED_BYTES", 1 << 20 if packed else 0)
    coder, other = load(tiny_sae(tmp_path, architecture, **options)), RandomSae(n_latents=64, k=3).load("cpu", D)
    expected = [coder.encode(X), other.encode(X), coder.encode(X[:7]), coder.encode(X[:0])]
    with torch.inference_mode(), encoding_pass():
        made = [coder.encode(X), other.encode(X), coder.encode(X[:7]), coder.encode(X[:0])]
    for one, two in zip(made, expected, strict=True):
        assert torch.equal(one.rows, two.rows)
        assert torch.equal(one.latents, two.latents)
        assert torch.allclose(one.values, two.values, atol=1e-5)
        assert packed or torch.equal(one.values, two.values)


def test_in_a_pass_it_does_not_matter_how_tokens_are_divided():
    coder = RandomSae(n_latents=4096, k=8).load("cpu", 96)
    x = torch.randn(700, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), encoding_pass():
        whole = dense(coder.encode(x), (700, 4096))
        for size in (2, 31, 192, 500):
            parts = [dense(coder.encode(part), (len(part), 4096)) for part in x.split(size)]
            assert torch.equal(torch.cat(parts), whole)


def test_no_rows_give_no_activations(tmp_path):
    for coder in (load(tiny_sae(tmp_path)), NeuronCoder(D, 3)):
        assert [len(part) for part in coder.encode(X[:0])] == [0, 0, 0]


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated"])
def test_directions_are_what_an_activation_adds_to_the_prediction(tmp_path, architecture):
    options = {"rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
    coder = load(tiny_sae(tmp_path, architecture, **options))
    sparse = coder.encode(X[:1])
    total = coder.decoder_bias.clone()
    for latent, value in zip(sparse.latents.tolist(), sparse.values.tolist(), strict=True):
        total += value * coder.direction(latent)
    assert torch.allclose(coder.decode(sparse, 1)[0], total, atol=1e-5)
    assert torch.equal(coder.encoder_direction(7), load_file(tmp_path / "sae_weights.safetensors")["W_enc"][:, 7])


def test_rows_without_activations_are_reconstructed_as_the_bias(tmp_path):
    coder = load(tiny_sae(tmp_path, "jumprelu"))
    coder.threshold.fill_(1e9)
    coder.threshold[0] = 0
    sparse = coder.encode(X)
    silent = sorted(set(range(50)) - set(sparse.rows.tolist()))
    assert 0 < len(silent) < 50
    assert torch.equal(coder.decode(sparse, 50)[silent], coder.decoder_bias.expand(len(silent), D))


def test_weights_in_bfloat16_are_computed_with_in_float32(tmp_path):
    folder = tiny_sae(tmp_path, "jumprelu")
    file = folder / "sae_weights.safetensors"
    rounded = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(rounded, file)
    low = load(folder)
    save_file({name: tensor.float() for name, tensor in rounded.items()}, file)
    assert low.encode(X).values.dtype == torch.float32
    assert torch.equal(dense(low.encode(X), (50, 40)), dense(load(folder).encode(X), (50, 40)))


def test_configurations_of_older_sae_lens_are_understood(tmp_path):
    folder = tiny_sae(tmp_path, "topk")
    new = load(folder)
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"], config["architecture"], config["k"], config["normalize_activations"]
    old = {
        **config,
        "hook_point": "blocks.1.hook_resid_pre",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "normalize_activations": False,
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    coder = SaeLens(path=folder)
    assert coder.hookpoint() == "blocks.1.hook_resid_pre"
    assert torch.equal(dense(coder.load("cpu", D).encode(X), (50, 40)), dense(new.encode(X), (50, 40)))


def test_module_coder_takes_any_dense_encoder(monkeypatch):
    weights = torch.randn(D, 9, generator=torch.Generator().manual_seed(0))
    coder = ModuleCoder(lambda x: (x @ weights).relu(), 9, D, "mine")
    monkeypatch.setattr(saeval.models.coders, "_TILE_BYTES", 4 * 9 * 8)
    assert torch.allclose(dense(coder.encode(X), (50, 9)), (X @ weights).relu(), atol=1e-5)
    running = ModuleCoder(lambda x: x.cumsum(1).relu(), D, D, "mine", token_wise=False)
    contexts = X.view(10, 5, D)
    assert torch.allclose(dense(running.encode(contexts), (50, D)), contexts.cumsum(1).relu().view(50, D))


# --- Where SAEs belong ---


def test_hookpoint_prefers_the_transformers_name(tmp_path):
    assert SaeLens(path=tiny_sae(tmp_path)).hookpoint() == "blocks.1.hook_resid_post"
    named = tiny_sae(tmp_path / "b", metadata={"hf_hook_name": "model.layers.1.output"})
    assert SaeLens(path=named).hookpoint() == "model.layers.1.output"
    assert SaeLens(release="some-release", sae_id="blocks.8.hook_resid_pre").hookpoint() == "blocks.8.hook_resid_pre"
    assert SaeLens(release="some-release", sae_id="layer_8/width_16k").hookpoint() is None


@pytest.mark.parametrize(("hook", "centred"), [("blocks.1.hook_resid_pre", True), ("blocks.1.attn.hook_z", False)])
def test_saes_made_with_centred_writing_weights_read_centred_residuals(tmp_path, hook, centred):
    metadata = {"hook_name": hook, "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    assert SaeLens(path=tiny_sae(tmp_path, metadata=metadata)).site("h.1", []) == HookPoint("h.1", center=centred)


def test_fingerprint_follows_weights_and_configuration_and_not_place(tmp_path):
    a, b = tiny_sae(tmp_path / "a"), tiny_sae(tmp_path / "b")
    assert SaeLens(path=a).fingerprint() == SaeLens(path=b).fingerprint()
    assert SaeLens(path=a).fingerprint() != SaeLens(path=tiny_sae(tmp_path / "c", seed=1)).fingerprint()
    assert SaeLens(path=a).fingerprint() != SaeLens(path=tiny_sae(tmp_path / "d", k=5)).fingerprint()


def test_checking_and_hookpoints_read_no_weights(tmp_path, monkeypatch):
    folder = tiny_sae(tmp_path)
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_: pytest.fail("weights were read"))
    coder = SaeLens(path=folder)
    coder.check()
    assert (coder.hookpoint(), coder.width()) == ("blocks.1.hook_resid_post", D)


# --- What is refused ---


def edit(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    config.update(changes)
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_weights(folder, change):
    tensors = load_file(folder / "sae_weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda f: (f / "cfg.json").unlink(), r"has no cfg\.json"),
        (lambda f: (f / "cfg.json").write_text("{"), r"cfg\.json cannot be read"),
        (lambda f: (f / "cfg.json").write_text("[]"), "does not contain a JSON object"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), r"has no sae_weights\.safetensors"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes((f / "sae_weights.safetensors").read_bytes()[:-8]), "damaged or truncated"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b"abc"), "damaged or truncated"),
        (lambda f: edit(f, architecture="batchtopk"), r"training checkpoint.*save_inference_model"),
        (lambda f: edit(f, architecture="mystery"), "unknown architecture 'mystery'"),
        (lambda f: edit(f, architecture="jumprelu"), "lacks threshold, which 'jumprelu' needs"),
        (lambda f: edit(f, normalize_activations="expected_average_only_in"), r"fold_activation_norm_scaling_factor"),
        (lambda f: edit(f, normalize_activations="covariance_whitening"), r"fold_activation_whitening"),
        (lambda f: edit(f, d_sae=41), r"W_enc has shape \[16, 40\], but .* require \[16, 41\]"),
        (lambda f: edit(f, d_in="16"), r"d_in in cfg\.json is '16'"),
        (lambda f: edit(f, k=None), r"k in cfg\.json is None"),
        (lambda f: edit(f, k=True), r"k in cfg\.json is True"),
        (lambda f: edit(f, k=41), "more than its 40 latents"),
        (lambda f: edit_weights(f, lambda t: t.pop("b_enc")), "lacks b_enc"),
        (lambda f: edit_weights(f, lambda t: t.update(extra=torch.zeros(2))), r"has extra.*check the architecture"),
    ],
)  # fmt: skip
def test_saes_that_cannot_be_used_are_refused_by_check_and_by_load(tmp_path, spoil, message):
    folder = tiny_sae(tmp_path / "sae")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        SaeLens(path=folder).check()
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    folder = tiny_sae(tmp_path)
    edit_weights(folder, lambda t: t["W_dec"][3].fill_(value))
    with pytest.raises(InputError, match="W_dec contains NaN or infinite"):
        load(folder)


def test_scales_that_are_not_folded_in_are_refused(tmp_path):
    folder = tiny_sae(tmp_path)
    edit_weights(folder, lambda t: t.update(scaling_factor=torch.ones(40)))
    load(folder)
    edit_weights(folder, lambda t: t["scaling_factor"].mul_(2))
    with pytest.raises(InputError, match="finetuning scale"):
        load(folder)


def test_a_wrong_width_names_both_widths_and_the_place_it_was_made_for(tmp_path):
    with pytest.raises(
        InputError, match=r"width 16, .* width 24; it was made for blocks\.1\.hook_resid_post of tiny: change"
    ):
        load(tiny_sae(tmp_path), 24)


def test_one_origin_is_wanted(tmp_path):
    for options in ({}, {"path": tmp_path, "release": "r", "sae_id": "s"}, {"release": "r"}):
        with pytest.raises(ValidationError, match=r"set exactly one of path|must be set together"):
            SaeLens(**options)


# --- Random SAE ---


def test_random_sae_has_unit_directions_over_the_whole_sphere():
    coder = RandomSae(n_latents=4000, k=50).load("cpu", 8)
    assert torch.allclose(coder.decoder.norm(dim=1), torch.ones(4000), atol=1e-5)
    assert torch.equal(coder.encoder, coder.decoder.T)
    assert coder.decoder.mean(0).abs().max() < 0.03
    assert torch.allclose(coder.decoder.T @ coder.decoder / 4000, torch.eye(8) / 8, atol=0.01)
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert coder.encode(x).rows.bincount().tolist() == [50] * 20
    expected = (x @ coder.decoder.T).topk(50).values.sort().values
    assert torch.allclose(dense(coder.encode(x), (20, 4000)).topk(50).values.sort().values, expected)


def test_random_sae_depends_on_its_seed_alone():
    same, again, other = (RandomSae(n_latents=30, k=3, seed=s).load("cpu", 8) for s in (0, 0, 1))
    assert torch.equal(same.decoder, again.decoder)
    assert not torch.equal(same.decoder, other.decoder)
    with pytest.raises(ValidationError, match="more than the 10 latents"):
        RandomSae(n_latents=10, k=11)


# --- Neurons ---


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gptj", "opt", "mamba"])
def test_neurons_times_columns_are_what_the_down_projection_gives(tmp_path, kind):
    live = LiveModel.load(str(tiny_model(tmp_path, kind)))
    place = Neurons().site(live.blocks()[1], live.modules())
    tokens = torch.arange(3, 27).view(2, 12)
    caught = live.capture(tokens, [place, HookPoint(place.path)])
    projection = live.model.base_model.get_submodule(place.path)
    columns = projection.weight if kind == "gpt2" else projection.weight.T  # [neurons, width]
    bias = projection.bias if projection.bias is not None else 0
    x = caught[place].flatten(0, 1)
    positive, negative = (dense(NeuronCoder(x.shape[1]).encode(sign * x), x.shape) for sign in (1, -1))
    assert x.shape[1] == (32 if kind == "mamba" else D_FF)
    assert torch.allclose(
        (positive - negative) @ columns + bias, caught[HookPoint(place.path)].flatten(0, 1), atol=1e-4
    )


def test_neurons_keep_the_largest_and_of_those_the_positive():
    x = torch.tensor([[3.0, -5.0, 1.0, 0.5], [-1.0, -2.0, -3.0, 0.1], [0.0, 0.0, 2.0, 0.0]])
    assert dense(NeuronCoder(4, 2).encode(x), x.shape).tolist() == [[3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    assert torch.equal(dense(NeuronCoder(4).encode(x), x.shape), x.relu())
    assert NeuronCoder(4, 9).encode(x).latents.tolist() == NeuronCoder(4).encode(x).latents.tolist()
    assert NeuronCoder(4).direction(2).tolist() == [0, 0, 1, 0]


def test_neurons_are_found_from_anywhere_in_the_block():
    modules = ["layers", "layers.3", "layers.3.mlp", "layers.3.mlp.down_proj", "layers.3.self_attn"]
    for module in ("layers.3", "layers.3.mlp", "layers.3.mlp.down_proj", "layers.3.self_attn"):
        assert down_projection(module, modules) == "layers.3.mlp.down_proj"
    assert down_projection("layers", modules) is None
    with pytest.raises(InputError, match="no known MLP down projection"):
        Neurons().site("layers", modules)
    with pytest.raises(InputError, match="mixture of experts"):
        Neurons().site("layers.0", ["layers.0", "layers.0.mlp", "layers.0.mlp.gate", "layers.0.mlp.experts"])


def test_linear_coders_can_be_made_from_plain_matrices():
    directions = torch.eye(D)[:3]
    coder = LinearCoder(directions.T, directions)
    assert torch.equal(dense(coder.encode(X), (50, 3)), X[:, :3].relu())
