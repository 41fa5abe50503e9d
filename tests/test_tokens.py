"""Text becomes contexts that begin with BOS and never span documents, and tokens become exactly the text again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from saeval import InputError
from saeval.activations.tokens import token_bytes, token_strings
from saeval.plugin import Corpus

WORDS = ["the sea is blue", "a ship sails far away", "whales sing in the deep water at night"]


def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<bos>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def sentencepiece_like():
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<bos>", "<eos>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special)
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="module", params=[byte_level, sentencepiece_like])
def tokenizer(request):
    return request.param()


@given(text=st.text(min_size=1, max_size=40, alphabet=st.characters(exclude_categories=["Cs"])))
def test_joined_token_strings_are_the_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_bytes(tokenizer, ids)
    assert "".join(token_strings(pieces[i] for i in ids)) == tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def test_character_over_several_tokens_belongs_to_the_one_that_completes_it():
    assert token_strings([b"a\xf0\x9f", b"\x90", b"\x8b!"]) == ("a", "", "🐋!")
    assert token_strings([b"\x8b!", b"\xf0"]) == ("\ufffd!", "\ufffd")


def corpus(tmp_path, texts, **options):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    return Corpus(path=path, **options)


def test_contexts_begin_with_bos_and_hold_one_document_each(tmp_path, tokenizer):
    texts = [" ".join(WORDS) * 3, WORDS[0] * 4, " ".join(WORDS)]
    data = corpus(tmp_path, texts, context=16).tokenize(tokenizer)
    assert (data.tokens[:, 0] == tokenizer.bos_token_id).all()
    assert data.tokens.shape[1] == 17
    assert not data.mask[:, 0].any()
    for document, text in enumerate(texts):
        rows = data.documents == document
        ids = [int(t) for row, n in zip(data.tokens[rows], data.lengths[rows], strict=True) for t in row[1:n]]
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert data.n_tokens == int((data.lengths - 1).sum())
    assert data.document_names == ("d0", "d1", "d2")


def test_special_tokens_written_in_the_text_are_masked(tmp_path, tokenizer):
    data = corpus(tmp_path, ["the sea <eos> is blue " * 8], context=16).tokenize(tokenizer)
    assert not data.mask[data.tokens == tokenizer.eos_token_id].any()


def test_token_limits_are_kept(tmp_path, tokenizer):
    texts = [" ".join(WORDS) * 3] * 5
    assert corpus(tmp_path, texts, context=16, tokens=100).tokenize(tokenizer).n_tokens == 100
    data = corpus(tmp_path, texts, context=16, per_document=20).tokenize(tokenizer)
    assert [int((data.lengths[data.documents == d] - 1).sum()) for d in range(5)] == [20] * 5


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "c.jsonl", "no such file"),
        ('{"text": "x"}\nnot json\n', "c.jsonl", "c.jsonl:2: not JSON"),
        ('{"body": "x"}\n', "c.jsonl", "no text under 'text'; it has: body"),
        ("hello", "c.txt", "less than two contexts"),
        ("hello", "c.pdf", "cannot read '.pdf' files"),
        ("hello", "c.parquet", "not a readable Parquet file"),
    ],
)
def test_bad_corpus_is_one_clear_sentence(tmp_path, tokenizer, content, name, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        Corpus(path=tmp_path / name, context=16).tokenize(tokenizer)


def test_fingerprint_follows_the_content_not_the_place(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("the sea")
    second.write_text("the sea")
    assert Corpus(path=first).fingerprint() == Corpus(path=second).fingerprint()
    second.write_text("the sky")
    assert Corpus(path=first).fingerprint() != Corpus(path=second).fingerprint()


def test_local_dataset_directory_is_read_with_datasets(tmp_path, tokenizer):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": " ".join(WORDS)}) + "\n" for _ in range(6)))
    data = Corpus(dataset=str(folder), context=16).tokenize(tokenizer)
    assert len(data.document_names) == 6


def test_missing_hub_dataset_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="corpus dataset 'nobody/nothing' could not be read"):
        list(Corpus(dataset="nobody/nothing").texts())
