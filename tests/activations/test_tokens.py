"""Text becomes contexts that begin with BOS and never span documents, and tokens become exactly the text again."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
from hypothesis import given, strategies as st

from saeval import InputError
from saeval.activations.decoding import token_bytes, token_strings
from saeval.activations.documents import _parts
from saeval.activations.row_texts import Notes
from saeval.plugin import Corpus
from saeval.records import shown_at, with_marks

WORDS = ["the sea is blue", "a ship sails far away", "whales sing in the deep water at night"]
SENTENCE = "The sea is blue and a ship sails far away. "


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


def split_at_spaces(model, trainer, decoder=None, pre_tokenizer="Whitespace"):
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(model)
    if pre_tokenizer:
        tokenizer.pre_tokenizer = getattr(pre_tokenizers, pre_tokenizer)()
    if decoder:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator([SENTENCE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def shown(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_bytes(tokenizer, ids)
    return "".join(token_strings(pieces[i] for i in ids))


@pytest.mark.parametrize("pre_tokenizer", ["Whitespace", "WhitespaceSplit", "BertPreTokenizer"])
def test_tokens_that_are_whole_words_are_shown_with_spaces_between_them(pre_tokenizer):
    from tokenizers import models, trainers

    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    words = split_at_spaces(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizer=pre_tokenizer)
    assert shown(words, "a ship  sails\nfar") == " a ship sails far"


@pytest.mark.parametrize("decoded", [True, False])
def test_tokens_that_mark_the_end_of_a_word_are_shown_with_a_space_after_it(decoded):
    from tokenizers import decoders, models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=45, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
    gpt1 = split_at_spaces(model, trainer, decoders.BPEDecoder("</w>") if decoded else None)
    assert len(gpt1.tokenize("a ship sails")) > 3  # words of several tokens
    assert shown(gpt1, "a ship  sails\nfar") == "a ship sails far "


def test_whole_words_that_look_like_sentencepiece_are_words():
    from tokenizers import models, pre_tokenizers, trainers

    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    words = split_at_spaces(models.WordLevel(unk_token="<unk>"), trainer)
    words.backend_tokenizer.model = models.WordLevel({"<unk>": 0, "sea": 1, "▁x": 2}, unk_token="<unk>")
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert shown(words, "sea ▁x sea") == " sea ▁x sea"


def test_byte_level_tokens_without_a_decoder_are_spelt_as_text():
    plain = byte_level()
    plain.backend_tokenizer.decoder = None
    assert shown(plain, "the sea\n 日本 é") == "the sea\n 日本 é"


def test_characters_without_pre_tokenizer_are_shown_as_they_are():
    from tokenizers import models, trainers

    trainer = trainers.BpeTrainer(vocab_size=30, special_tokens=["<unk>"], show_progress=False)
    characters = split_at_spaces(models.BPE(unk_token="<unk>"), trainer, pre_tokenizer=None)
    assert shown(characters, "a ship  sails far") == "a ship  sails far"


def test_character_over_several_tokens_belongs_to_the_one_that_begins_it():
    assert token_strings([b"a\xf0\x9f", b"\x90", b"\x8b!"]) == ("a🐋", "", "!")
    assert token_strings([b" \xe9", b"\xb2", b"\xb8\xe6\xb5", b"\xb7"]) == (" 鲸", "", "海", "")
    assert token_strings([b"\x8b!", b"\xf0"]) == ("\ufffd!", "\ufffd")
    assert token_strings([b"\xf0", b"\x9f", b"a", b"\xf0", b""]) == ("\ufffd", "", "a", "\ufffd", "")


def touched(pieces, i):
    """The characters that have a byte in piece i."""
    text, begin = b"".join(pieces).decode(), len(b"".join(pieces[:i]))
    found, at = "", 0
    for character in text:
        end = at + len(character.encode())
        if at < begin + len(pieces[i]) and end > begin:
            found += character
        at = end
    return found


@pytest.mark.parametrize("text", ["a 🐋 and 🧑‍🚀!", "鲸鱼 在海里", "ノルウェー", "Zalgo: e\u0301\u0327 ñ", "👩🏽‍🌾"])
def test_character_is_marked_as_a_whole_on_each_token_that_is_part_of_it(text):
    tokenizer = byte_level()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bytes_of = token_bytes(tokenizer, ids)
    pieces = [bytes_of[i] for i in ids]
    tokens = token_strings(pieces)
    assert len(ids) > len(text) and "".join(tokens) == text
    for i in range(len(ids)):
        before, _, rest = with_marks(tokens, [k == i for k in range(len(ids))]).partition("<<")
        shown, _, after = rest.partition(">>")
        assert (shown, before + shown + after) == (touched(pieces, i), text)


@given(text=st.text(min_size=1, max_size=8, alphabet="a é鲸🐋"), cuts=st.sets(st.integers(1, 31)))
def test_mark_is_on_whole_characters_of_the_token_wherever_tokens_end(text, cuts):
    data = text.encode()
    ends = [*sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    tokens = token_strings(pieces)
    assert "".join(tokens) == text
    for i, at in enumerate(shown_at(tokens)):
        assert tokens[at] and touched(pieces, i).endswith(tokens[i]) and set(tokens[at]) & set(touched(pieces, i))
        marked = with_marks(tokens, [k == i for k in range(len(tokens))])
        assert marked == "".join(f"<<{token}>>" if k == at else token for k, token in enumerate(tokens))


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


# --- Corpora as people have them ---


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, **options):
    return list(Corpus(path=path, context=16, **options).texts())


def test_warning_about_one_row_is_in_the_singular():
    assert Notes(empty=1, rows=5, documents=4, duplicates=1).warnings() == [
        "1 of 5 rows of the corpus holds no text and was skipped.",
        "corpus.dedup dropped 1 of 4 documents as duplicates of earlier ones.",
    ]


def test_rows_without_text_are_skipped_and_counted(tmp_path, tokenizer):
    path = lines(
        tmp_path / "c.jsonl", [{"text": SENTENCE}, {"text": None}, {"text": float("nan")}, {}, {"text": SENTENCE}]
    )
    data = Corpus(path=path, context=16).tokenize(tokenizer)
    assert len(data.document_names) == 2
    assert data.warnings == ("3 of 5 rows of the corpus hold no text and were skipped.",)


@pytest.mark.parametrize(
    ("encoding", "end"),
    [("utf-8-sig", "\n"), ("utf-16", "\n"), ("utf-16-le", "\n"), ("utf-8", "\r\n")],
    ids=["BOM", "UTF-16", "no BOM", "CRLF"],
)
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path, encoding, end):
    text = "".join(json.dumps({"text": f"naïve {i}"}, ensure_ascii=False) + end for i in range(3))
    (tmp_path / "c.jsonl").write_bytes(text.encode(encoding))
    assert [text for _, text in read(tmp_path / "c.jsonl")] == ["naïve 0", "naïve 1", "naïve 2"]
    (tmp_path / "c.txt").write_bytes(f"naïve{end}".encode(encoding))
    assert read(tmp_path / "c.txt") == [("c", "naïve\n")]


def test_text_that_is_not_utf_8_is_said(tmp_path, tokenizer):
    (tmp_path / "c.txt").write_bytes(("Ein Schiff fährt über die See. " * 40).encode("latin-1"))
    data = Corpus(path=tmp_path / "c.txt", context=16).tokenize(tokenizer)
    assert "80 of 1,240 characters of the corpus are U+FFFD" in data.warnings[0] and "iconv" in data.warnings[0]


def test_halves_of_surrogate_pairs_are_replaced_not_passed_to_a_tokenizer(tmp_path, tokenizer):
    (tmp_path / "c.jsonl").write_text('{"text": "the sea \\ud83d"}\n{"text": "ends"}\n')
    assert [text for _, text in read(tmp_path / "c.jsonl")] == ["the sea \ufffd", "ends"]


@pytest.mark.parametrize(
    ("field", "turns"),
    [
        ("messages", [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": "and the sky"}]),
        ("conversations", [{"from": "human", "value": "the sea"}, {"from": "gpt", "value": "and the sky"}]),
        (
            "messages",
            json.dumps([{"role": "user", "content": "the sea"}, {"role": "assistant", "content": "and the sky"}]),
        ),
    ],
)
def test_conversations_are_written_by_the_tokenizers_template(tmp_path, tokenizer, field, turns):
    path = lines(tmp_path / "c.jsonl", [{field: turns}] * 3)
    with pytest.raises(InputError, match="no chat template"):
        Corpus(path=path, context=16).tokenize(tokenizer)
    from tiny import tiny_tokenizer

    chat = tiny_tokenizer()
    chat.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    data = Corpus(path=path, context=64).tokenize(chat)
    text = b"".join(data.vocabulary[i] for i in data.tokens[0, : data.lengths[0]].tolist())
    assert text.decode() == "user: the sea\nassistant: and the sky\n"
    assert (data.tokens[0] == chat.bos_token_id).sum() == 1


def test_conversation_that_is_stored_as_a_string_is_one_when_its_field_is_named(tmp_path):
    turns = json.dumps([{"role": "user", "content": "the sea"}])
    path = lines(tmp_path / "c.jsonl", [{"messages": turns}, {"messages": "[1] the sky"}])
    found = Corpus(path=path, field="messages").texts(template=lambda turns: turns[0]["content"])
    assert [text for _, text in found] == ["the sea", "[1] the sky"]


def test_a_turn_that_calls_a_tool_has_no_text_and_costs_no_conversation(tmp_path):
    turns = [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": None, "tool_calls": []}]
    path = lines(tmp_path / "c.jsonl", [{"messages": turns}] * 2)
    assert Corpus(path=path).holds_chats()
    assert len(list(Corpus(path=path).texts(template=lambda turns: "|".join(t["content"] for t in turns)))) == 2


def test_folders_of_shards_saved_datasets_and_compressed_files_hold_the_same_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"the sea {i}"} for i in range(6)]
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(str(tmp_path / "dict"))
    for name in ("jsonl", "parquet"):
        (tmp_path / name / "data").mkdir(parents=True)
    (tmp_path / "jsonl" / "README.txt").write_text("about these shards")
    for shard in (0, 1):
        part = whole.select(range(3 * shard, 3 * shard + 3))
        part.to_parquet(str(tmp_path / "parquet" / "data" / f"train-{shard}.parquet"))
        lines(tmp_path / "jsonl" / "data" / f"{shard}.jsonl", part.to_list())
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as packed:
        packed.write("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    expected = [row["text"] for row in rows]
    for name in ("saved", "dict", "jsonl", "parquet", "c.jsonl.gz", "c.json"):
        documents = read(tmp_path / name)
        assert [text for _, text in documents] == expected, name
        assert len({name for name, _ in documents}) == 6
    assert [text for _, text in Corpus(dataset=str(tmp_path / "saved")).texts()] == expected
    assert len(read(tmp_path / "dict", split="test")[0][1]) > 0
    with pytest.raises(InputError, match="no split 'valid'; set corpus.split to one of: test, train"):
        read(tmp_path / "dict", split="valid")
    hashes = [Corpus(path=tmp_path / name).fingerprint()["sha256"] for name in ("saved", "jsonl")]
    lines(tmp_path / "jsonl" / "data" / "1.jsonl", rows)
    assert hashes[1] != Corpus(path=tmp_path / "jsonl").fingerprint()["sha256"]


ROWS = [{"id": f"r{i}", "text": f'the "sea", {i};\nand\tthe sky'} for i in range(3)]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table(delimiter):
    written = io.StringIO()
    rows = csv.DictWriter(written, ["id", "text"], delimiter=delimiter)
    rows.writeheader()
    rows.writerows(ROWS)
    return written.getvalue()


def zstandard(data):
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.jsonl", json.dumps(ROWS)),
        ("list.json", json.dumps(ROWS, indent=1)),
        ("texts.json", json.dumps([row["text"] for row in ROWS])),
        ("held.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("held-indented.json", json.dumps({"version": "1.0", "data": ROWS}, indent=2)),
        ("columns.json", json.dumps({name: [row[name] for row in ROWS] for name in ("id", "text")})),
        ("pandas.json", json.dumps({name: {i: row[name] for i, row in enumerate(ROWS)} for name in ("id", "text")})),
        ("by-name.json", json.dumps({row["id"]: {"text": row["text"]} for row in ROWS})),
        ("lines.ndjson", JSON_LINES),
        ("LINES.JSONL", JSON_LINES),
        ("table.csv", table(",")),
        ("table.tsv", table("\t")),
        ("semicolons.csv", table(";")),
        ("lines.jsonl.bz2", bz2.compress(JSON_LINES.encode())),
        ("lines.jsonl.xz", lzma.compress(JSON_LINES.encode())),
        ("lines.jsonl.zst", zstandard(JSON_LINES.encode())),
        ("table.csv.gz", gzip.compress(table(",").encode(), mtime=0)),
        ("marked.csv", b"\xef\xbb\xbf" + table(",").encode()),
    ],
)
def test_rows_are_read_from_every_everyday_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    Corpus(path=tmp_path / name).check()
    assert [text for _, text in read(tmp_path / name)] == [row["text"] for row in ROWS]


def test_a_json_object_over_several_lines_is_one_row(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"text": "the sea"}, indent=2))
    assert [text for _, text in read(tmp_path / "one.json")] == ["the sea"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("columns.csv", b"number,body\n1,the sea\n", "it has: number, body; set corpus.field to 'body'"),
        ("headless.csv", b"1," + b"the sea and the sky " * 9 + b"\n2,x\n", "the first line of a table must name its columns"),
        ("cut.jsonl.gz", gzip.compress(JSON_LINES.encode(), mtime=0)[:40], "damaged or cut off .*; copy it again"),
        ("cut.jsonl.xz", lzma.compress(JSON_LINES.encode() * 99)[:60], "damaged or cut off .*; copy it again"),
        ("number.json", b"3", "no text under 'text'; it has: int"),
        ("list.jsonl", b'{"text": ["the", "sea"], "n": 1}\n{"text": 2}', "'text' holds no text but a list; write each document's text into"),
        ("nested.jsonl", b'{"data": {"text": "the sea"}}\n{}', "it has: data; write each document's text into a field `text`"),
        ("packed.jsonl", gzip.compress(b"{}", mtime=0), r"is compressed \(gzip\); rename it to end in .gz"),
        ("table.txt", b"PAR1" + bytes(99), "is a Parquet file; rename it to end in .parquet"),
        ("lines.txt", JSON_LINES.encode(), "contains JSON lines; rename it to end in .jsonl"),
        ("commas.csv", b"text\nthe sea, is blue\n", r"commas.csv:2: this row has more cells .*',' in double quotes"),
        ("blank-line.csv", b"\ntext\nthe sea\n", "first line of a table must name its columns, but it is empty"),
        ("unclosed.csv", b'text\n"the sea\nthe sky\n', r"unclosed.csv:2: not a table .*in double quotes, and double those"),
        ("leading.tsv", b'text\tid\n"The sea," he said\t1\n', r"leading.tsv:2: not a table .*in double quotes, and double those"),
        ("quotes.csv", b'text\n"The" sea\n', "not a table .*in double quotes, and double those within it"),
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000 + b"}\n{}", r"deep.jsonl:1: not JSON \(it is nested too deeply\)"),
        ("digits.jsonl", b'{"n": ' + b"1" * 5000 + b"}\n{}", r"digits.jsonl:1: not JSON \(it has a number with too many"),
        ("blank.txt", b" \n" * 99, "has no text"),
        ("blank.jsonl", b'{"text": ""}\n' * 99, "has no text under 'text'"),
    ],
)  # fmt: skip
def test_files_that_hold_no_text_are_refused_with_the_way_out(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        Corpus(path=tmp_path / name).check()


def test_empty_cells_behind_the_last_column_are_no_text(tmp_path):
    (tmp_path / "c.csv").write_text("text,id\nthe sea,1,,\nthe sky,2, \n")
    assert [text for _, text in read(tmp_path / "c.csv")] == ["the sea", "the sky"]


def test_blanks_behind_a_closing_quote_are_no_text(tmp_path):
    within = ['a ,"" ,b\n"" ,c "" , d', "plain", 'x" ,y']
    cells = ['"a ,"""" ,b\n"""" ,c """" , d"  ', "plain", '"x"" ,y" ']
    (tmp_path / "d.csv").write_text("id,text\n" + "".join(f'"{i}" ,{cell}\n' for i, cell in enumerate(cells)))
    assert read(tmp_path / "d.csv") == [(str(i), text) for i, text in enumerate(within)]


def test_quotes_within_a_cell_without_quotes_are_text(tmp_path):
    rows = ['1,a 7" nail', '2," , two"', '3,say "sea" ', '4,"the ""sky"" " ', '5,6" "', '6," ,"" ,\n ,"" "']
    (tmp_path / "q.csv").write_text("id,text\n" + "".join(f"{row}\n" for row in rows))
    wanted = ['a 7" nail', " , two", 'say "sea" ', 'the "sky" ', '6" "', ' ," ,\n ," ']
    assert [text for _, text in read(tmp_path / "q.csv")] == wanted


def test_text_that_begins_like_deep_json_is_text(tmp_path):
    (tmp_path / "c.txt").write_text("[" * 100_000)
    assert "".join(text for _, text in read(tmp_path / "c.txt")) == "[" * 100_000


def test_rows_of_arrow_files_and_of_arrow_streams_are_the_same(tmp_path):
    pa = pytest.importorskip("pyarrow")
    rows = pa.Table.from_pylist(ROWS)
    for name, opened in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with opened(str(tmp_path / name), rows.schema) as written:
            written.write_table(rows, max_chunksize=2)
        assert [text for _, text in read(tmp_path / name)] == [row["text"] for row in ROWS]


def test_column_that_is_not_utf_8_is_one_clear_sentence(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array(["fährt".encode("latin-1")]).buffers())
    pq.write_table(pa.table({"text": latin}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="not a readable Parquet file .*'utf-8' codec can't decode"):
        read(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("state.json", {}, "state.json lists no data files; save the dataset again"),
        ("state.json", {"_data_files": [{"filename": "a.arrow"}]}, "the file a.arrow .* is missing; copy it again"),
        ("dataset_dict.json", {"splits": ["train"]}, "has lost the folders of its splits; copy it again"),
    ],
)
def test_saved_datasets_that_are_not_whole_are_refused(tmp_path, file, content, said):
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        Corpus(path=tmp_path).check()


def test_rows_whose_id_is_null_are_named_by_their_number(tmp_path):
    path = lines(tmp_path / "c.jsonl", [{"id": None, "text": "the sea"}, {"id": 0, "text": "the sky"}])
    assert [name for name, _ in read(path)] == ["1", "0"]


def test_fingerprint_follows_the_way_a_file_is_read(tmp_path):
    for content, names in ((json.dumps(ROWS), ("a.txt", "a.json")), ("text\nthe sea\n", ("b.txt", "b.csv", "b.tsv"))):
        for name in names:
            (tmp_path / name).write_text(content)
        found = [json.dumps(Corpus(path=tmp_path / name).fingerprint(), sort_keys=True) for name in names]
        assert len(set(found)) == len(names)


def test_what_names_no_dataset_and_no_way_to_divide_text_is_refused_by_check(tmp_path):
    file = lines(tmp_path / "c.jsonl", ROWS)
    for corpus, said in (
        (Corpus(dataset=str(file)), "is a file; give it as `path`"),
        (Corpus(dataset=str(tmp_path / "nowhere")), "no such folder"),
        (Corpus(path=tmp_path / "someone" / "prose"), "for a dataset on the hub, use `dataset`"),
        (
            Corpus(path=file, split="sentences"),
            "'sentences' is not a way to divide text; use none, paragraphs, lines",
        ),
    ):
        with pytest.raises(InputError, match=said):
            corpus.check()


def test_special_tokens_alone_are_no_text(tmp_path, tokenizer):
    path = lines(tmp_path / "c.jsonl", [{"text": "<eos>" * 40}] * 3)
    with pytest.raises(InputError, match="only special tokens"):
        Corpus(path=path, context=16).tokenize(tokenizer)


def test_lead_that_is_an_ordinary_token_is_not_counted(tmp_path, tokenizer):
    path = lines(tmp_path / "c.jsonl", [{"text": "the sea is blue and the sky"}] * 3)
    leads = [Corpus(path=path, context=16, bos=bos).tokenize(tokenizer) for bos in ("<bos>", "a")]
    assert leads[1].lead == 1 and not leads[1].mask[:, 0].any()
    assert leads[0].n_tokens == leads[1].n_tokens


def test_a_folder_without_text_is_refused_with_what_is_in_it(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"this folder has no \.txt, .* files; it contains picture\.png"):
        Corpus(path=tmp_path).check()


class Copied(str):
    """Counts the characters of its slices, and of theirs."""

    characters = 0

    def __getitem__(self, key):
        part = Copied(super().__getitem__(key))
        Copied.characters += len(part)
        return part


def test_dividing_a_giant_text_copies_each_character_once():
    text = Copied((SENTENCE + "\n\n") * 5000)
    parts = list(_parts(text))
    assert len(parts) > 50 and "".join(parts) == text
    assert Copied.characters == len(text)


def test_one_text_is_divided_into_documents_unless_that_is_not_wanted(tmp_path, tokenizer):
    book = "\n\n".join(f"Chapter {i}. " + SENTENCE * 40 for i in range(8))
    (tmp_path / "book.txt").write_text(book)
    lines(tmp_path / "book.jsonl", [{"text": book}])
    for name in ("book.txt", "book.jsonl"):
        parts = read(tmp_path / name)
        assert len(parts) > 2 and "".join(text for _, text in parts) == book
        assert sum(text.startswith("Chapter") for _, text in parts) == 8  # a new part begins with each
    data = Corpus(path=tmp_path / "book.txt", context=16).tokenize(tokenizer)
    assert "divided into" in data.warnings[0]
    assert len(read(tmp_path / "book.txt", split="none")) == 1
    assert [text[:10] for _, text in read(tmp_path / "book.txt", split="paragraphs")] == [
        f"Chapter {i}." for i in range(8)
    ]
    assert len(read(tmp_path / "book.txt", split="lines")) == 8
    unbroken = tmp_path / "unbroken.txt"
    unbroken.write_text("x" * 9000)
    assert [len(text) for _, text in read(unbroken)] == [900] * 10


def test_a_row_without_the_field_names_the_one_that_has_text(tmp_path):
    with pytest.raises(InputError, match="it has: id, content; set corpus.field to 'content'"):
        Corpus(path=lines(tmp_path / "c.jsonl", [{"id": "1", "content": "the sea"}])).check()
    with pytest.raises(InputError, match="already tokens"):
        Corpus(path=lines(tmp_path / "c.jsonl", [{"input_ids": [1, 2]}])).check()


# --- several fields, and repeated documents ---


def words_of(*numbers):
    return " ".join(f"word{n}" for n in numbers)


def test_texts_of_several_fields_are_joined(tmp_path):
    rows = [{"title": "One", "body": "first text"}, {"title": None, "body": "second"}, {"title": "", "body": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = Notes()
    texts = [text for _, text in Corpus(path=path, field=["title", "body"]).texts(notes=notes)]
    assert texts == ["One\n\nfirst text", "second"] and notes.empty == 1
    with pytest.raises(InputError, match="no text under 'tail'; it has: title, body"):
        list(Corpus(path=path, field=["title", "tail"]).texts())


@pytest.mark.parametrize(("dedup", "kept"), [(None, [0, 1, 2, 3, 4]), ("exact", [0, 2, 3, 4]), ("near", [0, 3, 4])])
def test_repeated_documents_are_dropped_and_counted(tmp_path, dedup, kept):
    first = words_of(*range(200))
    texts = [
        first,
        first.replace(" ", "\n"),  # the same words
        words_of(*range(198), 900, 901).title(),  # 194 of 198 runs of five words are the same
        words_of(*range(100), *range(1000, 1100)),  # a third of the runs are
        words_of(*range(2000, 2200)),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    notes = Notes()
    found = [text for _, text in Corpus(path=path, dedup=dedup).texts(notes=notes)]
    assert found == [texts[i] for i in kept]
    assert (notes.duplicates, notes.documents) == (5 - len(kept), 5)
    assert any("duplicates of earlier ones" in said for said in notes.warnings()) == (dedup is not None)


def test_options_that_are_not_used_leave_the_fingerprint_as_it_was(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a b c"}\n')
    assert "dedup" not in Corpus(path=path).fingerprint()
    assert Corpus(path=path, dedup="near").fingerprint() != Corpus(path=path, dedup="exact").fingerprint()
