"""Boards and comparisons name options of samplers, explainers and scorers that differ, and keep their floors apart."""

from __future__ import annotations

import pytest
from made_run import cell, score_row
from planted_run import spec, truthful_server

import saeval
from saeval._compare.lift_rows import with_lifts
from saeval._compare.settings import differing_settings
from saeval.records import FloorSample, PartSettings


def settings(plugin="saeval/detection 0.1.0", sha=None, **options):
    return PartSettings(plugin=plugin, options=options, sha=sha or str(sorted(options.items())))


def having(**parts):
    parts = {name.replace("__", "."): part for name, part in parts.items()}
    return cell("a", [score_row("detection", 0.7)]).model_copy(update={"settings": parts})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one task and version: the first, one with another batch and more examples, and one like the first."""
    folder = tmp_path_factory.mktemp("runs")
    other = {
        "scorers": {"detection": {"with": {"batch": 1}}, "fuzzing": {"when": {"latents": 3}}},
        "sampler": {"use": "random", "with": {"explain": 12, "score": 20, "non_activating": {"n": 20}}},
    }
    with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        for name, changes in (("first", {}), ("other", other), ("again", {})):
            saeval.run(spec(server, **changes), out=folder / name)
    return folder


def test_joined_board_names_the_options_of_one_task_that_differ(runs):
    notes = saeval.join([runs / "first", runs / "other"]).notes
    assert "sampler: explain differs: 10 (first), 12 (other); this may cause part of a difference." in notes
    assert "scorers.detection: batch differs: 5 (first), 1 (other); this may cause part of a difference." in notes
    assert not any("fuzzing" in note or "explainer" in note for note in notes)
    assert not any("may cause" in note for note in saeval.join([runs / "first", runs / "again"]).notes)


def test_comparison_names_the_options_that_differ(runs):
    warnings = saeval.compare(runs / "first", runs / "other").warnings
    assert "scorers.detection: batch differs: 5 (A), 1 (B); this may cause part of the difference." in warnings
    assert not any("may cause" in text for text in saeval.compare(runs / "first", runs / "again").warnings)


def test_results_name_the_options_of_every_scorer_although_two_share_a_plugin(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    scorers = {"fast": {"use": "detection", "with": {"batch": 5}}, "slow": {"use": "detection", "with": {"batch": 1}}}
    with truthful_server() as server:
        result = saeval.run(spec(server, scorers=scorers), out=tmp_path / "run")
    (found,) = [made.settings for made in result.cells]
    assert {name: part.options["batch"] for name, part in found.items() if "batch" in part.options} == {
        "scorers.fast": 5,
        "scorers.slow": 1,
    }
    batches = [part[3][1]["batch"] for part in result.components["plugins"] if part[0] == "saeval/detection"]
    assert sorted(batches) == [1, 5]


def test_settings_that_a_run_varies_on_purpose_differ_only_if_another_run_has_others():
    few, many = having(sampler=settings(n=1)), having(sampler=settings(n=2))
    assert list(differing_settings({"a": [few, many], "b": [many, few]})) == []
    assert list(differing_settings({"a": [few, many], "b": [few]})) == ["sampler: n differs: 1 and 2 (a), 1 (b)"]


def test_plugins_prompts_and_long_options_that_differ_are_said_briefly():
    def text(a, b):
        return list(differing_settings({"a": [having(explainer=a)], "b": [having(explainer=b)]}))

    one = settings(n=1)
    assert text(one, settings("mine/other 1.0", n=1, m=2)) == [
        "explainer: plugin differs: saeval/detection 0.1.0 (a), mine/other 1.0 (b)"
    ]
    assert text(one, settings(n=1, sha="b")) == ["explainer: prompts or files differ (a, b)"]
    assert text(settings(words="x" * 500), settings(words="y" * 500))[0].count("xx") == 19
    assert text(settings(**dict.fromkeys("abcdef", 1)), settings(**dict.fromkeys("abcdef", 2)))[0].endswith(
        "d differs: 1 (a), 2 (b); 2 more options differ"
    )


def test_unknown_settings_are_not_compared():
    assert list(differing_settings({"old": [having()], "new": [having(sampler=settings(n=1))]})) == []


def test_floors_of_scorers_with_other_options_are_not_pooled():
    def scored(name, part):
        sample = FloorSample(
            variant="random_explanation", n=40, own=0.8, value={"a": 0.5, "b": 0.7}[name],
            covariance=(0.0004, 0.0, 0.0004), least_error=0.01, p=0.001, same=0.5, answers=800,
        )  # fmt: skip
        row = score_row("detection", 0.8).model_copy(update={"against": sample})
        return cell(name, [row]).model_copy(update={"settings": {"scorers.detection": part}})

    one, other = settings(batch=5), settings(batch=1)
    lifts = {
        case: [round(made.scores[0].lift, 6) for made in with_lifts([scored("a", one), scored("b", second)])[0]]
        for case, second in (("same", one), ("other", other))
    }
    assert lifts["other"] == pytest.approx([0.3, 0.1], abs=1e-6)
    assert lifts["same"][0] != pytest.approx(0.3, abs=0.01)
