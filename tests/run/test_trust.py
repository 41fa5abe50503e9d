"""Through users' doors: judges with known flaws cannot move ranks, hide missing answers, or borrow another's good name."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest
import yaml
from command import run_command
from fake_server import fake_server
from planted_run import spec, truthful

import saeval
from saeval.testing.toys import FILLER

LONG_WORDS = {word for word in FILLER if len(word) > 5}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def windows_of(messages):
    return re.findall(r"^Window \d+: (.*)$", messages[-1]["content"], re.MULTILINE)


def by_length(messages):
    """Judge by the letters of a window alone."""
    return str([int(len(window) % 3 == 0) for window in windows_of(messages)])


def shy(messages):
    """Judge truthfully, but say nothing where two windows or fewer of a list are active."""
    told = truthful(messages)
    return "I cannot tell." if sum(json.loads(told)) <= 2 else told


@contextmanager
def judged_by(reply):
    def answer(messages):
        return reply(messages) if messages[-1]["content"].startswith("Explanation:") else truthful(messages)

    with fake_server(answer) as server:
        yield server


def task(server, **changes):
    model = {"model": "openai_compatible/rules", "api_base": server.url, "max_tokens": 100, "temperature": 0.0}
    return {
        "saeval": 1, "task": "trust", "version": "1.0", "llms": {"explainer": model, "judge": model},
        "matrix": {"seed": [{"id": "one", "n": 1}, {"id": "two", "n": 2}]},
        "source": {"use": "synthetic", "with": {"n_latents": 12, "documents": 40, "seed": "${matrix.seed.n}"}},
        "latents": {"n": 12, "min_windows": 20},
        "sampler": {"use": "random", "with": {"explain": 5, "score": 10, "non_activating": {"n": 10}}},
        "explainer": "default", "scorers": {"detection": {}}, "baselines": ["shuffled_explanation"], **changes,
    }  # fmt: skip


def run(spec, path):
    """Run a task by the command, and return its exit code, what it printed and its results."""
    path.mkdir()
    (path / "task.yaml").write_text(yaml.safe_dump(spec))
    done = run_command("run", "-t", "task.yaml", "--out", "out", cwd=path, code=None)
    return done.returncode, " ".join(done.stdout.split()) + done.stderr, saeval.read(path / "out")


def own(result, scorer="detection"):
    return [next(r for r in cell.scores if r.scorer == scorer) for cell in result.cells]


def test_a_judge_of_windows_alone_ranks_nobody_and_is_named(tmp_path):
    with judged_by(by_length) as server:
        code, said, result = run(task(server), tmp_path / "run")
    rows = own(result)
    assert code == 0 and all(row.lift == pytest.approx(0, abs=1e-9) for row in rows)
    assert all(row.against.same == 1 and row.against.answers == 240 for row in rows)
    assert "this judge ignores the explanation" in said and said.count(" 1-2 ") == 2
    report = (tmp_path / "run" / "out" / "report" / "report.md").read_text()
    page = (tmp_path / "run" / "out" / "report" / "index.html").read_text()
    assert "this judge ignores the explanation" in report and "this judge ignores the explanation" in page


def test_a_judge_that_reads_explanations_shows_lift(tmp_path):
    with judged_by(truthful) as server:
        code, said, result = run(task(server), tmp_path / "run")
    rows = own(result)
    assert code == 0 and "ignores" not in said
    assert all(row.lift > 0.4 and row.lift_ci95[0] > 0.15 and row.against.p < 0.01 for row in rows)


def test_explainers_of_one_task_share_the_floor_that_no_explainer_enters_and_other_windows_have_their_own(tmp_path):
    with fake_server(truthful) as server:
        explainers = {"use": "${matrix.explainer}"}
        source = {"use": "synthetic", "with": {"n_latents": 8, "documents": "${matrix.documents}"}}
        axes = {"explainer": ["top_tokens", "saeval/default"], "documents": [60, 80]}
        task = spec(server, matrix=axes, explainer=explainers, source=source, scorers={"detection": {}})
        floors = {}
        for baseline in ("random_explanation", "shuffled_explanation"):
            run = saeval.run({**task, "baselines": [baseline]}, out=tmp_path / baseline)
            rows = {(c.axes["explainer"], c.axes["documents"]): c.scores[0] for c in run.cells}
            floors[baseline] = [rows[e, d].against.shared for d in ("60", "80") for e in axes["explainer"]]
    drawn, other = floors["random_explanation"], floors["shuffled_explanation"]
    assert all(drawn) and drawn[0] == drawn[1] and drawn[2] == drawn[3] and drawn[0] != drawn[2]
    assert all(other) and len({*other}) == 4


def test_unanswered_windows_are_bounded_marked_and_fail_the_run(tmp_path):
    with judged_by(shy) as server:
        code, said, result = run(task(server), tmp_path / "run")
        calm, _, _ = run(task(server, run={"max_unanswered": 1, "max_failed": 1}), tmp_path / "calm")
    (row, _) = own(result)
    assert code == 1 and calm == 0  # the floors, which it never answers for, fail as well
    assert row.windows == 240 and 0 < row.answered < 0.95 * row.windows and row.failed == 0
    low, high = row.bounds
    assert low == pytest.approx(row.answered / row.windows) and row.value == 1 == pytest.approx(high)
    assert f"{row.windows - row.answered} of 240 windows" in said and "max_unanswered 0.05" in said


def test_a_latent_without_a_metric_has_not_failed_and_bounds_belong_to_the_headline(tmp_path):
    def reserved(messages):
        """Judge truthfully, but say no to every window of explanations with an odd number of letters."""
        explanation = messages[-1]["content"].partition("\n")[0]
        return truthful(messages) if len(explanation) % 2 else str([0] * len(windows_of(messages)))

    with judged_by(reserved) as server:
        code, _, result = run(task(server), tmp_path / "run")
    rows = {row.metric: row for row in result.cells[0].scores if row.variant == "explanation"}
    assert code == 0 and 0 < rows["precision"].n < rows["recall"].n == 12
    assert {row.failed for row in rows.values()} == {0} and rows["precision"].coverage == rows["precision"].n / 12
    bounds = {metric: row.bounds for metric, row in rows.items()}
    value = pytest.approx(rows["balanced_accuracy"].value)
    assert bounds.pop("balanced_accuracy") == (value, value) and set(bounds.values()) == {None}


def test_ranking_by_a_lift_that_cannot_be_is_refused(tmp_path):
    with judged_by(truthful) as server:
        for changes, said in (
            ({"baselines": []}, "detection has no floor"),
            ({"scorers": {"intruder": {}}}, "intruder does not measure the explanation"),
            ({"scorers": {"consistency": {}}}, "consistency does not measure the explanation"),
            ({"scorers": {"injection": {}}}, "injection does not measure the explanation"),
        ):
            name = next(iter(changes.get("scorers", {"detection": {}})))
            with pytest.raises(saeval.SpecError, match=said):
                saeval.run(task(server, leaderboard={"rank_by": f"{name}.lift"}, **changes), out=tmp_path / name)


def test_raw_ranks_are_given_where_asked_for(tmp_path):
    with judged_by(by_length) as server:
        code, said, _ = run(task(server, leaderboard={"rank_by": "detection.raw"}), tmp_path / "run")
    assert code == 0 and "ranked by raw scores, as requested" in said
    assert "ignores the explanation" in said


def checking(server, **options):
    """A small check of a judge: planted latents with their true explanations."""
    made = task(server, **options)
    del made["matrix"], made["llms"]["explainer"]
    made["source"]["with"]["seed"] = 1
    made["source"]["with"]["n_latents"] = made["latents"]["n"] = 16
    made["explainer"] = {"use": "top_tokens", "with": {"k": 1}}
    return made


def test_a_verdict_belongs_to_one_address_and_to_its_options(tmp_path):
    with judged_by(truthful) as good, judged_by(by_length) as bad:
        for server in (good, bad):
            saeval.run(checking(server, task="check", checks="judge"), out=tmp_path / f"check{server is good}")
        verdicts = {}
        for name, server, scorers in (
            ("good", good, {"detection": {}}), ("bad", bad, {"detection": {}}),
            ("asked otherwise", good, {"detection": {"with": {"batch": 1}}}),
        ):  # fmt: skip
            result = saeval.run(checking(server, scorers=scorers), out=tmp_path / name)
            verdicts[name] = own(result)[0].verdict
        warmer = checking(good)
        warmer["llms"]["judge"]["temperature"] = 1.0
        result = saeval.run(warmer, out=tmp_path / "warmer")
    assert verdicts == {"good": "pass", "bad": "fail", "asked otherwise": None}
    assert result.judges[0].check is None and own(result)[0].verdict is None
    assert f"--set llms.judge.api_base={good.url}" in result.judges[0].command
    assert "--set llms.judge.temperature=1.0" in result.judges[0].command


def test_scores_are_corrected_for_what_a_judge_is_known_to_miss(tmp_path):
    def forgetful(messages):
        told = json.loads(truthful(messages))
        return str([x * (sum(map(ord, w)) % 5 != 0) for x, w in zip(told, windows_of(messages), strict=True)])

    with judged_by(forgetful) as server:
        check = saeval.run(checking(server, task="check", checks="judge"), out=tmp_path / "check")
        asked = checking(server, leaderboard={"correct_for_judge": True})
        result = saeval.run(asked, out=tmp_path / "run")
    (row,) = own(result)
    (known,) = result.judges[0].check.scorers
    assert 0.7 < known.sensitivity < 0.9 and known.specificity == pytest.approx(1)
    assert known.balanced_accuracy == own(check)[0].value == row.value
    assert row.corrected == pytest.approx(1.0) and row.corrected_ci95[0] > row.value - 0.05
    assert row.corrected_ci95[1] - row.corrected_ci95[0] > 0
