from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from tiny import KINDS, TEXT, D, tiny_model, tiny_tokenizer

from saeval import InputError
from saeval.models.gguf import fast_gguf
from saeval.plugin import HookPoint, LiveModel

TOKENS = torch.arange(3, 3 + 2 * 12).reshape(2, 12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tiny_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def live(request, folders):
    return LiveModel.load(str(folders[request.param]))


@pytest.fixture
def llama(folders):
    return LiveModel.load(str(folders["llama"]))


def kind_of(live):
    return live.model.config.model_type


def logits(live, tokens=TOKENS):
    with torch.inference_mode():
        return live.model(tokens, use_cache=False).logits


def test_captured_block_outputs_are_the_models_own_hidden_states(live):
    with torch.inference_mode():
        states = live.model(TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    shift = 0 if kind_of(live) == "mamba" else 1  # Mamba lists what each block gives, the others what each is given
    point = live.hookpoint(live.blocks()[1])
    assert torch.equal(live.capture(TOKENS, [point])[point], states[1 + shift])


def test_stopping_early_changes_nothing_and_leaves_no_hook_behind(live):
    before = logits(live)
    points = [live.hookpoint(block) for block in live.blocks()]
    together = live.capture(TOKENS, [*reversed(points), live.hookpoint(f"{live.blocks()[1]}.input")])
    ran = []
    handle = live.model.get_submodule(live.model.base_model_prefix + "." + live.blocks()[2]).register_forward_hook(
        lambda *_: ran.append(1)
    )
    alone = live.capture(TOKENS, [points[1]])
    handle.remove()
    assert torch.equal(alone[points[1]], together[points[1]])
    assert torch.equal(together[points[0]], together[live.hookpoint(f"{live.blocks()[1]}.input")])
    assert not ran, "the block after the last hookpoint ran"
    assert torch.equal(logits(live), before)


def test_padding_on_the_right_does_not_reach_real_tokens(live):
    point = live.hookpoint(live.blocks()[2])
    padded = torch.cat([TOKENS[:1, :7], torch.full((1, 5), 2)], dim=1)
    caught = live.capture(torch.cat([padded, TOKENS[1:]]), [point], lengths=torch.tensor([7, 12]))[point]
    assert torch.allclose(caught[0, :7], live.capture(TOKENS[:1, :7], [point])[point][0], atol=1e-5)
    assert not caught[0, 7:].any()


@pytest.mark.parametrize("site", ["in", "out"])
def test_steering_adds_the_direction_at_every_token(live, site):
    point = HookPoint(live.blocks()[1], site)
    direction = torch.linspace(-1, 1, D)
    clean = live.capture(TOKENS, [point])[point]
    with live.steer(point, direction, 3.0):
        steered = live.capture(TOKENS, [point])[point]
    assert torch.allclose(steered, clean + 3 * direction, atol=1e-5)
    assert torch.equal(live.capture(TOKENS, [point])[point], clean)


def test_steered_generation_is_the_same_with_and_without_cache(live):
    point = live.hookpoint(live.blocks()[1])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "attention_mask": torch.ones_like(TOKENS)}
    options |= {"eos_token_id": None}
    plain = live.model.generate(TOKENS, use_cache=True, **options)
    with live.steer(point, torch.linspace(-1, 1, D).flip(0) ** 3, 30.0):
        cached = live.model.generate(TOKENS, use_cache=True, **options)
        uncached = live.model.generate(TOKENS, use_cache=False, **options)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain)


def test_opt_feed_forward_layers_are_read_and_steered_token_by_token(folders):
    live = LiveModel.load(str(folders["opt"]))
    point = live.hookpoint("decoder.layers.1.fc2")
    clean = live.capture(TOKENS, [point])[point]
    assert clean.shape == (2, 12, D)
    direction = torch.linspace(-1, 1, D)
    with live.steer(point, direction, 2.0):
        assert torch.allclose(live.capture(TOKENS, [point])[point], clean + 2 * direction, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_transformer_lens_names_add_up_to_the_residual_stream(folders, kind):
    live = LiveModel.load(str(folders[kind]))
    names = ["hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"]
    points = [live.hookpoint(f"blocks.1.{name}") for name in names]
    caught = live.capture(TOKENS, points)
    pre, attention, mid, mlp, post = (caught[point] for point in points)
    assert torch.allclose(pre + attention, mid, atol=1e-4)
    assert torch.allclose(mid + mlp, post, atol=1e-4)
    assert (
        live.hookpoint("blocks.1.hook_mlp_in") == points[2]
    )  # a copy of the middle, which the MLP's branch begins with


@pytest.mark.parametrize("kind", ["gpt_neox", "gptj"])
def test_parallel_blocks_add_up_and_have_no_middle(folders, kind):
    live = LiveModel.load(str(folders[kind]))
    points = [
        live.hookpoint(f"blocks.1.{n}") for n in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    ]
    caught = live.capture(TOKENS, points)
    pre, attention, mlp, post = (caught[point] for point in points)
    assert torch.allclose(pre + attention + mlp, post, atol=1e-4)
    with pytest.raises(InputError, match="hook_resid_mid"):
        live.hookpoint("blocks.1.hook_resid_mid")


@pytest.mark.parametrize(
    ("name", "path", "site"),
    [
        ("layers.1", "layers.1", "out"),
        ("model.layers.1", "layers.1", "out"),
        ("model.layers.1.output", "layers.1", "out"),
        ("layers.1.mlp.input", "layers.1.mlp", "in"),
        ("lm_head", "lm_head", "out"),
        ("blocks.1.attn.hook_z", "layers.1.self_attn.o_proj", "in"),
        ("blocks.1.mlp.hook_post", "layers.1.mlp.down_proj", "in"),
        ("blocks.1.mlp.hook_in", "layers.1.mlp", "in"),
        ("hook_embed", "embed_tokens", "out"),
    ],
)
def test_names_of_places(llama, name, path, site):
    point = llama.hookpoint(name)
    assert (point.path, point.site) == (path, site)
    assert llama.hookpoint(str(point)) == point


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.1.mpl", "did you mean 'layers.1.mlp'"),
        ("blocks.7.hook_resid_post", "has 3 blocks"),
        ("blocks.1.attn.hook_pattern", "not a hook that saeval can read"),
        ("blocks.1.ln2.hook_normalized", "before the norm's gain"),
        ("", "no module ''"),
    ],
)
def test_names_of_no_place_say_what_to_do(llama, name, message):
    with pytest.raises(InputError, match=message):
        llama.hookpoint(name)


def test_names_of_another_familys_blocks_are_answered_with_the_models_own(folders):
    gpt2 = LiveModel.load(str(folders["gpt2"]))
    for name, own in (("layers.1", "h.1"), ("model.layers.2.mlp.down_proj", "h.2.mlp.c_proj")):
        with pytest.raises(InputError, match=f"did you mean '{own}'"):
            gpt2.hookpoint(name)


def test_widths_are_those_of_the_place(llama):
    assert [llama.width(llama.hookpoint(n)) for n in ("layers.1", "layers.1.mlp.down_proj.input", "lm_head")] == [
        16,
        24,
        300,
    ]


def test_centred_activations_have_no_mean(llama):
    plain, centred = HookPoint("layers.1"), HookPoint("layers.1", center=True)
    caught = llama.capture(TOKENS, [plain, centred])
    assert caught[centred].mean(-1).abs().max() < 1e-6 < caught[plain].mean(-1).abs().max()
    assert torch.allclose(caught[centred], caught[plain] - caught[plain].mean(-1, keepdim=True))


def test_places_that_text_does_not_pass_through_are_refused(llama):
    with pytest.raises(InputError, match="forward pass does not use layers"):
        llama.capture(TOKENS, [HookPoint("layers")])
    with pytest.raises(InputError, match="one activation per token"):
        llama.capture(TOKENS, [HookPoint("rotary_emb")])
    assert torch.isfinite(logits(llama)).all(), "hooks were left behind"


def test_next_token_logprobs_are_those_of_the_last_real_token(llama):
    lengths = torch.tensor([7, 12])
    expected = logits(llama).log_softmax(-1)[torch.arange(2), lengths - 1]
    assert torch.allclose(llama.next_logprobs(TOKENS, lengths), expected, atol=1e-5)
    assert torch.allclose(llama.next_logprobs(TOKENS), logits(llama)[:, -1].log_softmax(-1), atol=1e-5)


def test_a_model_is_loaded_once(folders):
    name = str(folders["gpt2"])
    assert LiveModel.load(name) is LiveModel.load(name, device="cpu", dtype="float32")
    assert LiveModel.load(name, dtype="bfloat16") is not LiveModel.load(name)
    half = LiveModel.load(name, dtype="bfloat16")
    point = half.hookpoint("h.1")
    assert half.capture(TOKENS, [point])[point].dtype == torch.float32


def test_loading_says_nothing_on_the_screen(folders, tmp_path, capfd):
    folder = tiny_model(tmp_path / "quiet")
    capfd.readouterr()
    LiveModel.load(str(folder))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def broken(tmp_path):
    return tiny_model(tmp_path / "model")


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_folders_that_are_no_models_are_refused_before_loading(tmp_path, broken):
    with pytest.raises(InputError, match="no such file or folder"):
        LiveModel.check(str(tmp_path / "nowhere"))
    (broken / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        LiveModel.check(str(broken))


def test_missing_weights_are_never_invented(broken):
    edit_config(broken, num_hidden_layers=4)
    with pytest.raises(InputError, match=r"lack 9 weights"):
        LiveModel.load(str(broken))


def test_code_that_comes_with_a_model_is_not_run(broken):
    (broken / "evil.py").write_text("raise SystemExit('ran')")
    edit_config(broken, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(InputError, match="requires code from its repository"):
        LiveModel.load(str(broken))


def test_hub_models_that_cannot_be_had_say_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/nothing is not on this machine.*path of a model folder"):
        LiveModel.load("nobody/nothing")
    with pytest.raises(InputError, match="neither a folder nor a valid name on the Hugging Face hub"):
        LiveModel.load("not a name")


def test_devices_that_are_not_there_are_named(broken):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match="device 'cuda'"):
        LiveModel.load(str(broken), device="cuda")


def test_fingerprints_follow_content_and_not_place(broken, tmp_path):
    moved = tmp_path / "elsewhere"
    before = LiveModel.fingerprint(str(broken))
    broken.rename(moved)
    assert LiveModel.fingerprint(str(moved)) == before
    edit_config(moved, hidden_act="gelu")
    assert LiveModel.fingerprint(str(moved)) != before
    assert LiveModel.fingerprint("a/b", "main") == ["a/b", "main"]


def test_fingerprint_follows_chat_templates_and_is_as_before_without_them(broken):
    before = LiveModel.fingerprint(str(broken))
    assert [name for name, _ in before] == sorted(
        f.name for f in broken.iterdir() if f.suffix in (".json", ".safetensors")
    )
    more = broken / "additional_chat_templates"
    more.mkdir()
    seen = [before]
    for file in (broken / "chat_template.jinja", more / "tools.jinja", broken / "vocabulary.tiktoken"):
        for text in ("one", "two"):
            file.write_text(text)
            seen.append(LiveModel.fingerprint(str(broken)))
    assert len({json.dumps(found) for found in seen}) == len(seen)


def test_model_whose_files_were_overwritten_is_read_again(tmp_path):
    folder = tiny_model(tmp_path / "model", "gpt2", seed=1)
    first = LiveModel.load(str(folder))
    assert LiveModel.load(str(folder)) is first
    tiny_model(folder, "gpt2", seed=2)
    second = LiveModel.load(str(folder))
    assert not torch.equal(logits(first), logits(second))


def test_middle_of_a_block_that_normalises_sums_is_what_its_mlp_reads(tmp_path):
    import transformers

    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(
        "openai-gpt", vocab_size=300, n_embd=D, n_layer=3, n_head=2, n_positions=32
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    live = LiveModel("gpt1", model, tiny_tokenizer())
    read = []
    hook = model.transformer.h[2].mlp.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    with torch.inference_mode():
        model(TOKENS)
    hook.remove()
    for name in ("blocks.2.hook_resid_mid", "blocks.2.hook_mlp_in"):
        point = live.hookpoint(name)
        assert torch.equal(live.capture(TOKENS, [point])[point], read[0])


def test_positions_of_a_vision_tower_do_not_limit_the_text(tmp_path):
    live = LiveModel.load(str(tiny_model(tmp_path / "sees", "gemma3")))
    assert live.positions is None
    live.check_contexts(100)


# --- GGUF ---


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A tiny Llama as llama.cpp writes it."""
    gguf = pytest.importorskip("gguf")
    rng = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    backend = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    writer.add_token_list(sorted(backend["vocab"], key=backend["vocab"].get))
    writer.add_token_types([3] * 3 + [1] * 297)
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (300, 32), "output_norm": (32,), "output": (300, 32)}
    for i in range(2):
        shapes |= {
            f"blk.{i}.attn_norm": (32,), f"blk.{i}.ffn_norm": (32,), f"blk.{i}.attn_q": (32, 32), f"blk.{i}.attn_k": (16, 32),
            f"blk.{i}.attn_v": (16, 32), f"blk.{i}.attn_output": (32, 32), f"blk.{i}.ffn_gate": (64, 32),
            f"blk.{i}.ffn_up": (64, 32), f"blk.{i}.ffn_down": (32, 64),
        }  # fmt: skip
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=rng).numpy()
        if name.endswith("ffn_up"):  # one quantised kind
            packed = gguf.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_files_load_as_transformers_loads_them(gguf_file, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    live = LiveModel.load(str(gguf_file))
    assert capfd.readouterr() == ("", "")
    where = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    plain = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    weights, expected = live.model.state_dict(), plain.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert live.model.config.to_dict() == plain.config.to_dict()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    assert live.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert live.tokenizer(TEXT).input_ids == tokenizer(TEXT).input_ids


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # random bytes hold scales that are no numbers
@pytest.mark.parametrize("rows", [1, 5, 64, 1100])
@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "BF16"])
def test_quantized_weights_unpack_as_gguf_unpacks_them(gguf_file, kind, rows):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[kind]
    packed = np.random.default_rng(rows).integers(256, size=(2, rows, *gguf.quant_shape_to_byte_shape((512,), kind)))
    packed = packed.astype(np.uint8)
    expected = gguf.dequantize(packed, kind)
    with fast_gguf(gguf_file):
        found = gguf.dequantize(packed, kind)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape == (2, rows, 512)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_damaged_gguf_files_are_refused(gguf_file, tmp_path):
    whole = gguf_file.read_bytes()
    for name, content in (("cut", whole[:3000]), ("tail", whole[:-2000]), ("other", b"PK" + whole[2:])):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.gguf"):
            LiveModel.check(str(tmp_path / f"{name}.gguf"))


def test_models_are_spread_over_gpus_by_accelerate(folders, monkeypatch):
    import transformers

    real, given = transformers.AutoModelForCausalLM.from_pretrained, []

    def from_pretrained(place, *, device_map, **options):
        given.append(device_map)
        return real(place, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr("saeval.models.loading.find_spec", lambda name: name)
    live = LiveModel.load(str(folders["llama"]), device="balanced")
    assert given == ["balanced"]
    assert live.width(live.hookpoint("layers.1")) == D
    monkeypatch.setattr("saeval.models.loading.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package accelerate"):
        LiveModel.load(str(folders["llama"]), device="balanced", dtype="float16")


@pytest.mark.parametrize(
    ("cuda", "asked", "device", "dtype"),
    [
        (True, "auto", "cuda", torch.bfloat16),
        (True, "cuda:1", "cuda:1", torch.bfloat16),
        (True, "balanced", "balanced", torch.bfloat16),
        (True, "cpu", "cpu", torch.float32),
        (False, "auto", "cpu", torch.float32),
        (False, "balanced", "balanced", torch.float32),
    ],
)
def test_device_and_precision_are_chosen_by_what_there_is(monkeypatch, cuda, asked, device, dtype):
    class Loaded(Exception):
        pass

    def load_model(name, revision, *chosen):
        raise Loaded(chosen)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr("saeval.models.live.load_model", load_model)
    with pytest.raises(Loaded) as loaded:
        LiveModel.load("some/model", device=asked)
    assert loaded.value.args[0] == (device, dtype)


def test_no_two_models_are_built_at_once_since_transformers_changes_torch_meanwhile(folders, monkeypatch):
    import sentence_transformers

    from saeval.models import loading
    from saeval.models.embeddings import embedder

    building, most = [], []

    def slowly(build):
        def built(*given, **named):
            building.append(build)
            most.append(len(building))
            time.sleep(0.05)
            building.remove(build)
            return build(*given, **named)

        return built

    monkeypatch.setattr(loading, "_from_pretrained", slowly(loading._from_pretrained))
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", slowly(lambda place, **_: None))
    monkeypatch.setattr("saeval.models.embeddings._Embedder._encode", lambda self, model, texts: [np.ones(2)])
    work = [
        *(partial(LiveModel.load, str(folder), randomise="all", randomise_seed=71) for folder in folders.values()),
        *(partial(embedder.__wrapped__(), str(i), ["a"]) for i in range(4)),
    ]
    with ThreadPoolExecutor(len(work)) as pool:
        for future in [pool.submit(load) for load in work]:
            future.result()
    assert len(most) == len(work) and max(most) == 1
