"""Boards and comparisons name options of samplers, explainers and scorers that differ, and keep their floors apart."""

from __future__ import annotations

import pytest
from made_run import cell, score_row
from planted_run import spec, truthful_server

import saeval
from saeval._compare.lift_rows import with_lifts
from saeval._compare.settings import differing_settings
from saeval.records import FloorSample, PartSettings


def settings(plugin="saeval/detection 0.1.0", sha=None, code=None, **options):
    return PartSettings(plugin=plugin, options=options, sha=sha or str(sorted(options.items())), code=code or {})


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


def differences(a, b):
    return list(differing_settings({"a": [having(scorers__x=a)], "b": [having(scorers__x=b)]}))


def test_another_version_of_a_plugin_with_the_same_options_is_named():
    one, other = (settings(f"acme/purity {version}", batch=5) for version in ("1.0", "1.1"))
    assert differences(one, one) == []
    assert differences(one, other) == ["scorers.x: plugin differs: acme/purity 1.0 (a), acme/purity 1.1 (b)"]
    assert differences(one, settings("acme/purity 1.1", batch=6)) == [
        "scorers.x: plugin differs: acme/purity 1.0 (a), acme/purity 1.1 (b); batch differs: 5 (a), 6 (b)"
    ]


def test_other_code_under_one_version_is_named_only_if_both_runs_recorded_it():
    label = "acme/purity 1.0"
    one, edited, unknown, earlier = (
        settings(label, code=code) for code in ({label: "1"}, {label: "2"}, {label: ""}, {})
    )
    assert differences(one, edited) == ["scorers.x: code of acme/purity 1.0 differs (a, b)"]
    assert differences(one, one) == differences(one, unknown) == differences(earlier, one) == []


def test_another_version_of_a_plugin_in_the_options_is_named():
    def wrapped(version):
        return settings("saeval/again 0.1.0", code={"saeval/again 0.1.0": "", f"acme/purity {version}": ""})

    assert (
        differences(wrapped("1.0"), wrapped("1.0")) == differences(settings("saeval/again 0.1.0"), wrapped("1.0")) == []
    )
    assert differences(wrapped("1.0"), wrapped("1.1")) == [
        "scorers.x: plugin differs: acme/purity 1.0 (a), acme/purity 1.1 (b)"
    ]


_LOCAL = """
import level
from saeval.plugin import Metric, Score, Scorer

class Local(Scorer):
    name = "local"
    metrics = (Metric("m"),)
    async def score(self, explanation, examples, context):
        return Score(values={"m": level.LEVEL})
"""


def test_comparison_of_runs_names_a_scorer_whose_code_was_edited(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "local.py").write_text(_LOCAL)
    made = {
        "saeval": 1, "task": "edited", "version": "1.0",
        "source": {"use": "synthetic", "with": {"n_latents": 4, "documents": 100}},
        "latents": {"n": 3, "min_windows": 5},
        "sampler": {"use": "random", "with": {"explain": 5, "score": 5, "non_activating": {"n": 5}}},
        "explainer": {"use": "top_tokens"}, "scorers": {"x": {"use": f"{tmp_path}/local.py:Local"}},
    }  # fmt: skip
    for name, level in (("first", 1.0), ("again", 1.0), ("edited", 0.0)):
        (tmp_path / "level.py").write_text(f"LEVEL = {level}\n")
        result = saeval.run(made, out=tmp_path / name)
        assert result.cells[0].scores[0].value == level
    (label,) = result.cells[0].settings["scorers.x"].code
    expected = f"scorers.x: code of {label} differs"
    warnings = saeval.compare(tmp_path / "first", tmp_path / "edited").warnings
    assert f"{expected} (A, B); this may cause part of the difference." in warnings
    notes = saeval.join([tmp_path / "first", tmp_path / "edited"]).notes
    assert f"{expected} (first, edited); this may cause part of a difference." in notes
    assert not any("code" in text for text in saeval.compare(tmp_path / "first", tmp_path / "again").warnings)


def test_unknown_settings_are_not_compared():
    assert list(differing_settings({"old": [having()], "new": [having(sampler=settings(n=1))]})) == []


def test_floors_of_scorers_with_other_options_or_code_are_not_pooled():
    def scored(name, part):
        sample = FloorSample(
            variant="random_explanation", n=40, own=0.8, value={"a": 0.5, "b": 0.7}[name],
            covariance=(0.0004, 0.0, 0.0004), least_error=0.01, p=0.001, same=0.5, answers=800,
        )  # fmt: skip
        row = score_row("detection", 0.8).model_copy(update={"against": sample})
        return cell(name, [row]).model_copy(update={"settings": {"scorers.detection": part}})

    label = "saeval/detection 0.1.0"
    one, other, edited = settings(batch=5), settings(batch=1), settings(batch=5, code={label: "2"})
    version_alone = settings(batch=5, code={label: ""})
    cases = {"same": one, "other": other, "edited": edited, "version_alone": version_alone}
    lifts = {
        case: [round(made.scores[0].lift, 6) for made in with_lifts([scored("a", one), scored("b", second)])[0]]
        for case, second in cases.items()
    }
    assert lifts["same"] == lifts["version_alone"]
    assert lifts["other"] == lifts["edited"] == pytest.approx([0.3, 0.1], abs=1e-6)
    assert lifts["same"][0] != pytest.approx(0.3, abs=0.01)
