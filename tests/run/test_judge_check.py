"""Judges are checked on latents whose meaning is known, and what came of it stands beside what they judge later."""

from __future__ import annotations

import asyncio
import itertools
import re

import numpy as np
import pytest
import yaml
from fake_server import fake_server
from root import ROOT
from saeval_plugins.explainers.precomputed import Precomputed
from saeval_plugins.scorers.consistency import Consistency
from saeval_plugins.scorers.detection import Detection
from saeval_plugins.scorers.fuzzing import Fuzzing
from saeval_plugins.sources.rules import Rules

import saeval
from saeval import InputError
from saeval.activations.store import ActivationWriter
from saeval.plugin import Explanation, LatentId
from saeval.testing.contracts import check_scorer, check_source
from saeval.testing.planted import rule_judge
from saeval.testing.toys import ScriptedLLM, context, make_examples

TASKS = ROOT / "tasks"
RULES = TASKS / "judge-check" / "rules.yaml"
TRUE = Explanation(text="the word 'harbor'")


def rules_file(path, *rules):
    path.write_text(yaml.safe_dump([{"latent": i, "explanation": e, "pattern": p} for i, (e, p) in enumerate(rules)]))
    return path


def corpus_file(path, *texts):
    folder = path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"d{i}.txt").write_text(text)
    return {"path": folder, "context": 8}


# --- the source


def test_rules_fire_on_the_words_they_match_and_on_no_others(tmp_path):
    rules = rules_file(
        tmp_path / "rules.yaml",
        ("numbers", r"\b\d+\b"),
        ("after 'of the'", r"of the (\w+)"),
        ("sea phrase", "grey sea"),
    )
    text = "In 1851 the captain of the old ship saw 40 whales, and the grey  sea of the north."
    corpus = corpus_file(tmp_path, text, "Nothing of the kind, but 7 grey sea\n\nbirds.")
    source = Rules(path=rules, corpus=corpus)
    writer = ActivationWriter(tmp_path / "store")
    source.collect(writer)
    store = writer.finish()
    fires = {}
    for latent in range(3):
        position, value = store.activations(latent)
        assert ((value >= 1) & (value <= 4)).all()
        words = [store._vocabulary.strings(store.tokens.reshape(-1, 1)[[p]])[0][0].strip() for p in position]
        fires[latent] = words
    assert fires == {0: ["1851", "40", "7"], 1: ["old", "north", "kind"], 2: ["grey", "sea"]}
    rows = [row[None, :n] for row, n in zip(store.tokens, store.lengths, strict=True)]
    assert "".join(t for row in rows for t in store._vocabulary.strings(row)[0]).startswith(text)


def test_source_keeps_its_contract(tmp_path):
    rules = rules_file(tmp_path / "rules.yaml", ("a", r"\ba\b"), ("vowels", "[aeiou]{2}"))
    check_source(Rules(path=rules, corpus=corpus_file(tmp_path, "a sea is a moon " * 9, "I see a bee " * 7)), tmp_path)


def test_the_shipped_rules_fire_often_enough_and_know_their_explanations(tmp_path):
    source = Rules(path=RULES, corpus={"path": TASKS / "quickstart" / "prose.jsonl"})
    source.check()
    writer = ActivationWriter(tmp_path / "store")
    source.collect(writer)
    store = writer.finish()
    windows = [store.windows(i, 32) for i in range(store.n_latents)]
    assert store.n_latents == 24 and min(len(w.ids) for w in windows) > 60
    assert min(len(np.unique(store.document_of(w.ids, 32))) for w in windows) >= 20
    told = asyncio.run(Precomputed(path=RULES).explain(make_examples(), context(latent=LatentId("rules", 0))))
    assert told.text == "numbers written in digits"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- {latent: 0, explanation: a, pattern: '('}", "0.pattern|pattern"),
        ("- {latent: 1, explanation: a, pattern: a}", "number the latents in order"),
        ("- {latent: 0, explanation: a, pattern: 'x*'}", "fire everywhere"),
        ("- {latent: 0, explanation: a}", "pattern"),
        ("{a: b}", "should be a list"),
        ("- [", "not YAML"),
    ],
)
def test_bad_rules_are_refused_in_a_sentence(content, said, tmp_path):
    (tmp_path / "rules.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        Rules(path=tmp_path / "rules.yaml", corpus=corpus_file(tmp_path, "a b")).check()


# --- consistency


def consistency(judge, vary, scorer=None, examples=None):
    scorer = Consistency(scorer=scorer or Detection(), vary=vary)
    return asyncio.run(scorer.score(TRUE, examples or make_examples(), context(judge)))


@pytest.mark.parametrize("vary", ["order", "repeat"])
@pytest.mark.parametrize("kind", [Detection, Fuzzing])
def test_a_judge_that_goes_by_the_windows_agrees_with_itself(kind, vary):
    found = consistency(rule_judge(), vary, kind())
    assert found.values == {"agreement": 1.0, "kappa": 1.0} and found.notes == {"answered_twice": 40, "asked": 40}


def test_a_judge_that_goes_by_the_place_in_the_list_is_found_out():
    first_two = ScriptedLLM(
        lambda request: str(([1, 1, 0, 0, 0] * 10)[: request.messages[-1].content.count("\nWindow ")])
    )
    found = consistency(first_two, "order")
    # Of five windows only the one in the middle keeps its answer.
    assert found.values["agreement"] == pytest.approx(0.2)
    assert found.values["kappa"] < 0
    assert consistency(first_two, "repeat").values["agreement"] == 1.0


def test_a_judge_that_answers_at_random_is_found_out_by_asking_again():
    def noisy(request):
        rng = np.random.default_rng(request.repeat + len(request.messages[-1].content))
        return str([int(x) for x in rng.integers(2, size=request.messages[-1].content.count("\nWindow "))])

    llm = ScriptedLLM(noisy)
    found = consistency(llm, "repeat", examples=make_examples(activating=100, non_activating=100))
    assert abs(found.values["kappa"]) < 0.25
    asked = [(r.messages, r.repeat) for r in llm.requests]
    assert len(set(asked)) == len(asked)  # no second asking could come from a cache


def test_order_shows_the_same_windows_together_reversed():
    llm = rule_judge()
    consistency(llm, "order", examples=make_examples(activating=6, non_activating=6))
    prompts = [re.findall(r"Window \d+: (.*)", r.messages[-1].content) for r in llm.requests]
    assert [len(p) for p in prompts] == [5, 5, 2, 5, 5, 2]
    assert [list(reversed(p)) for p in prompts[:3]] == prompts[3:]


@pytest.mark.parametrize("activating", range(2, 8))
def test_order_does_not_compare_a_window_that_is_alone_in_its_prompt(activating):
    """A judge that says 1 to the first window only changes its answers on the first and the last one of each prompt."""
    first = ScriptedLLM(lambda request: str([1, *[0] * (request.messages[-1].content.count("\nWindow ") - 1)]))
    found = consistency(first, "order", Detection(batch=3), make_examples(activating=activating, non_activating=5))
    asked = activating + 5
    prompts = [3] * (asked // 3) + [2] * (asked % 3 == 2)
    assert found.notes == {"answered_twice": sum(prompts), "asked": sum(prompts)}
    assert found.values["agreement"] == pytest.approx(1 - 2 * len(prompts) / sum(prompts))
    repeated = consistency(first, "repeat", Detection(batch=3), make_examples(activating=activating, non_activating=5))
    assert repeated.notes == {"answered_twice": asked, "asked": asked}


def test_order_is_skipped_where_there_is_one_window():
    llm = rule_judge()
    found = consistency(llm, "order", examples=make_examples(activating=1, non_activating=0))
    assert found.status == "skipped" and not llm.requests


@pytest.mark.parametrize("scorer", [Detection(batch=1), Fuzzing(), Detection(mode="probability")])
def test_order_is_skipped_where_each_prompt_has_one_window(scorer):
    llm = rule_judge(scores=scorer.mode == "probability")
    found = consistency(llm, "order", scorer, make_examples(decoy=None))
    assert found.status == "skipped" and "use `vary: repeat`" in found.reason and not llm.requests
    assert consistency(llm, "repeat", scorer, make_examples(decoy=None)).values["agreement"] == 1.0


def test_a_judge_that_always_says_no_has_no_kappa():
    never = ScriptedLLM(lambda request: str([0] * request.messages[-1].content.count("\nWindow ")))
    assert consistency(never, "order").values == {"agreement": 1.0}


def test_consistency_keeps_the_contract():
    check_scorer(Consistency(), rule_judge)
    check_scorer(Consistency(vary="repeat", scorer=Fuzzing(mode="probability")), lambda: rule_judge(scores=True))


# --- the task


def knowing(messages):
    """Judge as the shipped rules say, marks included."""
    rules = {rule["explanation"]: rule for rule in yaml.safe_load(RULES.read_text())}
    explanation, *windows, _ = messages[-1]["content"].splitlines()
    rule = rules[explanation.removeprefix("Explanation: ")]
    pattern = re.compile(rule["pattern"], re.IGNORECASE if rule.get("ignore_case") else 0)
    return str([int(fits(pattern, window.partition(": ")[2])) for window in windows])


def fits(pattern, window):
    bare = window.replace("<<", "").replace(">>", "")
    matches = [m.span(1 if pattern.groups else 0) for m in pattern.finditer(bare)]
    if "<<" not in window:
        return bool(matches)
    marks, at = [], 0
    for inside, piece in zip(itertools.cycle([False, True]), re.split("<<|>>", window), strict=False):
        marks += [(at, at + len(piece))] * inside
        at += len(piece)
    return all(any(a < end and b > begin for a, b in matches) for begin, end in marks)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_good_judge_passes_and_what_it_judges_later_says_so(tmp_path, own_cache):
    with fake_server(knowing) as server:
        judge = {"judge": "openai_compatible/good"}
        api = {"llms.judge.api_base": server.url}
        checked = saeval.run("judge-check", out=tmp_path / "check", llms=judge, overrides=api)
        found = {
            (r.scorer, r.variant): r
            for r in reversed(checked.cells[0].scores)
            if r.metric in ("balanced_accuracy", "agreement")
        }
        assert found["detection", "explanation"].value > 0.9 and found["fuzzing", "explanation"].value > 0.85
        assert found["detection", "shuffled_explanation"].value == pytest.approx(0.5, abs=0.12)
        assert found["order", "explanation"].value == found["repeat", "explanation"].value == 1.0
        assert checked.synthetic
        expected = {"explanation": 24, "shuffled_explanation": 20}  # floors are pooled over a part of the latents
        assert all(row.n == expected[variant] for (_, variant), row in found.items())

        later = {
            "saeval": 1, "task": "later", "version": "1",
            "llms": {"judge": {"model": "openai_compatible/good", "api_base": server.url}},
            "source": {"use": "rules", "with": {"path": str(RULES), "corpus": {"path": str(TASKS / "quickstart" / "prose.jsonl")}}},
            "latents": {"n": 2, "min_windows": 20},
            "sampler": {"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}},
            "explainer": {"use": "precomputed", "with": {"path": str(RULES)}},
            "scorers": {"detection": {}},
        }  # fmt: skip
        result = saeval.run(later, out=tmp_path / "later")
        (shown,) = result.judges
        assert shown.role == "judge" and shown.check.task == "judge-check" and shown.check.latents == 24
        assert {r.scorer for r in shown.check.scores} == {"detection", "fuzzing", "order", "repeat"}
        report = (tmp_path / "later" / "report" / "report.md").read_text()
        assert "(judge-check 1.0)" in report and "| shuffled\\_explanation |" in report

        later["llms"]["judge"]["model"] = "openai_compatible/other"
        result = saeval.run(later, out=tmp_path / "other")
        assert result.judges[0].check is None
        assert (
            "saeval run judge-check --llm judge=openai_compatible/other"
            in (tmp_path / "other" / "report" / "report.md").read_text()
        )


def test_the_role_that_is_checked_must_be_there(tmp_path):
    with pytest.raises(saeval.SpecError, match="checks: there is no role 'jury' under llms"):
        saeval.run("judge-check", overrides={"checks": "jury"}, out=tmp_path / "run")
