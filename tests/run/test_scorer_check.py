"""Scorers are checked on explanations that are wrong in known ways, under a judge that makes no error of its own."""

from __future__ import annotations

import asyncio
import json

import pytest
from saeval_plugins._known import N_LATENTS, explanations, neighbour_of, words_of
from saeval_plugins.explainers.known import Hedged, KnownMeaning, WrongToken
from saeval_plugins.llms.oracle import Oracle
from saeval_plugins.scorers.detection import Detection
from saeval_plugins.scorers.simulation import Simulation
from saeval_plugins.scorers.surprisal import Surprisal
from saeval_plugins.sources.known import Known

import saeval
from saeval import InputError, LLMError
from saeval.activations.store import ActivationWriter
from saeval.plugin import Explanation, LatentId, Request
from saeval.testing.contracts import check_source
from saeval.testing.toys import context, make_examples

SMALL = {
    "source.with.documents": 220,
    "latents.n": 20,
    "latents.min_windows": 8,
    "sampler.with.score": 8,
    "sampler.with.non_activating.n": 20,
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The result of a small check; embedding's model is none of the rules."""
    folder = tmp_path_factory.mktemp("scorer-check")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        without = {f"scorers.{name}.when.latents": 0 for name in ("embedding", "surprisal", "simulation")}
        result = saeval.run("scorer-check", overrides=SMALL | without, out=folder / "run")
    written = json.loads((folder / "run" / "results.json").read_text())
    assert written["cells"][0]["powers"] and result.synthetic
    report = (folder / "run" / "report" / "report.md").read_text()
    assert "| windows=random | detection | " in report and "| wrong\\_token |" in report
    assert "natural precision" in report
    return {cell.axes["windows"]: cell for cell in result.cells}


@pytest.fixture(scope="module")
def powers(checked):
    """Power and difference by scorer and corruption, for windows drawn at random."""
    return {(p.scorer, p.variant): (p.power, p.difference) for p in checked["random"].powers}


def test_every_corruption_is_seen_by_some_scorer_with_fifty_latents(checked):
    best = {}
    for power in (power for cell in checked.values() for power in cell.powers):
        best[power.variant] = max(power.power, best.get(power.variant, 0.0))
    assert best.pop("paraphrased") == 0.0
    assert len(best) == 7 and min(best.values()) >= 0.8


def test_powers_have_intervals_around_them_and_none_where_nothing_moves(checked):
    for power in (power for cell in checked.values() for power in cell.powers):
        low, high = power.ci95
        assert low - 0.05 <= power.power <= high + 0.05  # fewer runs are drawn at the ends
        assert power.variant != "paraphrased" or (low, high) == (0, 0)


def test_a_paraphrase_moves_no_scorer(powers):
    assert {found for (_, variant), found in powers.items() if variant == "paraphrased"} == {(0.0, 0.0)}


def test_scorers_are_blind_where_their_question_makes_them(powers):
    # A word nearby satisfies a question about windows, and not one about tokens.
    assert powers["detection", "wrong_token"][1] < 0.2 and powers["fuzzing", "wrong_token"][1] == 0.5
    # Wrong marks come from one other latent, so breadth is seen only where that one is among what is added.
    assert powers["fuzzing", "twice_too_broad"][0] < 0.5
    # Texts written from the explanation show breadth at once, and nothing of what the explanation omits.
    assert powers["generation", "twice_too_broad"][1] > 0.2 and powers["generation", "half_missing"][1] == 0
    # Ten times too broad hardly moves balanced accuracy, although nine of ten windows that fit are wrong.
    assert 0 < powers["detection", "ten_times_too_broad"][1] < 0.05


def test_hard_windows_show_breadth_many_times_larger_and_natural_rates_do_not_depend_on_them(checked):
    found = {
        kind: {p.variant: p.difference for p in cell.powers if p.scorer == "detection"}
        for kind, cell in checked.items()
    }
    assert found["importance"]["twice_too_broad"] > 10 * found["random"]["twice_too_broad"]
    for cell in checked.values():
        rates = {row.variant: row.natural for row in cell.scores if row.scorer == "detection" and row.natural}
        assert rates["explanation"].precision == 1.0 and rates["explanation"].iou == 1.0
        assert rates["ten_times_too_broad"].precision < 0.35 < 0.8 < rates["half_missing"].precision
        assert rates["half_missing"].iou < 0.7
        low, high = rates["ten_times_too_broad"].precision_ci95
        assert low < rates["ten_times_too_broad"].precision < high < 0.5
        assert rates["explanation"].ceiling is None and "unknown" in rates["explanation"].not_identifiable
        # Wrong marks come from another latent's windows, which are no sample of the corpus.
        assert all(row.natural is None for row in cell.scores if row.scorer == "fuzzing")


def test_scorers_that_do_not_measure_the_explanation_have_no_natural_rates(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    spec = {
        "saeval": 1, "task": "judges", "version": "1", "llms": {"judge": {"model": "oracle/judge"}},
        "source": {"use": "known", "with": {"documents": 60, "rate": 0.03}}, "latents": {"n": 5, "min_windows": 8},
        "sampler": {"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "explainer": "known", "measure": [],
        "scorers": {
            "detection": {"with": {"mode": "list"}}, "consistency": {"with": {"vary": "repeat"}}, "injection": {},
        },
    }  # fmt: skip
    (cell,) = saeval.run(spec, out=tmp_path / "run").cells
    scored = {row.scorer: row for row in reversed(cell.scores)}
    assert scored.keys() == {"detection", "consistency", "injection"} and all(row.windows for row in scored.values())
    assert {name for name, row in scored.items() if row.natural} == {"detection"}


def test_the_source_keeps_its_contract_and_fires_where_its_words_are(tmp_path):
    check_source(Known(documents=20), tmp_path)
    writer = ActivationWriter(tmp_path / "store")
    Known(documents=100).collect(writer)
    store = writer.finish()
    for latent in (0, 17, N_LATENTS - 1):
        windows = store.windows(latent, 32)
        shown = store.examples(LatentId("known", latent), windows.ids, 32)
        fired = {t.strip() for e in shown for t, a in zip(e.tokens, e.activations, strict=True) if a > 0}
        assert fired and fired <= set(words_of(latent))
        beside = [e for e in shown if set(words_of(neighbour_of(latent))) & {t.strip() for t in e.tokens}]
        assert 0 < len(beside) < len(shown)


def test_explanations_say_what_the_oracle_reads_in_them():
    known = context(latent=LatentId("known", 4))
    texts = {cls: asyncio.run(cls().explain(make_examples(), known)).text for cls in (KnownMeaning, Hedged, WrongToken)}
    assert texts[KnownMeaning] == "the words 'ferret' and 'pigeon'"
    assert texts[Hedged] == "the words 'ferret' and 'pigeon', or perhaps names of tools"
    judged = {cls: judge(texts[cls], "a ferret", "my hammer", "calm") for cls in texts}
    assert judged == {KnownMeaning: "[1, 0, 0]", Hedged: "[1, 1, 0]", WrongToken: "[0, 0, 1]"}
    assert judge(explanations(4)["negated"][0], "a ferret", "my hammer") == "[0, 1]"
    assert judge(texts[KnownMeaning], "<<ferret>> and <<pigeon>>", "<<a>> ferret <<or>> <<pigeon>>") == "[1, 0]"
    elsewhere = asyncio.run(KnownMeaning().explain(make_examples(), context()))
    assert elsewhere.status == "failed" and "does not belong to the source" in elsewhere.reason


def judge(explanation, *windows, **options):
    lines = [f"Explanation: {explanation}", *(f"Window {i}: {w}" for i, w in enumerate(windows, 1))]
    return asyncio.run(Oracle(model="judge", **options).complete(Request.of("\n".join(lines)))).text


def test_an_oracle_with_errors_makes_as_many_as_it_says():
    text = explanations(0)["known"][0]
    windows = [f"line {i}" for i in range(2000)]
    false_alarms = json.loads(judge(text, *windows, specificity=0.9))
    hits = json.loads(judge(text, *(f"otter {w}" for w in windows), specificity=0.9, sensitivity=0.8))
    assert 160 < sum(false_alarms) < 240 and 1520 < sum(hits) < 1680
    assert json.loads(judge(text, *windows, specificity=0.9)) == false_alarms


def explained(latent, *shown, errors=1.0, attention=1.0, tested=()):
    """What `oracle/explainer` says of a latent: of windows, and of those that a test shows it."""
    lines = ["Windows it was written from:", *(f"Window {i}: {w}" for i, w in enumerate(shown, 1))]
    lines += ["Active, but missed:", *(f"Window {i}: {w}" for i, w in enumerate(tested, 1))] if tested else []
    oracle = Oracle(model="explainer", errors=errors, attention=attention)
    text = asyncio.run(oracle.complete(Request.of("\n".join(lines)))).text.removeprefix("EXPLANATION: ")
    return next(name for name, (known, _) in explanations(latent).items() if known == text)


def test_an_explainer_with_errors_makes_as_many_as_it_says_and_none_that_what_it_reads_rules_out():
    otter, falcon, rabbit = "an<< otter>> {}", "a<< falcon>> {}", "a rabbit {}"
    drawn = [explained(0, otter.format(i), errors=0.3, attention=0.0) for i in range(400)]
    assert 90 < sum(name != "known" for name in drawn) < 150 and len({*drawn}) == 7
    assert {explained(0, otter.format(i)) for i in range(60)} == {
        "twice_too_broad", "ten_times_too_broad", "half_missing", "hedged"
    }  # fmt: skip
    assert "half_missing" not in {explained(0, otter.format(i), falcon.format(i)) for i in range(60)}
    unread = {explained(0, otter.format(i), falcon.format(i), attention=0.0) for i in range(60)}
    assert "half_missing" in unread
    tests = [(falcon.format(i), rabbit.format(i), f"a hammer {i}") for i in range(20)]
    assert {explained(0, otter.format(0), tested=texts, attention=0.0) for texts in tests} == {"known"}


def test_an_oracle_judges_known_explanations_only():
    with pytest.raises(LLMError, match="the oracle does not know the explanation 'ships'"):
        judge("ships", "a window")
    with pytest.raises(InputError, match="there are oracle/judge, oracle/base, oracle/writer and oracle/explainer"):
        Oracle(model="other").check()


@pytest.mark.parametrize("scorer", [Surprisal(), Simulation(), Detection(mode="list")])
def test_every_scorer_gets_full_marks_for_a_true_explanation(scorer):
    examples = make_examples("otter", decoy=None)
    oracle = Oracle(model="judge" if scorer.name == "detection" else "base")
    found = asyncio.run(scorer.score(Explanation(text=explanations(0)["known"][0]), examples, context(oracle)))
    assert found.values[scorer.metrics[0].name] > 0.9
