"""Of conversations, activations count in the turns of given roles only, and silence is verified there."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_stores import dataset, dense, in_turns, write
from tiny import tiny_model, tiny_tokenizer

import saeval
from saeval import InputError
from saeval._run.sampling import _why_none
from saeval.activations.chat_roles import RoleMarks
from saeval.plugin import Corpus

PLAIN = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
THINKING = (  # drops what precedes the answer in all turns but the last one
    "{% for m in messages %}<{{ m.role }}>"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}\n{% endfor %}"
)


def corpus(path, *conversations, **options):
    rows = ({"messages": [{"role": r, "content": c} for r, c in turns]} for turns in conversations)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus(path=path, context=16, **options)


def counted(data, tokenizer):
    """The text of the tokens that count, context by context."""
    return [
        tokenizer.decode(row[mask]) for row, mask in zip(data.tokens, data.mask, strict=True) if mask.any()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chat():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN
    return tokenizer


def test_only_turns_of_the_roles_count(tmp_path, chat):
    talk = [("user", "the ship"), ("assistant", "  a grey sea "), ("user", "and then?"), ("assistant", "the ship")]
    made = corpus(tmp_path / "a.jsonl", talk, talk, roles=["assistant"])
    data, whole = made.tokenize(chat), made.model_copy(update={"roles": None}).tokenize(chat)
    assert "".join(counted(data, chat)) == "a grey seathe ship" * 2
    assert np.array_equal(data.tokens, whole.tokens)  # what the model reads is the same
    assert data.n_tokens < whole.n_tokens
    assert "".join(counted(made.model_copy(update={"roles": ("user",)}).tokenize(chat), chat)).startswith("the shipand")


def test_turn_that_a_template_cuts_is_not_counted_beyond_what_is_left(tmp_path, chat):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKING
    talk = [("assistant", "peace </think>plenty"), ("user", "at home"), ("assistant", "our aims")]
    data = corpus(tmp_path / "a.jsonl", talk, talk, roles=["assistant"]).tokenize(tokenizer)
    assert "".join(counted(data, tokenizer)) == "our aims" * 2


def test_roles_that_do_not_occur_are_refused_with_those_that_do(tmp_path, chat):
    made = corpus(tmp_path / "a.jsonl", [("user", "the ship"), ("assistant", "a sea")] * 4, roles=["model"])
    with pytest.raises(InputError, match="no text of model was found; the corpus has: assistant, user"):
        made.tokenize(chat)


def test_roles_that_do_not_occur_are_refused_before_a_model_is_loaded(tmp_path):
    talk = [("user", "the ship"), ("assistant", "a sea")]
    with pytest.raises(InputError, match="no text of model was found; the corpus has: assistant, user"):
        corpus(tmp_path / "a.jsonl", *[talk] * 4, roles=["model"]).check()
    corpus(tmp_path / "a.jsonl", talk[:1], talk, roles=["assistant"]).check()
    (tmp_path / "b.jsonl").write_text('{"text": "the ship"}\n' * 4)
    with pytest.raises(InputError, match="no text of user was found; the corpus has: no conversation"):
        Corpus(path=tmp_path / "b.jsonl", roles=["user"]).check()


def test_roles_that_may_occur_after_the_first_documents_are_left_to_tokenizing(tmp_path, chat, monkeypatch):
    monkeypatch.setattr("saeval.activations.tokens._SEARCHED", 3)
    talk, last = [("user", "the ship")], [("assistant", "a sea")]
    late = corpus(tmp_path / "late.jsonl", *[talk] * 5, last, roles=["assistant"])
    late.check()
    assert counted(late.tokenize(chat), chat) == ["a sea"]
    never = corpus(tmp_path / "never.jsonl", *[talk] * 6, roles=["assistant"])
    never.check()
    with pytest.raises(InputError, match="no text of assistant was found; the corpus has: user"):
        never.tokenize(chat)


@pytest.mark.parametrize("n", [2, 3])
def test_check_refuses_roles_that_occur_in_none_of_the_documents_of_a_short_corpus(tmp_path, monkeypatch, n):
    monkeypatch.setattr("saeval.activations.tokens._SEARCHED", 3)
    with pytest.raises(InputError, match="no text of assistant was found; the corpus has: user"):
        corpus(tmp_path / "a.jsonl", *[[("user", "the ship")]] * n, roles=["assistant"]).check()


@pytest.mark.parametrize("split", ["paragraphs", "lines"])
def test_turn_of_several_paragraphs_counts_in_each_of_its_documents(tmp_path, chat, split):
    talk = [("user", "who is\n\nthere?"), ("assistant", "the ship\n\na grey sea\n\npeace"), ("user", "good")]
    data = corpus(tmp_path / "a.jsonl", talk, talk, roles=["assistant"], split=split).tokenize(chat)
    assert counted(data, chat) == ["the ship", "a grey sea", "peace"] * 2


def test_long_turn_counts_in_every_part_of_a_single_conversation(tmp_path, chat):
    talk = [("user", "go on"), ("assistant", "the grey sea and two dogs. " * 60), ("user", "good, enough of it. " * 30)]
    made = corpus(tmp_path / "a.jsonl", talk, roles=["assistant"])
    data, whole = made.tokenize(chat), made.model_copy(update={"split": "none"}).tokenize(chat)
    assert len(data.document_names) > 3
    assert "".join(counted(data, chat)) == "".join(counted(whole, chat)) == ("the grey sea and two dogs. " * 60).strip()


def test_mark_without_its_partner_is_not_carried_into_the_next_paragraph(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content.split(' CUT')[0] }}\n\n{% endfor %}"
    talk = [("assistant", "peace CUT and plenty"), ("user", "at home"), ("assistant", "our aims")]
    data = corpus(tmp_path / "a.jsonl", talk, talk, roles=["assistant"], split="paragraphs").tokenize(tokenizer)
    assert counted(data, tokenizer) == ["our aims"] * 2


def test_marks_in_the_text_itself_are_removed():
    marks = RoleMarks(["assistant"])
    write = marks.marking(lambda turns: "|".join(turn["content"] for turn in turns))
    text = write([{"role": "user", "content": "a\ufdd0b"}, {"role": "assistant", "content": " c\ufdd1d "}])
    assert marks.found(text) == ("ab| cd ", [(4, 6)])


def test_turns_shorter_than_a_window_are_named_with_a_window_that_fits(tmp_path):
    data = in_turns(dataset(contexts=300, documents=60), 14)
    store = write(tmp_path / "s", data, dense(data, 2, 0.1), facts={"roles": ["assistant"]})
    assert not len(store.windows(0, 32).ids)
    why = _why_none(store, 32, 10)
    found = re.search(
        r"half of the turns of assistant \(corpus\.roles\) have 14 tokens or fewer.* to (\d+) or less", why
    )
    assert found and len(store.windows(0, int(found[1])).ids) > 100


@pytest.mark.slow
def test_windows_of_a_run_are_of_the_roles(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    model = tiny_model(tmp_path / "model", "llama")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": PLAIN}))
    text = (
        "two great aims, peace abroad and plenty at home; the grey sea and forty barrels of water for the old captain. "
    )
    path = tmp_path / "chat.jsonl"
    rows = [{"messages": [{"role": "user", "content": "U" * 60}, {"role": "assistant", "content": text[i:] + text[:i]}]}
            for i in range(40)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "saeval": 1, "task": "chat", "version": "1.0",
        "source": {"use": "transformers", "with": {
            "model": str(model), "hookpoint": "layers.0", "coder": {"use": "random_sae", "with": {"n_latents": 64, "k": 4}},
            "corpus": {"path": str(path), "context": 64, "roles": ["assistant"]},
        }},
        "latents": {"n": 3, "min_windows": 10},
        "sampler": {"use": "random", "with": {"window": 8, "explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "llms": {"judge": {"model": "scripted/no", "reply": "[0]"}}, "explainer": "top_tokens",
        "scorers": {"detection": {"with": {"batch": 5}}},
    }  # fmt: skip
    run = saeval.run(task, out=tmp_path / "run")
    assert run.cells[0].counts["sampled"] > 0
    examples = pq.read_table(tmp_path / "run" / "cells" / "all" / "examples.parquet").to_pylist()
    assert {row["active"] for row in examples} == {True, False}
    assert not any("U" in "".join(row["tokens"]) for row in examples)
