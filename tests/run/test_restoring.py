"""One latent's fault costs one latent: text that cannot be written, and work kept in another shape."""

from __future__ import annotations

import json
import sqlite3
import zlib

import pytest
import yaml
from fake_server import content
from planted_run import spec, truthful, truthful_server

import saeval
from saeval._util.encodable import clean, clean_text
from saeval._util.seeding import content_hash
from saeval.activations.tokens import Corpus
from saeval.plugin.registry import Registry
from saeval.records.messages import Message, Request
from saeval.task.loader import load_task

HALF = "\ud83d"
SMALL = {"baselines": [], "scorers": {"detection": {}}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1234567890abcdef")
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)


# --- text ---


def test_halves_are_joined_or_replaced_wherever_they_are():
    assert clean_text("fine: \U0001f600 é") == "fine: \U0001f600 é"
    assert clean_text("\ud83d\ude00") == "\U0001f600"
    assert clean({f"k{HALF}": [HALF, ("a", {"b": f"x{HALF}"})]}) == {"k�": ["�", ("a", {"b": "x�"})]}
    request = clean(Request((Message("user", f"a{HALF}"),), stop=(HALF,)))
    assert request == Request((Message("user", "a�"),), stop=("�",))
    assert content_hash(HALF) != content_hash("\udc00")  # and neither raises


@pytest.mark.parametrize("model", ["openai_compatible/rules", pytest.param("openai/rules", marks=pytest.mark.slow)])
def test_half_an_emoji_in_replies_costs_nothing_and_no_later_run(tmp_path, model):
    """Explanations, judges' replies, refusals and errors may all be cut within a character."""

    def reply(messages):
        judged = messages[-1]["content"].startswith("Explanation:")
        return truthful(messages) + ("" if judged else f" {HALF}")

    refused = content("no", refusal=f"I will not {HALF}")
    with truthful_server() as server:
        server.reply = reply
        server.chooses = lambda _, number: refused if number == 3 else None
        role = {"model": model, "api_base": server.url, "max_tokens": 100, "retries": 1}
        task = spec(server, **SMALL, llms={"explainer": role, "judge": role})
        first = saeval.run(task, out=tmp_path / "run")
        asked = len(server.calls)
        again = saeval.run(task, out=tmp_path / "run")
        assert len(server.calls) == asked
        other = saeval.run(task, out=tmp_path / "other")  # asks again only about the latent whose call was refused
        assert asked < len(server.calls) < asked * 1.5
    assert first.cells == again.cells
    assert (first.cells[0].counts["explained"], other.cells[0].counts["explained"]) == (5, 6)
    texts = [row["text"] for row in first.explanations.to_pylist() if row["status"] == "ok"]
    assert texts and all("�" in text for text in texts)
    assert "�" in (tmp_path / "run" / "cells" / first.cells[0].cell / "explanations.jsonl").read_text()


def test_half_an_emoji_in_an_answer_that_an_earlier_version_kept_is_replaced(tmp_path):
    with truthful_server() as server:
        whole = saeval.run(spec(server, **SMALL), out=tmp_path / "run")
        database = sqlite3.connect(tmp_path / "cache" / "calls.sqlite")
        for key, kept in database.execute("SELECT key, answer FROM kept").fetchall():
            answer = json.loads(kept.partition("\n")[0])
            text = json.dumps({**answer, "text": answer["text"] + HALF})
            database.execute("UPDATE kept SET answer = ? WHERE key = ?", (signed(text), key))
        database.commit()
        again = saeval.run(spec(server, **SMALL), out=tmp_path / "again")
    assert again.cells[0].scores[0].n == whole.cells[0].scores[0].n


def signed(text):
    return f"{text}\n{zlib.crc32(text.encode()):08x}"


@pytest.mark.parametrize("kind", ["jsonl", "yaml"])
def test_half_an_emoji_in_a_file_of_explanations_is_replaced(tmp_path, kind):
    rows = [{"latent": i, "explanation": f"word {i} {HALF}"} for i in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    file = tmp_path / f"mine.{kind}"
    file.write_text(lines if kind == "jsonl" else json.dumps(rows))  # JSON is YAML
    with truthful_server() as server:
        result = saeval.run(
            spec(server, **SMALL, explainer={"use": "precomputed", "with": {"path": str(file)}}), out=tmp_path / "run"
        )
    assert result.cells[0].counts["explained"] == 6
    assert {row["text"][-1] for row in result.explanations.to_pylist()} == {"�"}


def test_half_an_emoji_in_a_spec_is_replaced(tmp_path):
    with truthful_server() as server:
        task = spec(server, **SMALL)
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task) + 'matrix: {"name\\uD800": ["x\\uD800", y]}\n')
        changes = {"description": f"d{HALF}"}
        result = saeval.run(tmp_path / "task.yaml", out=tmp_path / "run", overrides=changes, limit=1)
    assert [cell.axes for cell in result.cells] == [{"name�": "x�"}, {"name�": "y"}]
    built = load_task({**task, "matrix": {"a": [f"x{HALF}", "y"]}}, registry=Registry())
    assert [cell.axes for cell in built.cells] == [{"a": "x�"}, {"a": "y"}]


def test_text_of_a_corpus_and_names_of_its_files_can_be_written(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": f"n{HALF}", "text": f"some text {HALF}"}) + "\n")
    assert list(Corpus(path=tmp_path / "a.jsonl").texts()) == [("n�", "some text �")]


# --- shapes ---


def journal_of(run):
    return [json.loads(line.partition(" ")[2]) for line in (run / "journal.jsonl").read_text().splitlines()]


def rewrite(run, entries):
    texts = [json.dumps(entry) for entry in entries]
    lines = [f"{zlib.crc32(text.encode()):08x} {text}\n" for text in texts]
    (run / "journal.jsonl").write_text("".join(lines))


def with_result(**changes):
    return lambda value: {**value, "result": {**value["result"], **changes}}


SHAPES = {
    "nothing": lambda value: None, "number": lambda value: 7, "list": lambda value: [value], "no result": lambda value: {},
    "no usage": lambda value: {"result": value["result"]}, "usage of text": lambda value: {**value, "usage": "many"},
    "endless usage": lambda value: {**value, "usage": {"usd": float("inf")}},
    "negative usage": lambda value: {**value, "usage": {"input_tokens": -5, "usd": -9.0}},
    "other fields": with_result(further=1), "status": with_result(status="splendid"), "text": with_result(text=[1], values=3),
    "out of range": with_result(values={"balanced_accuracy": 99.0}, text=3), "no headline": with_result(values={"other": 0.5}, text=3),
    "not a number": with_result(values={"balanced_accuracy": float("nan")}, text=3),
}  # fmt: skip


def test_journal_of_another_shape_is_done_again_from_kept_answers(tmp_path):
    with truthful_server() as server:
        task = spec(server, **SMALL)
        whole = saeval.run(task, out=tmp_path / "run")
        asked, entries = len(server.calls), journal_of(tmp_path / "run")
        half = len(entries) // 2
        for shift in (0, half):  # so that each shape meets explanations as well as scores
            changes = [list(SHAPES.values())[(i + shift) % len(SHAPES)] for i in range(len(entries))]
            changed = [{**e, "value": change(e["value"])} for e, change in zip(entries, changes, strict=True)]
            rewrite(tmp_path / "run", changed)
            assert saeval.run(task, out=tmp_path / "run").cells == whole.cells
        rewrite(tmp_path / "run", ["text", {"key": 3, "value": 1}, {"value": 2}, [], *entries])
        assert saeval.run(task, out=tmp_path / "run").cells == whole.cells
        assert len(server.calls) == asked


def test_what_was_asked_in_another_form_costs_no_run(tmp_path):
    with truthful_server() as server:
        task = spec(server, **SMALL)
        whole = saeval.run(task, out=tmp_path / "run")
        entries = journal_of(tmp_path / "run")
        bomb = "eJ" + "A" * 40
        rewrite(tmp_path / "run", [{**e, "value": with_result(asked=bomb)(e["value"])} for e in entries])
        assert saeval.run(task, out=tmp_path / "run").cells == whole.cells
    assert set(saeval.read(tmp_path / "run").calls["status"].to_pylist()) == {"left out"}


ANSWERS = {
    "list": [1], "number": 5, "null": None, "no text": {"usage": {}}, "text of numbers": {"text": [1, 2]}, "empty": {"text": " "},
    "reason": {"text": "x", "finish_reason": 3}, "usage": {"text": "x", "usage": {"input_tokens": "many"}},
    "logprobs": {"text": "x", "logprobs": [{"token": 1}]},
}  # fmt: skip


def test_kept_answer_of_another_shape_is_asked_for_again(tmp_path):
    with truthful_server() as server:
        task = spec(server, **SMALL)
        whole = saeval.run(task, out=tmp_path / "run")
        asked = len(server.calls)
        database = sqlite3.connect(tmp_path / "cache" / "calls.sqlite")
        keys = sorted(key for (key,) in database.execute("SELECT key FROM kept"))
        for key, answer in zip(keys, ANSWERS.values(), strict=False):
            database.execute("UPDATE kept SET answer = ? WHERE key = ?", (signed(json.dumps(answer)), key))
        database.commit()
        again = saeval.run(task, out=tmp_path / "again")
        assert again.cells == whole.cells
        assert len(server.calls) == asked + len(ANSWERS)
