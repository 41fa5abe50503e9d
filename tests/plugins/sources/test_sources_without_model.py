"""Activations made elsewhere – by saeval, Delphi or Neuronpedia – say what their files say, and nothing more."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import TEXT, tiny_tokenizer

import saeval
from saeval import InputError, StoreError
from saeval.activations.store import ActivationStore, ActivationWriter
from saeval.plugin import LatentId, derive_rng
from saeval.plugin.registry import Registry
from saeval.testing.contracts import check_source
from saeval.testing.planted import planted_store


def source(name, **options):
    return Registry().get("source", name).cls(**options)


def collected(made, path):
    writer = ActivationWriter(path)
    made.collect(writer)
    return writer.finish()


# --- recorded ---


def test_recorded_store_is_the_store(tmp_path):
    first = planted_store(tmp_path / "made", n_latents=3, documents=20)
    second = collected(source("recorded", path=tmp_path / "made"), tmp_path / "taken")
    for name in ("tokens", "lengths", "documents", "indptr", "position", "value"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert second.facts == first.facts and second.document_names == first.document_names
    latent = LatentId("planted", 0)
    ids = first.windows(0, 32).ids[:3]
    assert [e.text for e in second.examples(latent, ids, 32)] == [e.text for e in first.examples(latent, ids, 32)]
    shutil.rmtree(tmp_path / "made")
    assert ActivationStore.open(tmp_path / "taken", verify=True).n_tokens == first.n_tokens


def test_sources_without_model_keep_the_contract(tmp_path):
    planted_store(tmp_path / "made", n_latents=3, documents=20)
    (tmp_path / "a").mkdir()
    check_source(source("recorded", path=tmp_path / "made"), tmp_path / "a")
    (tmp_path / "b").mkdir()
    check_source(delphi(delphi_cache(tmp_path, tokenizer_in(tmp_path))), tmp_path / "b")
    (tmp_path / "c").mkdir()
    check_source(source("neuronpedia", path=exported(tmp_path / "np")), tmp_path / "c")


def test_recorded_store_that_is_damaged_or_hostile_is_refused(tmp_path):
    planted_store(tmp_path / "made", n_latents=3, documents=20)
    made = tmp_path / "made"
    with pytest.raises(StoreError, match="not a finished store"):
        source("recorded", path=tmp_path / "nowhere").check()
    value = made / "value.npy"
    whole = value.read_bytes()
    value.write_bytes(whole[:-10])
    with pytest.raises(StoreError, match="bytes instead of"):
        source("recorded", path=made).check()
    value.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    source("recorded", path=made).check()
    with pytest.raises(StoreError, match="checksum does not match"):
        collected(source("recorded", path=made), tmp_path / "taken")
    value.write_bytes(whole)
    manifest = json.loads((made / "manifest.json").read_text())
    for change, sentence in (
        ({"n_latents": 7}, "does not fit the manifest"),
        ({"n_latents": "many"}, "n_latents is damaged"),
        ({"files": {**manifest["files"], "../../secret": {"bytes": 1, "blake2b": ""}}}, "not a file of the store"),
        ({"files": []}, "files is damaged"),
    ):
        (made / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises((InputError, StoreError), match=sentence):
            source("recorded", path=made).check()
    assert not (tmp_path / "taken").exists()


def test_synthetic_activations_stay_marked_when_they_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    spec = {
        "saeval": 1, "task": "t", "version": "1", "source": {"use": "synthetic", "with": {"n_latents": 3, "documents": 40}},
        "latents": {"n": 2, "min_windows": 10}, "explainer": "top_tokens",
        "sampler": {"use": "random", "with": {"explain": 5, "score": 10, "non_activating": {"n": 10}}},
        "scorers": {"example": {"use": f"{silent_scorer(tmp_path)}:Nothing"}},
    }  # fmt: skip
    first = saeval.run(spec, out=tmp_path / "run")
    (store,) = (p for p in (tmp_path / "cache" / "stores").iterdir() if p.is_dir())
    again = saeval.run({**spec, "source": {"use": "recorded", "with": {"path": str(store)}}}, out=tmp_path / "again")
    assert first.synthetic and again.synthetic
    assert again.cells[0].scores[0].value == first.cells[0].scores[0].value
    assert not source("recorded", path=tmp_path / "nowhere").synthetic


def silent_scorer(tmp_path):
    """A scorer that needs no model: the share of windows that are active."""
    file = tmp_path / "nothing.py"
    file.write_text(
        "from saeval.plugin import Metric, Score, Scorer\n"
        "class Nothing(Scorer):\n"
        "    '''Counts.'''\n"
        "    name = 'nothing'\n"
        "    metrics = (Metric('share'),)\n"
        "    async def score(self, explanation, examples, context):\n"
        "        n, m = len(examples.activating), len(examples.non_activating)\n"
        "        return Score(values={'share': n / (n + m)})\n"
    )
    return file


# --- Delphi ---


def tokenizer_in(tmp_path):
    folder = tmp_path / "tokenizer"
    if not folder.exists():
        tiny_tokenizer().save_pretrained(folder)
    return folder


def delphi_cache(tmp_path, tokenizer, contexts=6, length=32, width=8, change=lambda shards: None):
    """Write latents as Delphi does: nonzero entries of a dense array, cut by latent, with the tokens in every shard."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    ids = loaded(TEXT * 6, add_special_tokens=False)["input_ids"]
    tokens = np.array([[0, *ids[i * (length - 1) : (i + 1) * (length - 1)]] for i in range(contexts)], dtype=np.int64)
    rng = derive_rng(0, "delphi")
    dense = rng.normal(size=(contexts, length, width)) * (rng.random((contexts, length, width)) < 0.2)
    at = np.argwhere(np.abs(dense) > 1e-5)
    values = dense[np.abs(dense) > 1e-5].astype(np.float16)
    folder = tmp_path / "latents" / "layers.3"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shards = {}
    for start, end in ((0, 3), (4, 7)):
        here = (at[:, 2] >= start) & (at[:, 2] <= end)
        locations = (at[here] - [0, 0, start]).astype(np.uint16)
        shards[f"{start}_{end}"] = {"locations": locations, "activations": values[here], "tokens": tokens}
    change(shards)
    for name, shard in shards.items():
        save_file(shard, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps({"batch_size": 2, "ctx_len": length, "model_name": "some/model"}))
    np.save(tmp_path / "dense.npy", dense)
    return folder


def delphi(folder, **options):
    return source("delphi", path=folder, tokenizer=str(folder.parents[1] / "tokenizer"), **options)


def test_delphi_latents_become_the_same_activations(tmp_path, monkeypatch):
    import saeval_plugins.sources.delphi as module

    monkeypatch.setattr(module, "_BLOCK", 2)  # several blocks
    folder = delphi_cache(tmp_path, tokenizer_in(tmp_path))
    store = collected(delphi(folder), tmp_path / "store")
    dense = np.load(tmp_path / "dense.npy").astype(np.float16).astype(np.float32)
    dense[:, 0] = 0  # BOS
    for latent in range(8):
        position, value = store.activations(latent)
        row, offset = np.nonzero(dense[:, :, latent] > 0)
        assert np.array_equal(position, row * 32 + offset)
        assert np.array_equal(value, dense[row, offset, latent])
    assert store.lead == 1 and store.facts["hookpoint"] == "layers.3" and store.facts["subject"] == "some/model"
    shown = "".join(e.text for e in store.examples(LatentId("layers.3", 0), [0], 31))
    assert TEXT.startswith(shown) and len(shown) > 40
    assert collected(delphi(folder, n_latents=20), tmp_path / "wide").n_latents == 20


def test_delphi_activations_on_special_tokens_without_a_slot_are_not_counted(tmp_path):
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    turn = len(tokenizer) - 1

    def with_turns(shards):
        for shard in shards.values():
            shard["tokens"][:, 5] = turn

    store = collected(delphi(delphi_cache(tmp_path, tmp_path / "tokenizer", change=with_turns)), tmp_path / "store")
    assert not store.mask[:, 5].any() and store.mask[:, 1:5].all() and store.mask[:, 6:].all()
    assert all((store.activations(latent)[0] % 32 != 5).all() for latent in range(8))


def test_delphi_cache_that_lost_its_tokens_in_one_shard_is_read_from_another(tmp_path):
    folder = delphi_cache(tmp_path, tokenizer_in(tmp_path), change=lambda s: s["0_3"].pop("tokens"))
    assert collected(delphi(folder), tmp_path / "store").n_latents == 8


def _cut(folder):
    file = folder / "4_7.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("change", "spoil", "sentence"),
    [
        (None, _cut, "not a complete safetensors file"),
        (None, lambda f: (f / "0_3.safetensors").write_bytes(b"\xff" * 40), "not a complete safetensors file"),
        (None, lambda f: (f / "0_3.safetensors").unlink(), "begins at latent 4 instead of 0"),
        (None, lambda f: [x.unlink() for x in f.glob("*.safetensors")], "no <first>_<last>.safetensors"),
        (lambda s: [x.pop("tokens") for x in s.values()], None, "no shard holds tokens"),
        (lambda s: s["0_3"].update(activations=s["0_3"]["activations"][:-1].copy()), None, "locations of shape"),
        (lambda s: s["0_3"].update(locations=s["0_3"]["locations"][:, :2].copy()), None, "locations of shape"),
        (lambda s: s["0_3"].update(locations=s["0_3"]["locations"].astype(np.float32)), None, "whole numbers"),
        (lambda s: s["0_3"]["locations"].__setitem__((-1, 0), 999), None, "not in the order of the 6 contexts"),
        (lambda s: s["0_3"]["locations"].__setitem__((0, 1), 999), None, "outside the contexts of 32 tokens"),
        (lambda s: s["0_3"]["locations"].__setitem__((0, 2), 4), None, "latent 4 does not belong to this shard"),
        (lambda s: s["4_7"]["activations"].__setitem__(3, np.inf), None, "half-precision maximum"),
        (lambda s: s["4_7"].update(tokens=s["4_7"]["tokens"][:3].copy()), None, "differ in the shape of tokens"),
        (lambda s: [x["tokens"].__setitem__((0, 3), 5000) for x in s.values()], None, "to the subject model's"),
    ],
)  # fmt: skip
def test_delphi_cache_that_is_damaged_is_one_sentence(tmp_path, change, spoil, sentence):
    folder = delphi_cache(tmp_path, tokenizer_in(tmp_path), change=change or (lambda s: None))
    if spoil:
        spoil(folder)
    made = delphi(folder)
    with pytest.raises(InputError, match=sentence):
        made.check()
        collected(made, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_delphi_says_what_it_needs(tmp_path):
    folder = delphi_cache(tmp_path, tokenizer_in(tmp_path))
    with pytest.raises(InputError, match="more than n_latents"):
        delphi(folder, n_latents=5).check()
    with pytest.raises(InputError, match="no such folder"):
        source("delphi", path=tmp_path / "x", tokenizer="x").check()
    wrong = source("delphi", path=folder, tokenizer=str(tmp_path / "no-tokenizer"))
    with pytest.raises(InputError, match="tokenizer .*cannot be loaded"):
        collected(wrong, tmp_path / "store")


# --- Neuronpedia ---

WORDS = [["▁red", "▁ship"], ["▁old", "▁captain"], ["▁grey", "▁sea"]]
PADDING = [f"▁word{i}" for i in range(6)]


def rows_of(latents=3, texts=30, length=32):
    """Rows as Neuronpedia exports them: texts of each latent, in which it fires on two words at one place."""
    rows = []
    for latent in range(latents):
        for t in range(texts):
            rng = derive_rng(0, "text", latent, t)
            tokens = [PADDING[int(i)] for i in rng.integers(len(PADDING), size=length)]
            at = int(rng.integers(length - 2))
            tokens[at : at + 2] = WORDS[latent]
            values = [0.0] * length
            values[at : at + 2] = [1.0 + t, 2.0 + t]
            rows.append(
                {
                    "id": f"c{latent}-{t}", "modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": str(latent),
                    "tokens": ["<bos>", *tokens], "values": [9.0, *values], "maxValue": 2.0 + t, "minValue": 0.0,
                    "maxValueTokenIndex": at + 2, "dataSource": "pile",
                }
            )  # fmt: skip
    return rows


def exported(folder, rows=None, **options):
    """Write rows to two gzipped batches."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(**options) if rows is None else rows
    for i, part in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"batch-{i}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return folder


def test_neuronpedia_activations_are_read_text_by_text(tmp_path):
    store = collected(source("neuronpedia", path=exported(tmp_path / "np")), tmp_path / "store")
    assert store.n_latents == 3 and len(store.tokens) == 90 and store.facts["hookpoint"] == "20-gemmascope-res-16k"
    position, value = store.activations(1)
    assert len(position) == 60 and value.max() == 31.0  # the 9.0 on BOS counts nowhere
    ids = store.windows(1, 8).ids
    text = "".join(e.text for e in store.examples(LatentId("x", 1), ids[:2], 8))
    assert " old" in text or " captain" in text
    assert len(np.unique(store.documents)) == 90


def test_silence_in_texts_of_other_latents_is_never_claimed(tmp_path):
    rows = rows_of(texts=60, length=64)
    shared = {**rows[0], "index": "1", "values": [0.0] * 65}  # a text exported for latent 1, too, which is silent there
    store = collected(source("neuronpedia", path=exported(tmp_path / "np", [*rows, shared])), tmp_path / "store")
    own = np.arange(180) // 60
    assert [store.knows(i, np.arange(180)).nonzero()[0].tolist() for i in (0, 2)] == [
        np.flatnonzero(own == i).tolist() for i in (0, 2)
    ]
    assert store.knows(1, np.arange(180)).nonzero()[0].tolist() == [0, *range(60, 120)]
    silent = store.silent_windows(1, 16, 10_000, derive_rng(0))
    contexts = store.context_of(silent, 16)
    assert set(contexts) <= {0, *range(60, 120)} and len(silent) > 100
    assert not set(silent) & set(store.windows(1, 16).ids)
    for use in ({"use": "random", "n": 20}, {"use": "neighbours", "n": 20}):
        sampler = Registry().get("sampler", "random").cls(window=16, explain=10, score=20, non_activating=use)
        record = sampler.sample(store, LatentId("x", 1), derive_rng(0))
        if record is None:  # its neighbours' texts are not known for it
            assert use["use"] == "neighbours"
            continue
        sides = (record.explain, record.score)
        assert all(e.context in {0, *range(60, 120)} for s in sides for e in s.non_activating)


def test_sampler_that_claims_silence_nobody_verified_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    exported(tmp_path / "np", texts=60, length=64)
    (tmp_path / "careless.py").write_text(
        "import numpy as np\n"
        "from saeval.plugin import Examples, LatentRecord, Sampler\n"
        "class Careless(Sampler):\n"
        "    '''Takes windows in which nothing is recorded for silent.'''\n"
        "    name = 'careless'\n"
        "    def sample(self, store, latent, rng):\n"
        "        ids = store.windows(latent.index, self.window).ids\n"
        "        others = np.setdiff1d(np.arange(180 * 4), ids)\n"
        "        def side(a, b):\n"
        "            return Examples(latent, store.examples(latent, a, self.window), store.examples(latent, b, self.window), 1.0)\n"
        "        return LatentRecord(latent, 1, 1, 0.1, side(ids[:5], others[:5]), side(ids[5:10], others[-5:]))\n"
    )
    spec = {
        "saeval": 1, "task": "t", "version": "1", "source": {"use": "neuronpedia", "with": {"path": str(tmp_path / "np")}},
        "latents": {"n": 2, "min_windows": 10}, "explainer": "top_tokens",
        "sampler": {"use": f"{tmp_path}/careless.py:Careless", "with": {"window": 16}},
        "scorers": {"example": {"use": f"{silent_scorer(tmp_path)}:Nothing"}},
    }  # fmt: skip
    with pytest.raises(
        StoreError, match="returned .* non-activating windows of latent .* that the source does not cover"
    ):
        saeval.run(spec, out=tmp_path / "run")
    honest = {"use": "random", "with": {"window": 16, "explain": 5, "score": 10, "non_activating": {"n": 10}}}
    result = saeval.run({**spec, "sampler": honest}, out=tmp_path / "honest")
    assert any("excerpts that Neuronpedia chose" in warning for warning in result.warnings)
    assert result.cells[0].counts["sampled"] == 2


def test_tokens_that_are_plain_text_already_stay_as_they_are(tmp_path):
    rows = rows_of(1, 2)
    for row in rows:
        row["tokens"] = [t.replace("▁", " ") for t in row["tokens"]]
        row["tokens"][5] = " Ġ"
    store = collected(source("neuronpedia", path=exported(tmp_path / "np", rows)), tmp_path / "store")
    assert " Ġ" in store.examples(LatentId("x", 0), [0], 16)[0].text


def spoiled(**changes):
    rows = rows_of(1, 4)
    rows[3] = {**rows[3], **changes}
    return rows


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (spoiled(values=[1.0]), r"batch-1.jsonl.gz:2: values should be a list of 33 numbers"),
        (spoiled(values=[float("nan")] * 33), "finite numbers"),
        (spoiled(values=["1"] * 33), "finite numbers"),
        (spoiled(tokens=[1] * 33), "tokens should be a list of texts"),
        (spoiled(index="../../etc"), "index should be a latent number"),
        (spoiled(index=None), "index should be a latent number"),
        (spoiled(layer="21-other"), "several hookpoints"),
        ([*rows_of(1, 1), {**rows_of(1, 1)[0], "values": [1.0] * 33}], "contradict an earlier row"),
        ([["a"]], "should be an object"),
        ([], "has no texts"),
    ],
)
def test_neuronpedia_export_that_is_malformed_is_one_sentence(tmp_path, rows, sentence):
    made = source("neuronpedia", path=exported(tmp_path / "np", rows))
    with pytest.raises(InputError, match=sentence):
        collected(made, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_neuronpedia_export_that_is_cut_short_is_one_sentence(tmp_path):
    folder = exported(tmp_path / "np")
    file = folder / "batch-1.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match="incomplete gzip file"):
        collected(source("neuronpedia", path=folder), tmp_path / "store")
    file.write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match="incomplete gzip file"):
        collected(source("neuronpedia", path=folder), tmp_path / "store")
    with pytest.raises(InputError, match="no .jsonl or .jsonl.gz file there"):
        source("neuronpedia", path=tmp_path / "nowhere").check()
    with pytest.raises(InputError, match="not in a dictionary of 2"):
        collected(source("neuronpedia", path=exported(tmp_path / "ok"), n_latents=2), tmp_path / "store")


def test_place_is_chosen_by_name(tmp_path):
    rows = spoiled(layer="21-other")
    made = source("neuronpedia", path=exported(tmp_path / "np", rows), source="21-other")
    assert collected(made, tmp_path / "store").facts["hookpoint"] == "21-other"


def test_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path):
    first, second = (source("neuronpedia", path=exported(tmp_path / n)) for n in "ab")
    assert first.fingerprint() == second.fingerprint()
    exported(tmp_path / "b", rows_of(2))
    assert first.fingerprint() != source("neuronpedia", path=tmp_path / "b").fingerprint()
