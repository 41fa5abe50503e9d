"""What was asked, and what directions tell, can be read from the run directory when everything else is gone."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from planted_run import spec, truthful, truthful_server
from tiny import D, tiny_corpus, tiny_model, tiny_sae

import saeval
from saeval import InputError
from saeval.llm.transcript import PromptReply, pack, prompt_replies, unpack
from saeval.models.coders import LinearCoder
from saeval.models.live import only_local, release_models
from saeval.models.logit_lens import directions
from saeval.plugin import (
    FillReply,
    FillRequest,
    LiveModel,
    LogprobReply,
    LogprobRequest,
    Message,
    Reply,
    Request,
    Subject,
)


def rows(run, cell="all", name="calls") -> list[dict]:
    return pq.read_table(run / "cells" / cell / f"{name}.parquet").to_pylist()


def test_every_prompt_and_raw_reply_of_a_run_is_kept_and_survives_a_lost_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        task = spec(server)
        saeval.run(task, out=tmp_path / "run", limit=3)
        first = {(c["step"], c["variant"], c["latent"]) for c in rows(tmp_path / "run")}
        shutil.rmtree(tmp_path / "cache")
        saeval.run(task, out=tmp_path / "run")
    calls = rows(tmp_path / "run")
    assert {key for key in first if "shuffled" not in key[1]} < {(c["step"], c["variant"], c["latent"]) for c in calls}
    detected = [(c["latent"], c["call"]) for c in calls if (c["step"], c["variant"]) == ("detection", "explanation")]
    assert len(detected) == len(set(detected)) == 6 * 8  # forty windows, five a prompt
    explained = [c for c in calls if (c["step"], c["variant"]) == ("explain", "explanation")]
    assert len({c["latent"] for c in explained}) == 6
    for call in calls:
        turns = [t.split("\n", 1) for t in call["prompt"].split("\n\n[")]
        assert call["status"] == "ok" and turns[0][0] in ("[system]", "[user]") and call["reply"]
    one = explained[0]["prompt"].rpartition("[user]\n")[2]
    assert truthful([{"role": "user", "content": one}]) == explained[0]["reply"]
    judged = {(c["step"], c["variant"]) for c in calls}
    assert {
        ("detection", "explanation"),
        ("fuzzing", "random_explanation"),
        ("detection", "shuffled_explanation"),
    } <= judged
    assert ("explain", "shuffled_explanation") not in judged


def test_scores_of_baselines_are_kept_latent_by_latent(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        run = saeval.run(spec(server), out=tmp_path / "run")
    scores = rows(tmp_path / "run", name="scores")
    for row in run.cells[0].scores:
        mine = [
            s["value"]
            for s in scores
            if (s["scorer"], s["variant"], s["metric"]) == (row.scorer, row.variant, row.metric)
        ]
        assert len(mine) == row.n and np.mean(mine) == pytest.approx(row.value)
    assert {s["variant"] for s in scores} >= {"explanation", "random_explanation", "top_tokens"}


def test_a_reply_that_never_came_is_kept_with_its_reason():
    request = Request((Message("system", "Judge."), Message("user", "Does it fit?")))
    assert prompt_replies(request, "no answer within 3 s") == [
        PromptReply("[system]\nJudge.\n\n[user]\nDoes it fit?", "no answer within 3 s", "failed")
    ]
    assert prompt_replies(request, Reply("Yes")) == [PromptReply("[system]\nJudge.\n\n[user]\nDoes it fit?", "Yes")]


def test_scored_continuations_and_weighed_choices_are_told_prompt_by_prompt():
    scored = LogprobRequest(("one", "two"), (" Yes", " No"), prefix="Is it ")
    reply = LogprobReply((((-0.5,), (-1.0, -0.25)), ((-2.0,), (-0.125,))))
    assert prompt_replies(scored, reply) == [
        PromptReply("Is it one", "ln p(' Yes') = -0.500\nln p(' No') = -1.250"),
        PromptReply("Is it two", "ln p(' Yes') = -2.000\nln p(' No') = -0.125"),
    ]
    fill = FillRequest((("a\t", "\nb\t"),), " unknown", ("0", "9"), prefix="> ")
    assert prompt_replies(fill, FillReply((((-1.0, -0.1), (-0.1, -3.0)),))) == [
        PromptReply("> a\t unknown\nb\t unknown", "likeliest: 9 0")
    ]


def test_packing_keeps_everything_but_the_number_is_bounded_and_what_is_shared_costs_once():
    few_shot = "".join(chr(33 + i * i % 90) for i in range(4000))
    asked = [PromptReply(f"{few_shot} {i} \ud800 鯨", f"reply {i}") for i in range(100)]
    back = unpack(pack(asked))
    assert back[:64] == [PromptReply(a.prompt.replace("\ud800", "?"), a.reply) for a in asked[:64]]
    assert back[64:] == [PromptReply("", "36 more prompts are not kept", "left out")]
    assert len(pack(asked)) < 3 * len(few_shot) and unpack(pack([])) == []


def test_windows_that_both_sides_have_take_no_room_and_others_make_no_wrong_prompt():
    rng = np.random.default_rng(0)
    shown = [" ".join(f"w{i}" for i in rng.integers(5000, size=32)) for _ in range(100)]
    unshown = [" ".join(f"w{i}" for i in rng.integers(5000, size=32)) for _ in range(200)]
    windows = [shown[:50], unshown, shown[50:]]
    lists = ["\n".join(f"Window {n}: {w}" for n, w in enumerate(shown[i : i + 5], 1)) for i in range(0, 100, 5)]
    asked = [PromptReply(f"Judge.\n\n{text}\n\nAnswer:", "[1, 0, 1, 0, 1]") for text in lists]
    alone, known = pack(asked), pack(asked, windows)
    assert unpack(alone) == unpack(alone, windows) == unpack(known, windows) == asked
    assert len(known) < 0.1 * len(alone)
    for others in ((), windows[1:], [shown[1:], unshown, shown[50:]]):
        assert [told.status for told in unpack(known, others)] == ["left out"]


def test_what_an_earlier_version_packed_is_read():
    text = json.dumps([["[user]\nDoes it fit?", "Yes", "ok"]])
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    told = [PromptReply("[user]\nDoes it fit?", "Yes")]
    assert unpack(packed) == unpack(packed, [["a window"]]) == told
    window = "w1 w2 w3 w4 w5 w6"
    parts = []
    for part in (["[user]\n", "?"], [["Does it fit", "Yes", "ok"]]):
        packer = zlib.compressobj(zdict=f"{window}\nanother".encode())
        parts.append(packer.compress(json.dumps(part).encode()) + packer.flush())
    packed = "".join(f".{base64.b64encode(part).decode()}" for part in parts)
    assert unpack(packed, [[window], ["another"]]) == told


# --- directions ---


class Source:
    """Lends a coder of known directions, and a tiny model."""

    def __init__(self, model: str, decoder: torch.Tensor):
        self.model, self.coder = model, LinearCoder(decoder.T, decoder)

    def offers(self):
        return frozenset({"coder", "subject"})

    def model_copy(self):
        return self

    def weights(self):
        return self.coder

    def subject(self):
        live = LiveModel.load(self.model)
        return Subject(live, live.hookpoint("layers.2"))


def test_neighbours_are_the_nearest_by_cosine_and_tokens_those_whose_logits_rise_most(tmp_path):
    decoder = torch.eye(D)[:4]
    decoder = torch.stack(
        [decoder[0], 5 * (decoder[0] + 0.1 * decoder[1]), decoder[0] - decoder[1], -decoder[0], decoder[2]]
    )
    source = Source(str(tmp_path / "llama"), decoder)
    without, missing = directions(source, [0, 4], decoder.numel())
    assert missing == f"promoted tokens (model {source.model}: no such file or folder)"
    tiny_model(tmp_path / "llama", "llama")
    assert without[0]["neighbours"] == [1, 2, 4, 3] and without[0]["cosines"] == pytest.approx(
        [0.995, 0.7071, 0, -1], abs=1e-3
    )
    assert "promoted" not in without[0]
    subject = source.subject()
    found, missing = directions(source, [0, 4], decoder.numel())
    assert missing == ""
    for row, latent in zip(found, (0, 4), strict=True):
        best = subject.promoted(decoder[latent]).topk(10).indices.tolist()
        assert row["promoted"] == [subject.text([token]) for token in best]
    assert directions(source, [0], 1 << 40) == ([], "")
    assert directions(SimpleNamespace(offers=frozenset), [0], 1) == ([], "")


def test_models_that_need_a_download_or_more_memory_than_is_free_are_not_loaded_only_for_facts(tmp_path, monkeypatch):
    name = str(tiny_model(tmp_path, "llama"))
    monkeypatch.setattr("saeval.models.loading.free_memory", lambda: 1000)
    with only_local():
        with pytest.raises(InputError, match="needs 0.0 GB of memory, but 0.0 GB are free"):
            LiveModel.load(name)
        with pytest.raises(InputError, match="model nobody/nothing is not on this machine"):
            LiveModel.load("nobody/nothing")
    live = LiveModel.load(name)
    with only_local():
        assert LiveModel.load(name) is live


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """A task of an SAE and a random one, and a function that starts without activations and models in memory."""
    model, corpus = tiny_model(tmp_path / "model"), tiny_corpus(tmp_path / "corpus.jsonl")
    coder = {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae"))}}
    text = {"path": str(corpus), "context": 32}
    spec = {
        "saeval": 1, "task": "facts", "version": "1.0",
        "source": {"use": "transformers", "with": {"model": str(model), "coder": coder, "corpus": text, "accept_mismatch": True}},
        "latents": {"n": 5, "min_windows": 8},
        "sampler": {"use": "random", "with": {"window": 8, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "llms": {"judge": {"model": "scripted/no", "reply": "[0]"}}, "explainer": "top_tokens", "scorers": {"detection": {}},
        "baselines": [{"use": "random_sae", "with": {"n_latents": 40, "k": 4}}],
    }  # fmt: skip

    def use_cache(cache):
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / cache))
        release_models()

    return spec, use_cache


FACTS = ("latent", "neighbours", "cosines", "decoder_norm", "promoted", "suppressed")


def facts(run) -> list[list]:
    return [[row[name] for name in FACTS] for cell in ("all", "coder=random_sae") for row in rows(run, cell, "latents")]


def test_facts_of_latents_do_not_depend_on_whether_activations_were_cached(tmp_path, compared):
    task, use_cache = compared
    use_cache("a")
    saeval.run(task, out=tmp_path / "at-once")
    use_cache("b")
    saeval.run(task, out=tmp_path / "in-steps", limit=2)
    release_models()
    saeval.run(task, out=tmp_path / "in-steps")
    assert facts(tmp_path / "in-steps") == facts(tmp_path / "at-once")
    assert all(None not in row for row in facts(tmp_path / "at-once"))


def test_run_says_which_facts_are_missing_and_a_rerun_adds_them(tmp_path, compared, monkeypatch):
    task, use_cache = compared
    use_cache("c")
    saeval.run(task, out=tmp_path / "run", limit=2)
    before = facts(tmp_path / "run")
    release_models()
    with monkeypatch.context() as patch:
        patch.setattr("saeval.models.loading.free_memory", lambda: 0)
        run = saeval.run(task, out=tmp_path / "run")
    for cell in ("all", "coder=random_sae"):
        start = f"{cell}: 3 latents have no promoted tokens (model {tmp_path / 'model'} needs 0.0 GB of memory"
        assert any(text.startswith(start) and "rerun the same command" in text for text in run.warnings)
    found = facts(tmp_path / "run")
    kept = [row for row in found if row in before]
    assert len(kept) == 4 and sum(row[-1] is None for row in found) == 6
    assert all(None not in row[:-2] for row in found)  # those of the decoder need no model
    run = saeval.run(task, out=tmp_path / "run")
    assert not any("promoted" in text for text in run.warnings)
    assert all(None not in row for row in facts(tmp_path / "run"))
