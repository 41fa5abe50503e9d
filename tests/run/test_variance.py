"""`variance:` asks judge and explainer again on some latents, and reports where the variance of scores comes from."""

from __future__ import annotations

import pytest

import saeval
from saeval._run import aggregate
from saeval.records import VarianceParts

SPEC = {
    "saeval": 1, "task": "variance", "version": "1",
    "llms": {"judge": {"model": "oracle/judge", "sensitivity": 0.8, "specificity": 0.9, "steady": False}},
    "source": {"use": "known", "with": {"documents": 100, "rate": 0.03}},
    "latents": {"n": 40, "min_windows": 12},
    "sampler": {"use": "random", "with": {"explain": 5, "score": 8, "non_activating": {"n": 8}}},
    "explainer": "known",
    "scorers": {"detection": {"with": {"mode": "list"}}},
    "baselines": ["half_missing"],
    "variance": {"latents": 30},
    "measure": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variance")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        (cell,) = saeval.run(SPEC, out=folder / "run").cells
        yield cell, (folder / "run" / "report" / "report.md").read_text()


def test_a_judge_that_errs_differently_each_time_is_the_noise_of_latents_that_are_all_alike(cell):
    (parts,) = cell[0].variance
    # Each latent has 8 + 8 windows; errors differ each time, and true explanations of all latents are equally right.
    expected = (0.8 * 0.2 / 8 + 0.9 * 0.1 / 8) / 4
    assert parts.scorer == "detection" and parts.n == 30
    assert parts.noise["judge"] == pytest.approx(expected, rel=0.35) and "explainer" not in parts.noise
    assert parts.latents < expected / 2 and parts.windows < expected / 2


def test_repeated_scores_are_rows_of_their_own_on_the_latents_asked_for(cell):
    rows = {(r.scorer, r.variant): r for r in reversed(cell[0].scores)}
    assert rows["detection_again", "explanation"].n == 30 and rows["detection", "explanation"].n == 40
    assert ("detection_again", "half_missing") not in rows
    assert "## Where the variance comes from" in cell[1] and "| judge, shared |" in cell[1]


def test_an_explainer_that_is_asked_again_is_no_baseline(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    replies = {"explainer": "EXPLANATION: words", "judge": "[1, 0, 1, 0, 1]"}
    llms = {role: {"model": f"scripted/{role}", "reply": reply} for role, reply in replies.items()}
    sampler = {"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}}
    changed = {"llms": llms, "sampler": sampler, "explainer": "default", "latents": {"n": 20, "min_windows": 12}}
    spec = {**SPEC, **changed, "baselines": ["top_tokens"], "variance": {"latents": 20, "corpus": True}}
    (cell,) = saeval.run(spec, out=tmp_path / "run").cells
    assert ("detection", "again") in {(row.scorer, row.variant) for row in cell.scores}
    assert {power.variant for power in cell.powers} == {"top_tokens"}
    assert not {"again", "half_0", "half_1"} & {name for row in cell.scores for name in row.floor}


def test_a_judge_that_repeats_itself_has_no_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    llms = {"judge": {"model": "oracle/judge", "sensitivity": 0.8}}
    spec = {**SPEC, "llms": llms, "latents": {"n": 6, "min_windows": 12}, "variance": {"latents": 6}}
    (parts,) = saeval.run(spec, out=tmp_path / "run").cells[0].variance
    assert parts.noise == {"judge": 0.0} and parts.shared == {"judge": 0.0}


def test_a_shared_shift_widens_the_interval_for_reruns_of_every_headline(tmp_path, monkeypatch):
    def shifted(outcome):
        yield VarianceParts(scorer="consistency", n=6, latents=0, windows=0, noise={}, shared={"judge": 0.01})

    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(aggregate, "_variance", shifted)
    spec = {**SPEC, "scorers": {"consistency": {"with": {"vary": "repeat"}}}, "latents": {"n": 6, "min_windows": 12}}
    row = saeval.run(spec, out=tmp_path / "run").cells[0].scores[0]
    assert row.metric == "agreement" and row.reliability is None  # nothing says how much of it is noise of windows
    assert row.value - row.prediction95[0] >= 1.96 * 0.02**0.5 > 2**0.5 * (row.value - row.ci95[0])


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        yield saeval.run({**SPEC, "variance": {"latents": 30, "corpus": True}}, out=folder / "run"), folder / "run"


def test_halves_of_the_corpus_share_no_document_and_all_latents_the_same_halves(halved):
    run = saeval.read(halved[1])
    document = {f"{row['context']}:{row['start']}": row["document"] for row in run.examples.to_pylist()}
    documents = {"half_0": set(), "half_1": set()}
    for row in run.judgements.to_pylist():
        if row["variant"] in documents:
            assert row["scorer"] == f"detection_{row['variant']}"
            documents[row["variant"]].add(document[row["example"]])
    assert len(documents["half_0"]) > 20 < len(documents["half_1"])
    assert not documents["half_0"] & documents["half_1"]


def test_scorers_of_a_half_ask_about_the_explanations_from_it_alone(halved):
    judged = {(row["scorer"], row["variant"]) for row in saeval.read(halved[1]).judgements.to_pylist()}
    assert {pair for pair in judged if "half" in pair[0]} == {
        (f"detection_{half}", half) for half in ("half_0", "half_1")
    }
    assert not any(row.failed for row in halved[0].cells[0].scores)


def test_text_that_makes_no_difference_has_no_component_and_other_scores_stay_as_they_were(halved, cell):
    (parts,) = halved[0].cells[0].variance
    expected = (0.8 * 0.2 / 8 + 0.9 * 0.1 / 8) / 4
    assert parts.noise["corpus"] < expected and parts.shared["corpus"] < expected / 10
    rows = {(r.scorer, r.variant, r.metric): r for r in halved[0].cells[0].scores}
    before = {(r.scorer, r.variant, r.metric): r for r in cell[0].scores}
    assert rows["detection_half_0", "half_0", "balanced_accuracy"].n > 20
    assert ("detection", "half_0", "balanced_accuracy") not in rows
    # The interval for reruns has the shift of the text; everything else is the same.
    same = {"prediction95": None, "usd": None}
    assert all(rows[key].model_copy(update=same) == row.model_copy(update=same) for key, row in before.items())
    assert "corpus, shared" in (halved[1] / "report" / "report.md").read_text()
