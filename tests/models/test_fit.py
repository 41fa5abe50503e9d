"""A model that cannot read the text, and a coder that was made for something else, are said before anything is collected."""

from __future__ import annotations

import contextlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from coder_files import dictionary
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.sae_lens import SaeLens
from saeval_plugins.sources.transformers import Transformers
from safetensors.torch import load_file, save_file
from tiny import TEXT, D, tiny_corpus, tiny_model, tiny_sae, tiny_tokenizer

import saeval
from saeval.cli import main
from saeval.models.made_for import certainly_different, known_model, other_model, plain_place
from saeval.plugin import ActivationWriter, Corpus, InputError, LiveModel


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model(folder / "llama")


@pytest.fixture(scope="module")
def gpt2(folder):
    return tiny_model(folder / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def corpus(folder):
    return tiny_corpus(folder / "corpus.jsonl")


def copied(model, place):
    shutil.copytree(model, place)
    return place


def rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def collected(model, coder, path, store, **changes):
    """Return the store that a source makes; a corpus of 32 tokens per context unless something else is asked for."""
    corpus = Corpus(path=path, **{"context": 32, **changes.pop("corpus", {})})
    source = Transformers(model=str(model), coder=coder, corpus=corpus, **changes)
    source.check()
    writer = ActivationWriter(store)
    source.collect(writer)
    return writer.finish()


def task(path, model, coder, corpus, **source):
    """Write a spec whose explainer needs no model; JSON is YAML."""
    options = {"model": str(model), "coder": coder, "corpus": corpus, **source}
    document = {
        "saeval": 1, "task": "fit", "version": "1.0",
        "llms": {"judge": {"model": "scripted/x", "reply": "[1, 0, 1, 0, 1]"}},
        "source": {"use": "transformers", "with": options}, "latents": {"n": 2, "min_windows": 6},
        "sampler": {"use": "random", "with": {"window": 8, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "explainer": "top_tokens", "scorers": {"detection": {}}, "baselines": [],
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return path


def validate(*arguments):
    done = CliRunner().invoke(main, ["validate", "--task", *map(str, arguments)])
    return done.exit_code, done.output


# --- What a model can read ---


def test_contexts_beyond_a_models_positions_are_refused_by_validate_with_the_number_that_works(tmp_path, gpt2, corpus):
    sae = {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae"))}}
    code, said = validate(task(tmp_path / "t.yaml", gpt2, sae, {"path": str(corpus), "context": 128}))
    assert code == 2 and "128 positions" in said and "129 tokens" in said
    assert "set source.with.corpus.context to 127 or less" in " ".join(said.split())
    assert validate(task(tmp_path / "t.yaml", gpt2, sae, {"path": str(corpus), "context": 127}))[0] == 0


def test_contexts_that_nobody_gave_a_length_fit_the_model_and_the_sae(tmp_path, model, gpt2, corpus):
    no_size = SaeLens(path=tiny_sae(tmp_path / "sae"))
    assert collected(gpt2, no_size, corpus, tmp_path / "a", corpus={"context": None}).tokens.shape[1] == 128
    sized = SaeLens(path=tiny_sae(tmp_path / "sized", metadata={"context_size": 24}))
    assert collected(model, sized, corpus, tmp_path / "b", corpus={"context": None}).tokens.shape[1] == 24


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "opt", "gpt_neo"])
def test_a_loaded_model_knows_its_positions(tmp_path, kind):
    live = LiveModel.load(str(tiny_model(tmp_path / kind, kind)))
    assert live.positions == 128
    live.capture(torch.zeros((1, 128), dtype=torch.int64), [live.hookpoint(live.blocks()[0])])
    with pytest.raises(InputError, match="128 positions, but each context has 129"):
        live.check_contexts(129)


def test_a_padding_token_outside_the_embedding_changes_no_activation(tmp_path, model, corpus):
    neurons, odd = Neurons(), copied(model, tmp_path / "odd")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 300
    tokenizer.save_pretrained(odd)
    stores = [collected(m, neurons, corpus, tmp_path / m.name, hookpoint="layers.1") for m in (model, odd)]
    assert np.array_equal(stores[0].value, stores[1].value) and np.array_equal(stores[0].position, stores[1].position)


def test_text_with_a_token_that_the_embedding_lacks_is_refused(tmp_path, model):
    odd, tokenizer = copied(model, tmp_path / "odd"), tiny_tokenizer()
    tokenizer.add_tokens(["<|turn|>"])
    tokenizer.save_pretrained(odd)
    path = rows(tmp_path / "c.jsonl", [f"<|turn|>{TEXT}"] * 4)
    with pytest.raises(InputError, match=r"contains '<\|turn\|>', a token that was added to the tokenizer"):
        collected(odd, Neurons(), path, tmp_path / "s", hookpoint="layers.1")
    late = rows(tmp_path / "late.jsonl", ["."] * 300 + [f"<|turn|>{TEXT}"] * 4)  # beyond what validate looks at
    with pytest.raises(InputError, match=r"gives '<\|turn\|>' the id 300, but the model's embedding has 300 rows"):
        collected(odd, Neurons(), late, tmp_path / "s", hookpoint="layers.1")


def test_a_model_that_looks_ahead_is_refused_from_its_files_and_when_it_is_there(tmp_path, corpus, model):
    both = tiny_model(tmp_path / "both", "gemma3_text", use_bidirectional_attention=True)
    sae = {"use": "neurons"}
    code, said = validate(task(tmp_path / "t.yaml", both, sae, {"path": str(corpus)}, hookpoint="layers.1"))
    assert code == 2 and "attends in both directions" in said
    assert not LiveModel.load(str(both)).causal and LiveModel.load(str(model)).causal
    for kind in ("xlnet", "xlm"):
        (copied(model, tmp_path / kind) / "config.json").write_text(json.dumps({"model_type": kind, "n_layer": 3}))
        code, said = validate(
            task(tmp_path / "t.yaml", tmp_path / kind, sae, {"path": str(corpus)}, hookpoint="layer.1")
        )
        assert code == 2 and "attends in both directions" in said


@pytest.mark.parametrize(("kind", "centred"), [("llama", False), ("gpt2", True)])
def test_activations_are_centred_only_where_transformerlens_centres_weights(tmp_path, corpus, kind, centred):
    made = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    sae = SaeLens(path=tiny_sae(tmp_path / "sae", "standard", metadata=made))
    folder = tiny_model(tmp_path / kind, kind)
    store = collected(folder, sae, corpus, tmp_path / "store")
    live = LiveModel.load(str(folder))
    point = live.hookpoint("blocks.1.hook_resid_post")
    x = live.capture(torch.tensor(store.tokens[:1, :32].astype(np.int64)), [point])[point][0]
    rows_, latents, values = sae.load("cpu", D).encode(x - x.mean(dim=-1, keepdim=True) if centred else x)
    first = store.activations(3)
    mine = [(int(r), float(v)) for r, i, v in zip(rows_, latents, values, strict=True) if i == 3 and store.mask[0, r]]
    theirs = [(int(p), float(v)) for p, v in zip(*first, strict=True) if p < 32]
    assert [p for p, _ in mine] == [p for p, _ in theirs] and mine
    assert np.allclose([v for _, v in mine], [v for _, v in theirs], rtol=2e-3)


def test_rows_that_are_all_shorter_than_a_window_are_refused_by_validate_with_a_window_that_fits(tmp_path, model):
    short = rows(tmp_path / "short.jsonl", [TEXT[i : i + 40] for i in range(30)])
    spec = task(tmp_path / "t.yaml", model, {"use": "neurons"}, {"path": str(short)}, hookpoint="layers.1")
    code, said = validate(spec, "--set", "sampler.with.window=32")
    found = re.search(
        r"no text is as long as a window of 32 tokens.*set sampler\.with\.window to (\d+) or less",
        " ".join(said.split()),
    )
    assert code == 2 and found
    assert validate(spec, "--set", f"sampler.with.window={found[1]}")[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context": 16}, "contexts of 16 tokens are shorter than a window of 32; set sampler.with.window to 16 or less"),
        ({"per_document": 9}, "reads 9 tokens of a document, less than a window of 32; set it to 32 or more"),
        ({"split": "lines"}, "no text is as long as a window of 32 tokens: the longest of 80 documents"),
    ],
)  # fmt: skip
def test_windows_that_no_context_or_part_of_a_text_can_hold_are_refused_by_validate(tmp_path, model, options, said):
    prose = rows(tmp_path / "prose.jsonl", ["\n".join(TEXT[i : i + 40] for i in range(20))] * 4)
    corpus = {"path": str(prose), "context": 64, **options}
    spec = task(tmp_path / "t.yaml", model, {"use": "neurons"}, corpus, hookpoint="layers.1")
    code, found = validate(spec, "--set", "sampler.with.window=32")
    assert code == 2 and said in " ".join(found.split())
    assert validate(spec)[0] == 0


# --- BOS and special tokens ---


def test_text_that_begins_with_bos_gets_no_second_one(tmp_path, model):
    plain = rows(tmp_path / "plain.jsonl", [TEXT[i:] for i in range(4)])
    exported = rows(tmp_path / "exported.jsonl", [f"<bos>{TEXT[i:]}" for i in range(4)])
    first, second = (Corpus(path=p, context=32).tokenize(tiny_tokenizer()) for p in (plain, exported))
    assert np.array_equal(first.tokens, second.tokens) and first.n_tokens == second.n_tokens


def test_contexts_begin_as_the_sae_was_trained_or_with_the_token_that_is_named(tmp_path, model, corpus):
    without = SaeLens(path=tiny_sae(tmp_path / "sae", metadata={"prepend_bos": False}))
    assert collected(model, without, corpus, tmp_path / "a").lead == 0
    store = collected(model, without, corpus, tmp_path / "b", corpus={"bos": "<eos>"})
    assert store.lead == 1 and set(store.tokens[:, 0].tolist()) == {1} and not store.mask[:, 0].any()
    with pytest.raises(InputError, match="'<start>' is not a token of the model's tokenizer"):
        collected(model, without, corpus, tmp_path / "c", corpus={"bos": "<start>"})


def test_an_sae_trained_with_bos_on_a_tokenizer_without_one_is_warned_of(tmp_path, model, corpus):
    odd = copied(model, tmp_path / "odd")
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(odd)
    trained = tiny_sae(tmp_path / "sae", metadata={"prepend_bos": True})
    sae = {"use": "sae_lens", "with": {"path": str(trained)}}
    code, said = validate(task(tmp_path / "t.yaml", odd, sae, {"path": str(corpus)}))
    assert code == 0 and "begin with BOS, but the tokenizer has none" in " ".join(said.split())
    code, said = validate(task(tmp_path / "t.yaml", odd, sae, {"path": str(corpus), "bos": "<eos>"}))
    assert code == 0 and "BOS" not in said


def test_every_special_token_is_masked_and_added_words_are_spelt_right(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(["naïve"])
    path = rows(tmp_path / "c.jsonl", [f"<|im_start|>{TEXT} naïve"] * 3)
    data = Corpus(path=path, context=64).tokenize(tokenizer)
    mark, word = tokenizer.convert_tokens_to_ids(["<|im_start|>", "naïve"])
    assert (data.tokens == mark).any() and not data.mask[data.tokens == mark].any() and data.vocabulary[mark] == b""
    assert data.mask[data.tokens == word].all() and data.vocabulary[word] == "naïve".encode()


# --- What a model folder holds ---


def test_a_model_without_its_head_gives_activations_and_says_that_there_are_no_logits(tmp_path, model, corpus):
    import transformers

    bare = tmp_path / "bare"
    transformers.AutoModelForCausalLM.from_pretrained(model).model.save_pretrained(bare)
    tiny_tokenizer().save_pretrained(bare)
    stores = [collected(m, Neurons(), corpus, tmp_path / f"s-{m.name}", hookpoint="layers.1") for m in (model, bare)]
    assert np.array_equal(stores[0].value, stores[1].value)
    with pytest.raises(InputError, match="no unembedding"):
        LiveModel.load(str(bare)).unembed(torch.zeros(1, D))


def test_folders_that_are_no_whole_model_are_said_for_what_they_are(tmp_path, model):
    bare = copied(model, tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}))
    for folder, message in ((bare, "has no tokenizer"), (lora, "LoRA adapter of meta-llama/Llama-3.1-8B")):
        with pytest.raises(InputError, match=message):
            LiveModel.check(str(folder))


def config(folder, name="config.json", **changes):
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cut(file, n):
    file.write_bytes(file.read_bytes()[:-n])


def sharded(folder, *files):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(files))}))


def saved(folder):
    """Rewrite a model's weights as torch.save does, and return the file."""
    if (weights := folder / "model.safetensors").exists():
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    return folder / "pytorch_model.bin"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: (m / "model.safetensors").unlink(), "has no weights"),
        (lambda m: (m / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "run `git lfs pull`"),
        (lambda m: sharded(m, "model-2.safetensors"), "missing weight files: 1 of 1"),
        (lambda m: sharded(m), "index.json is damaged or cut off"),
        (lambda m: (m / "model.safetensors").rename(m / "model.gguf"), "give the path of model.gguf itself"),
        (lambda m: (m / "model.safetensors").rename(m / "consolidated.safetensors"), "contains consolidated.safetensors, but not"),
        (lambda m: cut(m / "model.safetensors", 1), "model.safetensors is damaged or cut off"),
        (lambda m: (m / "model.safetensors").write_bytes(b"<!doctype html>"), "model.safetensors is damaged or cut off"),
        (lambda m: cut(saved(m), 1), "pytorch_model.bin is damaged or cut off"),
        (lambda m: saved(m).write_bytes(b"<!doctype html>"), "pytorch_model.bin is damaged or cut off"),
        (lambda m: saved(m).write_bytes(b"PK\x03\x05" + saved(m).read_bytes()[4:]), "pytorch_model.bin is damaged or cut off"),
        (lambda m: cut(m / "tokenizer.json", 1), "tokenizer.json is damaged or cut off"),
        (lambda m: cut(m / "tokenizer_config.json", 30), "tokenizer_config.json is damaged or cut off"),
        (lambda m: (m / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n"), "tokenizer.json is a Git LFS pointer"),
        (lambda m: (m / "config.json").write_text("{cut"), "config.json is damaged or cut off"),
        (lambda m: config(m, is_encoder_decoder=True, model_type="t5"), "has an encoder and a decoder"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded_is_refused_from_its_files(tmp_path, model, spoil, said):
    folder = copied(model, tmp_path / "m")
    spoil(folder)
    with pytest.raises(InputError, match=said):
        LiveModel.check(str(folder))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("transformer.h.1", "did you mean 'layers.1'"),
        ("layers.1.mpl", "did you mean 'layers.1.mlp'"),
        ("blocks.1.attn.hook_pattern", "not a hook that saeval can read"),
        ("layers.7", "has 3 blocks, 0 to 2"),
    ],
)
def test_a_place_that_the_model_lacks_is_refused_from_its_files(model, corpus, place, said):
    def check(hookpoint):
        coder, texts = Neurons(), Corpus(path=corpus, context=32)
        Transformers(model=str(model), coder=coder, corpus=texts, hookpoint=hookpoint, accept_mismatch=True).check()

    with pytest.raises(InputError, match=said):
        check(place)
    for there in ("layers.1.mlp.act_fn", "model.layers[1].output[0]", "blocks.1.hook_mlp_in", "norm"):
        check(there)


def test_a_lead_token_that_the_tokenizer_lacks_is_refused_by_validate(tmp_path, model, corpus):
    sae = {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae"))}}
    code, said = validate(
        task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32, "bos": "<|nope|>"})
    )
    assert code == 2 and "'<|nope|>' is not a token of the model's tokenizer" in " ".join(said.split())


def test_odd_types_in_a_coders_metadata_are_no_internal_error(tmp_path, model, corpus):
    metadata = {"model_from_pretrained_kwargs": "none", "context_size": "64", "prepend_bos": "yes", "model_name": ["m"]}
    odd = SaeLens(path=tiny_sae(tmp_path / "sae", metadata=metadata))
    assert collected(model, odd, corpus, tmp_path / "store", hookpoint="layers.1").n_latents


@pytest.mark.parametrize(
    ("file", "odd"),
    [
        ("config.json", {"text_config": None}),
        ("config.json", {"model_type": []}),
        ("tokenizer_config.json", {"bos_token": {}}),
    ],
)
def test_odd_types_in_a_models_files_are_no_internal_error_of_a_check(tmp_path, model, corpus, file, odd):
    folder = copied(model, tmp_path / "m")
    config(folder, file, **odd)
    source = Transformers(model=str(folder), coder=Neurons(), corpus=Corpus(path=corpus), hookpoint="layers.1")
    with contextlib.suppress(InputError):
        source.check()


def test_models_saved_in_other_ways_are_whole(tmp_path, model):
    saved(copied(model, tmp_path / "bin"))
    old = saved(copied(model, tmp_path / "old"))
    torch.save(torch.load(old), old, _use_new_zipfile_serialization=False)
    parts = copied(model, tmp_path / "parts")
    (parts / "model.safetensors").rename(parts / "model-1.safetensors")
    (parts / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    (parts / "optimizer.pt").write_bytes(b"cut off, and not loaded")
    for folder in ("bin", "old", "parts"):
        LiveModel.check(str(tmp_path / folder))


def test_a_file_and_an_address_are_no_model(model):
    with pytest.raises(InputError, match="is a file; give the folder that contains it"):
        LiveModel.check(str(model / "model.safetensors"))
    with pytest.raises(InputError, match="is an address; give the name on the Hugging Face hub"):
        LiveModel.check("https://huggingface.co/openai-community/gpt2")


def test_a_block_that_the_model_does_not_have_is_refused_by_validate(tmp_path, model, corpus):
    sae = {
        "use": "sae_lens",
        "with": {"path": str(tiny_sae(tmp_path / "sae", metadata={"hook_name": "blocks.9.hook_resid_post"}))},
    }
    code, said = validate(task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32}))
    assert code == 2 and "has 3 blocks, 0 to 2, but the hookpoint is blocks.9.hook_resid_post" in " ".join(said.split())


@pytest.mark.parametrize(
    "metadata",
    [
        "none",
        {"hook_name": ["blocks.1.hook_resid_post"]},
        {"model_name": 7, "hook_layer": "1"},
        {"context_size": "128"},
    ],
)
def test_metadata_of_other_types_than_sae_lens_writes_is_no_traceback(tmp_path, model, corpus, metadata):
    folder = tiny_sae(tmp_path / "sae")
    written = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**written, "metadata": metadata}))
    sae = {"use": "sae_lens", "with": {"path": str(folder)}}
    code, said = validate(task(tmp_path / "t.yaml", model, sae, {"path": str(corpus)}, hookpoint="layers.1"))
    assert code == 0, said


def test_contexts_that_nobody_gave_a_length_are_no_longer_than_the_model_was_made_for(tmp_path, corpus):
    short = tiny_model(tmp_path / "short", max_position_embeddings=48)
    store = collected(short, SaeLens(path=tiny_sae(tmp_path / "sae")), corpus, tmp_path / "a", corpus={"context": None})
    assert store.tokens.shape[1] == 48 and not store.facts["warnings"]


@pytest.mark.parametrize(
    ("bias", "said"), [(-1e4, "none of its latents ever fires"), (1e4, "fires on nearly every token")]
)
def test_a_coder_that_is_silent_or_fires_everywhere_is_said_for_what_it_is(tmp_path, model, corpus, bias, said):
    folder = tiny_sae(tmp_path / "sae", "standard")
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({**tensors, "b_enc": tensors["b_enc"] + bias}, folder / "sae_weights.safetensors")
    sae = {"use": "sae_lens", "with": {"path": str(folder)}}
    with pytest.raises(InputError, match=said):
        saeval.run(task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32}), out=tmp_path / "run")


# --- Coders against specs ---


@pytest.mark.parametrize(
    ("metadata", "hookpoint", "message"),
    [
        ({"hook_name": "blocks.2.hook_resid_post"}, "layers.0", "reads blocks.2.hook_resid_post, but the spec reads layers.0"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, "layers.1", "reads blocks.1.hook_mlp_out, but the spec reads layers.1"),
        ({"model_name": "gpt2-small"}, "layers.1", "trained on gpt2-small, but the spec uses"),
    ],
)  # fmt: skip
def test_an_sae_of_another_place_or_model_is_refused_unless_that_is_accepted(
    tmp_path, model, corpus, metadata, hookpoint, message
):
    sae = {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae", "standard", metadata=metadata))}}
    spec = task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32}, hookpoint=hookpoint)
    code, said = validate(spec)
    assert code == 2 and message in " ".join(said.split()) and "accept_mismatch" in said
    code, said = validate(spec, "--set", "source.with.accept_mismatch=true")
    assert code == 0 and "Accepted as it is" in said


def test_an_accepted_mismatch_and_a_coder_that_explains_nothing_mark_the_row_and_the_results(tmp_path, model, corpus):
    folder = tiny_sae(tmp_path / "sae", "standard", metadata={"hook_name": "blocks.2.hook_resid_post"})
    sae = {"use": "sae_lens", "with": {"path": str(folder)}}
    spec = task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32}, hookpoint="layers.0")
    run = saeval.run(spec, out=tmp_path / "run", overrides={"source.with.accept_mismatch": True})
    (cell,) = run.cells
    assert "reads blocks.2.hook_resid_post" in cell.cautions[0] and cell.measures["fvu"] > 1
    assert any("explains no variance" in said for said in cell.cautions)
    assert all(f"{cell.cell}: {said}" in run.warnings for said in cell.cautions)


@pytest.mark.parametrize(
    "name", ["layers.1", "model.layers.1", "layers.2.input", "layers.1.output", "blocks.1.hook_out"]
)
def test_other_names_of_the_same_place_are_no_conflict(tmp_path, model, corpus, name):
    sae = SaeLens(path=tiny_sae(tmp_path / "sae", metadata={"model_name": "my-copy"}))
    assert not collected(model, sae, corpus, tmp_path / "store", hookpoint=name).facts["warnings"]


def test_longer_contexts_than_coder_or_model_knew_are_warned_of(tmp_path, corpus):
    small = tiny_model(tmp_path / "small", max_position_embeddings=64)
    folder = tiny_sae(tmp_path / "sae", metadata={"context_size": 32})
    sae = {"use": "sae_lens", "with": {"path": str(folder)}}
    code, said = validate(task(tmp_path / "t.yaml", small, sae, {"path": str(corpus), "context": 96}))
    said = " ".join(said.split())
    assert code == 0 and "97 tokens, more than the 32 that the coder was trained on" in said
    assert "97 tokens, more than the 64 positions in the model's configuration" in said
    for context in (31, 32):  # BOS included, as in training
        _, said = validate(task(tmp_path / "t.yaml", small, sae, {"path": str(corpus), "context": context}))
        assert ("that the coder was trained on" in " ".join(said.split())) == (context == 32)


def test_an_l0_far_from_the_files_k_is_said(tmp_path, model, corpus):
    folder = dictionary(tmp_path / "dict", "BatchTopKSAE", k=3)
    sae = {"use": "dictionary_learning", "with": {"path": str(folder)}}
    spec = task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32}, hookpoint="layers.1")
    run = saeval.run(spec, out=tmp_path / "run")
    assert any("latents fire per token, but the coder's files say 3" in said for said in run.cells[0].cautions)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
def test_unexplained_variance_is_measured_where_an_sae_normalises_each_token(tmp_path, model, corpus, normalize):
    folder = tiny_sae(tmp_path / "sae", "standard", normalize_activations=normalize, apply_b_dec_to_input=False)
    store = collected(model, SaeLens(path=folder), corpus, tmp_path / "store")
    live, weights = LiveModel.load(str(model)), load_file(folder / "sae_weights.safetensors")
    point = live.hookpoint("blocks.1.hook_resid_post")
    length = torch.tensor(store.lengths.astype(np.int64))
    x = live.capture(torch.tensor(store.tokens.astype(np.int64)), [point], length)[point][torch.tensor(store.mask)]
    shift = x.mean(dim=-1, keepdim=True) if normalize == "layer_norm" else 0
    scale = (x - shift).std(dim=-1, keepdim=True) if normalize == "layer_norm" else x.norm(dim=-1, keepdim=True) / 4
    latents = ((x - shift) / scale @ weights["W_enc"] + weights["b_enc"]).relu()
    residual = x - ((latents @ weights["W_dec"] + weights["b_dec"]) * scale + shift)
    by_hand = residual.square().sum() / (x - x.mean(dim=0)).square().sum()
    assert store.facts["fvu"] == pytest.approx(float(by_hand), rel=1e-3)


def test_model_names_conflict_only_where_both_are_known():
    assert other_model("gemma-2-2b", "google/gemma-2-9b", None) and other_model("gemma-2-2b", "google/gemma-2b", None)
    assert not other_model("gemma-2-2b", "google/gemma-2-2b-it", None)
    assert not other_model("gpt2-small", "openai-community/gpt2", None)
    assert not other_model("tiny", "google/gemma-2-9b", None) and not other_model("gemma-2-2b", "./mine", "gemma2")
    assert other_model("gemma-2-2b", "./mine", "llama") and known_model("a-model-of-mine") is None
    assert known_model("Qwen/Qwen2.5-Coder-7B").family == "qwen-2.5-coder"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("blocks.3.hook_out", "blocks.3.hook_resid_post"), ("blocks.3.hook_in", "blocks.3.hook_resid_pre"),
        ("blocks.3.attn.hook_out", "blocks.3.hook_attn_out"), ("blocks.3.mlp.hook_out", "blocks.3.hook_mlp_out"),
        ("resid_post_layer_3", "blocks.3.hook_resid_post"), (".model.layers.3", "model.layers.3"),
        ("model.layers[3].mlp.output[0]", "model.layers.3.mlp.output"), ("layers.3.mlp.input", "layers.3.mlp.input"),
        ("blocks.3.hook_resid_post.hook_sae_input", "blocks.3.hook_resid_post"),
    ],
)  # fmt: skip
def test_places_are_read_by_the_names_of_every_tool(name, plain):
    assert plain_place(name) == plain and not certainly_different(name, plain)


# --- Failures that nobody foresaw ---


def test_what_nobody_foresaw_is_one_sentence_with_the_logs_path_and_exit_code_70(tmp_path, model, corpus):
    (tmp_path / "broken.py").write_text(
        "from saeval.plugin import Sampler\n\n\nclass Broken(Sampler):\n    name = 'broken'\n\n"
        "    def sample(self, store, latent, rng):\n        raise KeyError('deep inside')\n"
    )
    sae = {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae"))}}
    spec = task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32})
    document = yaml.safe_load(spec.read_text()) | {"sampler": {"use": f"{tmp_path}/broken.py:Broken"}}
    spec.write_text(json.dumps(document))
    with pytest.raises(
        saeval.SaevalError,
        match=r"plugin code at broken\.py:8 raised .*KeyError: 'deep inside'.*run\.log. Fix the plugin, or tell its author",
    ):
        saeval.run(spec, out=tmp_path / "a")
    done = CliRunner().invoke(main, ["run", "--task", str(spec), "--out", str(tmp_path / "b"), "--display", "none"])
    assert done.exit_code == 70 and "Traceback" not in done.output and str(tmp_path / "b/logs/run.log") in done.output
    assert "Traceback" in (tmp_path / "b/logs/run.log").read_text()


def two_coders(tmp_path, model, corpus, **changes):
    """The path of a spec of two SAEs, the first trained on contexts of 24 tokens and the other on 40, with BOS."""
    found = []
    for name, context in (("a", 24), ("b", 40)):
        path = tiny_sae(tmp_path / name, metadata={"context_size": context, "prepend_bos": True})
        found.append({"id": name, "coder": {"use": "sae_lens", "with": {"path": str(path)}}})
    path = task(tmp_path / "t.yaml", model, "${matrix.sae.coder}", {"path": str(corpus)}, hookpoint="layers.1")
    spec = yaml.safe_load(path.read_text()) | {"matrix": {"sae": found}} | changes
    spec["source"]["with"]["accept_mismatch"] = True
    path.write_text(yaml.safe_dump(spec))
    return path


TWO_TEXTS = "The coders' files set different values of corpus.context: 23 (%ssae=a), 39 (%ssae=b)."


def test_coders_whose_files_set_other_contexts_are_noted_before_collecting_and_on_boards(tmp_path, model, corpus):
    path = two_coders(tmp_path, model, corpus, baselines=[{"use": "random_sae"}])
    for command in ("validate", "plan"):
        said = " ".join(CliRunner().invoke(main, [command, str(path)]).output.split())
        assert said.count(TWO_TEXTS % ("", "")) == 1 and "set source.with.corpus.context to a common value" in said
        warnings = json.loads(CliRunner().invoke(main, [command, str(path), "--json"]).stdout)["warnings"]
        assert any(warning.startswith(TWO_TEXTS % ("", "")) for warning in warnings)
    run = saeval.run(path, out=tmp_path / "run")
    assert sum(note.startswith(TWO_TEXTS % ("", "")) for note in saeval.Leaderboard.of(run).notes) == 1
    joined = CliRunner().invoke(main, ["leaderboard", str(tmp_path / "run")]).output
    assert TWO_TEXTS % ("run:", "run:") in " ".join(joined.split())


def test_cells_that_differ_in_text_on_purpose_are_not_noted(tmp_path, model, corpus):
    texts = [{"id": str(n), "text": {"path": str(corpus), "context": n}} for n in (23, 31)]
    path = two_coders(tmp_path, model, corpus)
    spec = yaml.safe_load(path.read_text())
    spec["matrix"]["corpus"], spec["source"]["with"]["corpus"] = texts, "${matrix.corpus.text}"
    path.write_text(yaml.safe_dump(spec))
    run = saeval.run(path, out=tmp_path / "run")
    assert len({cell.corpus for cell in run.cells}) == 2
    assert not any("different values" in note for note in saeval.Leaderboard.of(run).notes)
    assert "different values" not in CliRunner().invoke(main, ["validate", str(path)]).output


def test_unlike_l0_of_a_random_sae_is_compared_with_one_number_if_there_is_one(tmp_path, model, corpus):
    random = {"use": "random_sae", "with": {"n_latents": 40, "k": 20}}
    sae = {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae"))}}
    path = task(tmp_path / "t.yaml", model, sae, {"path": str(corpus), "context": 32}, hookpoint="layers.1")
    spec = yaml.safe_load(path.read_text()) | {"baselines": [random]}
    spec["source"]["with"]["accept_mismatch"] = True
    run = saeval.run(spec, out=tmp_path / "run")
    (said,) = (text for text in run.warnings if "baseline for" in text)
    assert re.search(r"latents fire per token, but [0-9.]+ in the coders that it is a baseline for", said)
