"""Every mistake of a spec is told at once, in its keys and in its plugins."""

from __future__ import annotations

import re

import pytest
import yaml

from saeval import SpecError
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task

ODD = """
from saeval.plugin import AUROC, Explainer, Explanation, Measure, Score, Scorer
class Own(Scorer):
    name = "own"
    metrics = (AUROC,)
    async def score(self, explanation, examples, context):
        return Score(values={"auroc": 0.5})
class RaisesInCheck(Own):
    def check(self):
        raise FileNotFoundError("no weights")
class ExitsInCheck(Own):
    def check(self):
        raise SystemExit(3)
class RaisesInNeeds(Own):
    def needs(self):
        raise ValueError("no needs")
class NeedsList(Own):
    def needs(self):
        return ["text"]
class NeedsUnknown(Own):
    def needs(self):
        return frozenset({"money"})
class NoMetrics(Own):
    metrics = ()
class OneMetric(Own):
    metrics = AUROC
class ListOfRoles(Own):
    llm_role = ["judge"]
class NamesOfMetrics(Own):
    metrics = ("auroc",)
class FingerprintOfSet(Own):
    def fingerprint(self):
        return [{1, 2}]
class RaisesInFingerprint(Own):
    def fingerprint(self):
        raise KeyError("sha")
class L0(Explainer):
    name = "l0"
    measures = (Measure(name="l0", about="Made up.", format=".2f"),)
    async def explain(self, examples, context):
        return Explanation(text="words")
"""


def odd_task(tmp_path, scorer="Own", explainer="top_tokens"):
    (tmp_path / "odd.py").write_text(ODD)
    return {
        "saeval": 1, "task": "t", "version": "1", "source": {"use": "synthetic"}, "explainer": explainer,
        "scorers": {"x": {"use": f"{tmp_path}/odd.py:{scorer}"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scorer", "sentence"),
    [
        ("RaisesInCheck", "raised FileNotFoundError: no weights"),
        ("ExitsInCheck", "raised SystemExit: 3"),
        ("RaisesInNeeds", "raised ValueError: no needs"),
        ("NeedsList", "needs ['text'], but needs() has to return a frozenset of logprobs, subject"),
        ("NeedsUnknown", "needs frozenset({'money'})"),
        ("NoMetrics", "has the metrics ()"),
        ("OneMetric", "but `metrics` has to be a tuple of one or more Metric"),
        ("ListOfRoles", "has the llm_role ['judge'], but `llm_role` has to be the name of a role, or None"),
        ("NamesOfMetrics", "has the metrics ('auroc',)"),
        ("FingerprintOfSet", "but fingerprint() has to return JSON values"),
        ("RaisesInFingerprint", "raised KeyError: 'sha'"),
    ],
)
def test_plugin_that_breaks_is_a_mistake_of_the_spec_before_anything_is_paid(tmp_path, scorer, sentence):
    with pytest.raises(SpecError) as error:
        load_task(odd_task(tmp_path, scorer), registry=Registry())
    (problem,) = error.value.problems
    assert problem.startswith("scorers.x: the plugin local/own ") and sentence in problem


METRICS = """
import math
from saeval import Metric, Score, Scorer
class Own(Scorer):
    name = "own"
    upper: float = 1.0
    @property
    def metrics(self):
        return METRICS
    async def score(self, explanation, examples, context):
        return Score(values={"hits": 0.5})
"""


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ('[Metric("hits", low=None)]', "a metric 'hits' that has low=None; write a number, or low=-math.inf if there"),
        (
            '[Metric("hits", high="1")]',
            "'hits' that has high='1'; write a number, or high=math.inf if there is no limit",
        ),
        ('[Metric("hits", low=math.nan)]', "'hits' that has low=nan; write a number"),
        ('[Metric("hits", high=self.upper)]', "'hits' that has low=0.0 and high=-1.0; write a low below its high"),
        ('[Metric("hits", chance="a half")]', "'hits' that has chance='a half'; write a number from 0.0 to 1.0"),
        ('[Metric("hits", chance=7)]', "'hits' that has chance=7; write a number from 0.0 to 1.0"),
        ('[Metric("hits", wanted=0.5)]', "'hits' that has wanted=0.5; write the ends of an interval"),
        ('[Metric("hits", wanted=(0.9, 0.1))]', "'hits' that has wanted=(0.9, 0.1); write the ends of an interval"),
        (
            '[Metric("hits", higher_is_better="yes")]',
            "'hits' that has higher_is_better='yes'; write True, False or None",
        ),
        ('[Metric("hits"), Metric(" ")]', "a metric ' ' that has the name ' '; write a text that is not blank"),
        (
            '[Metric("hits"), Metric("hits", high=2)]',
            "has more than one metric named 'hits'; write another name for each",
        ),
    ],
)
def test_malformed_metric_is_a_mistake_of_the_spec_that_says_what_to_write(tmp_path, metrics, sentence):
    (tmp_path / "own.py").write_text(METRICS.replace("METRICS", metrics))
    scorer = {"use": f"{tmp_path}/own.py:Own", "with": {"upper": -1.0}}
    with pytest.raises(SpecError) as error:
        load_task({**odd_task(tmp_path), "scorers": {"x": scorer}}, registry=Registry())
    (problem,) = error.value.problems
    assert problem.startswith("scorers.x: the plugin local/own has ") and sentence in problem


def test_metric_without_limits_is_well_formed(tmp_path):
    metrics = '(Metric("hits", low=-math.inf, high=math.inf, chance=0, wanted=[0.4, 0.6], higher_is_better=None),)'
    (tmp_path / "own.py").write_text(METRICS.replace("METRICS", metrics))
    scorer = {"use": f"{tmp_path}/own.py:Own"}
    assert load_task({**odd_task(tmp_path), "scorers": {"x": scorer}}, registry=Registry()).cells


def test_explainer_whose_measure_has_the_name_of_a_fact_about_the_coder_is_refused(tmp_path):
    with pytest.raises(SpecError, match="explainer: local/l0 has a measure 'l0', which is a fact about the coder"):
        load_task(odd_task(tmp_path, explainer={"use": f"{tmp_path}/odd.py:L0"}), registry=Registry())
    assert load_task(odd_task(tmp_path), registry=Registry()).cells


def test_misspelt_plugins_and_options_are_told_beside_keys_that_are_wrong():
    task = {
        "saeval": 1, "task": "t", "version": "1", "latents": {"n": "many"}, "source": ["synthetic"],
        "sampler": {"use": "random", "with": {"windw": 3}}, "explainer": "knwn", "scorers": {"detecton": {}, 3: [1]},
        "llms": {"judge": {"model": "openai_compatible/m", "temprature": 0}, "writer": 3},
    }  # fmt: skip
    with pytest.raises(SpecError) as error:
        load_task(task, registry=Registry())
    told = "\n".join(error.value.problems)
    for sentence in (
        "latents.n",
        "unknown explainer 'knwn'",
        "did you mean 'window'",
        "unknown scorer 'detecton'",
        "temprature",
    ):
        assert told.count(sentence) == 1


def test_wrong_slot_is_one_sentence_beside_other_mistakes(tmp_path):
    judge = {"model": "openai_compatible/m", "api_base": "http://127.0.0.1:9/v1", "concurrency": 0, "timeout": "${x}"}
    task = {**odd_task(tmp_path), "matrix": {"n": [1, 2]}, "llms": {"judge": judge}, "explainer": "knwn"}
    task |= {"latents": {"n": "${matrix.m}"}, "run": {"sed": 1}}
    task |= {"sampler": {"use": "random", "with": {"explain": "${matrix.n.x}", "windw": 8}}}
    with pytest.raises(SpecError) as error:
        load_task(task, registry=Registry())
    said = sorted(re.split(r";| \(`", problem)[0] for problem in error.value.problems)
    assert said == [
        "explainer.use: unknown explainer 'knwn', did you mean 'known'?",
        "latents.n: ${matrix.m}: no 'm' there",
        "llms.judge.concurrency: should be `auto` or a whole number of at least 1 (got 0)",
        "llms.judge.timeout: only ${matrix.AXIS} can be filled in (got ${x})",
        "run.sed: no such key, did you mean 'seed'?",
        "sampler.with.explain: ${matrix.n.x}: no 'x' there",
        "sampler.with.windw: no such option, did you mean 'window'?",
    ]


def test_file_named_by_a_wrong_slot_is_not_looked_for(tmp_path):
    task = {**odd_task(tmp_path), "source": {"use": "recorded", "with": {"path": "${matrix.file}"}}}
    with pytest.raises(SpecError) as error:
        load_task(task, registry=Registry())
    (problem,) = error.value.problems
    assert problem == "source.with.path: ${matrix.file}: no 'file' there; it has none"


@pytest.mark.parametrize("coder", ["${matrix.x}", {"use": "${matrix.x}"}, {"use": "${matrix.x}", "with": {"k": 3}}])
def test_wrong_slot_in_a_part_within_a_part_is_one_sentence(tmp_path, coder):
    source = {"use": "transformers", "with": {"model": "m", "corpus": {"path": "x"}, "coder": coder}}
    with pytest.raises(SpecError) as error:
        load_task({**odd_task(tmp_path), "source": source}, registry=Registry())
    (problem,) = error.value.problems
    assert problem.startswith("source.with.coder") and problem.endswith("${matrix.x}: no 'x' there; it has none")


def test_wrong_setting_of_a_role_is_one_sentence_as_elsewhere_in_the_spec(tmp_path):
    judge = {"model": "openai_compatible/m", "api_base": "http://127.0.0.1:9/v1", "concurrency": 0, "timeout": 0}
    with pytest.raises(SpecError) as error:
        load_task({**odd_task(tmp_path), "llms": {"judge": judge}}, registry=Registry())
    assert sorted(error.value.problems) == [
        "llms.judge.concurrency: should be `auto` or a whole number of at least 1 (got 0)",
        "llms.judge.timeout: should be greater than 0 (got 0)",
    ]


@pytest.mark.parametrize(
    ("key", "meant"), [("tempratur", "temperature"), ("max_token", "max_tokens"), ("api_bse", "api_base")]
)
def test_misspelt_key_of_a_role_gets_a_suggestion_from_its_settings_and_its_plugins_options(tmp_path, key, meant):
    judge = {"model": "openai/gpt-4o-mini", key: 0}
    with pytest.raises(SpecError) as error:
        load_task({**odd_task(tmp_path), "llms": {"judge": judge}}, registry=Registry())
    (problem,) = error.value.problems
    assert problem.startswith(
        f"llms.judge.{key}: no such option, did you mean {meant!r}?; litellm has: model, api_base"
    )
    assert "; every role has: temperature, max_tokens" in problem


def test_missing_option_of_a_model_from_the_command_line_is_told_with_the_flag_that_gives_it(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({**odd_task(tmp_path), "llms": {"judge": {"model": "openai/gpt-4o-mini"}}}))
    given = {"registry": Registry(), "llms": {"judge": "openai_compatible/m"}}
    with pytest.raises(SpecError) as error:
        load_task(file, **given)
    assert str(error.value) == (
        "command line: llms.judge.api_base: is missing; openai_compatible requires it, so add "
        "--set llms.judge.api_base=VALUE"
    )
    assert load_task(file, **given, overrides={"llms.judge.api_base": "http://127.0.0.1:9/v1"}).roles


def test_role_that_a_scorer_uses_and_the_spec_lacks_is_told_with_the_flag_that_adds_it(tmp_path):
    task = {**odd_task(tmp_path), "scorers": {"surprisal": {}}}
    with pytest.raises(SpecError, match=r"uses the role 'base', which.*with --set llms\.base\.model=MODEL$"):
        load_task(task, registry=Registry())
    assert load_task(task, registry=Registry(), overrides={"llms.base.model": "hf/x"}).roles


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        ({"indices": [1, 2]}, "latents.indices: is used only with `select: list`"),
        ({"select": "list"}, "latents: `select: list` requires `indices`"),
    ],
)
def test_list_of_latents_and_its_select_are_given_together(tmp_path, latents, said):
    with pytest.raises(SpecError) as error:
        load_task({**odd_task(tmp_path), "latents": latents}, registry=Registry())
    (problem,) = error.value.problems
    assert problem.startswith(said)


def test_unknown_name_of_the_leaderboard_is_told_beside_other_mistakes(tmp_path):
    task = {**odd_task(tmp_path), "checks": "jugde", "leaderboard": {"rank_by": "y"}}
    with pytest.raises(SpecError) as error:
        load_task(task, registry=Registry())
    role, name = error.value.problems
    assert role.startswith("checks: ") and name.startswith("leaderboard.rank_by: no scorer 'y'")


@pytest.mark.parametrize("key", ["group_by", "x"])
def test_keys_of_the_leaderboard_that_nothing_reads_are_refused(tmp_path, key):
    with pytest.raises(SpecError) as error:
        load_task({**odd_task(tmp_path), "leaderboard": {key: "l0"}}, registry=Registry())
    (problem,) = error.value.problems
    assert problem == f"leaderboard.{key}: no such key; allowed keys: rank_by, correct_for_judge"


def test_entry_of_exclude_that_excludes_nothing_is_told_beside_other_mistakes(tmp_path):
    task = {**odd_task(tmp_path), "matrix": {"layer": [3, 4]}, "exclude": [{"layr": 3}], "latents": {"n": "many"}}
    with pytest.raises(SpecError) as error:
        load_task({**task, "explainer": "knwn"}, registry=Registry())
    told = "\n".join(error.value.problems)
    for sentence in ("exclude.0: the matrix has no axis 'layr'", "latents.n", "unknown explainer 'knwn'"):
        assert told.count(sentence) == 1


@pytest.mark.parametrize(
    ("key", "part", "said"),
    [
        ("source", {"use": "synthetic", "when": {"latents": 3}}, "source.when: has no effect on this source"),
        ("sampler", {"use": "random", "llm": "judge"}, "sampler.llm: has no effect on this sampler"),
        ("explainer", {"use": "top_tokens", "baselines": []}, "explainer.baselines: has no effect on this explainer"),
        ("baselines", [{"use": "neurons", "llm": "judge"}], "baselines.0.llm: has no effect on this coder"),
        (
            "baselines",
            [{"use": "shuffled_explanation", "with": {"seed": 1}, "when": {"latents": 3}}],
            "baselines.0.with: has no effect on shuffled_explanation",
        ),
        (
            "explainer",
            {"use": "senses", "with": {"explainer": {"use": "top_tokens", "when": {"latents": 3}}}},
            "explainer.with.explainer.when: has no effect on this explainer",
        ),
    ],
)
def test_key_of_a_part_without_effect_is_refused(tmp_path, key, part, said):
    with pytest.raises(SpecError) as error:
        load_task({**odd_task(tmp_path), key: part}, registry=Registry(), check=False)
    assert f"{said}; omit it" in error.value.problems


def test_keys_of_steps_are_no_mistakes_beside_others(tmp_path):
    step = {"llm": "judge", "when": {"latents": 3}}
    task = {**odd_task(tmp_path), "explainer": {"use": "default", **step}, "latents": {"n": "many"}}
    with pytest.raises(SpecError) as error:
        load_task({**task, "scorers": {"detection": {**step, "baselines": []}}}, registry=Registry())
    (problem,) = error.value.problems
    assert problem.startswith("latents.n")
