"""Any explainer or coder plugin can stand as a baseline: a package's, a single file's, or a built-in one."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner
from planted_run import spec, truthful_server
from tiny import tiny_corpus, tiny_model, tiny_sae

import saeval
from saeval.cli import main
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task

PLUGINS = '''
from typing import ClassVar

from saeval.plugin import Coder, Explainer, Explanation, LinearCoder, down_projection

class Same(Explainer):
    """Explains every latent by the same words."""

    name = "same"
    uninformed: ClassVar[bool] = True

    async def explain(self, examples, context):
        return Explanation(text="a word of some kind")

class First(Explainer):
    """Explains a latent by the first window in which it fires."""

    name = "first"

    async def explain(self, examples, context):
        return Explanation(text=examples.activating[0].text)

class Ones(Coder):
    """Reads every direction of the space by itself."""

    name = "ones"

    def load(self, device, d_in):
        import torch

        return LinearCoder(encoder=torch.eye(d_in), k=2)
'''


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plugins(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGINS)
    return tmp_path / "mine.py"


def test_an_explainer_from_a_file_is_a_floor_if_it_says_that_it_knows_nothing(tmp_path, plugins):
    with truthful_server() as server:
        task = spec(server, baselines=[f"{plugins}:Same", f"{plugins}:First"], scorers={"detection": {}})
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
        done = CliRunner().invoke(main, ["run", "--task", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    rows = {
        row.variant: row for row in saeval.read(tmp_path / "run").cells[0].scores if row.metric == "balanced_accuracy"
    }
    assert set(rows) == {"explanation", "same", "first"}
    own = rows["explanation"]
    assert {"same", "first"} <= set(own.floor) and own.lift == pytest.approx(own.value - rows["same"].value, abs=0.02)
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "same" in report and "first" in report


def test_a_scorer_names_the_baselines_of_a_file_by_the_class_name(tmp_path, plugins):
    with truthful_server() as server:
        scorers = {"detection": {}, "fuzzing": {"baselines": ["same"]}}
        task = spec(server, baselines=[f"{plugins}:Same", f"{plugins}:First"], scorers=scorers)
        cell = load_task(task, registry=Registry()).cells[0]
    assert cell.scorers["fuzzing"].baselines == {"same"} and list(cell.alternatives) == ["same", "first"]
    assert cell.floors == ("same",)


def test_baselines_of_a_scorer_that_does_not_measure_the_explanation_are_refused():
    with truthful_server() as server:
        scorers = {"intruder": {"baselines": ["shuffled_explanation"]}, "detection": {}}
        task = spec(server, baselines=["shuffled_explanation"], scorers=scorers)
        with pytest.raises(
            saeval.SpecError, match="intruder does not measure the explanation, so it scores no baseline"
        ):
            load_task(task, registry=Registry())
        load_task(spec(server, scorers={"intruder": {"baselines": []}}), registry=Registry())


def test_a_coder_from_a_file_is_a_cell_of_its_own(tmp_path, plugins):
    model = tiny_model(tmp_path / "model")
    source = {"use": "transformers", "with": {
        "model": str(model), "hookpoint": "layers.1", "coder": {"use": "sae_lens", "with": {"path": str(tiny_sae(tmp_path / "sae"))}},
        "corpus": {"path": str(tiny_corpus(tmp_path / "corpus.jsonl")), "context": 16},
    }}  # fmt: skip
    with truthful_server() as server:
        task = spec(server, source=source, baselines=[f"{plugins}:Ones"])
        cells = load_task(task, registry=Registry(), check=False).cells
    assert [(cell.name, cell.baseline) for cell in cells] == [("all", None), ("coder=ones", "ones")]


def test_a_file_that_the_matrix_names_lies_beside_the_spec_wherever_the_command_runs(tmp_path, plugins, monkeypatch):
    with truthful_server() as server:
        task = spec(server, baselines=[], explainer="${matrix.how.part}")
        task["matrix"] = {
            "how": [{"id": "same", "part": "./mine.py:Same"}, {"id": "first", "part": {"use": "./mine.py:First"}}]
        }
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        done = CliRunner().invoke(main, ["run", "--task", "../task.yaml", "--out", "run"])
    assert done.exit_code == 0, done.output
    cells = saeval.read("run").cells
    assert [cell.explainer.rpartition(" ")[0] for cell in cells] == ["local/same", "local/first"]


def test_a_mistake_in_what_the_matrix_fills_in_is_told_of_where_it_stands(tmp_path):
    (tmp_path / "task.yaml").write_text(
        "saeval: 1\ntask: t\nversion: '1'\nmatrix:\n  how:\n    - {id: a, part: top_tokens}\n"
        "    - id: b\n      part: {use: default, with: {exampels: 3}}\n"
        "llms: {explainer: {model: scripted/x, reply: x}, judge: {model: scripted/x, reply: x}}\n"
        "source: {use: synthetic}\nexplainer: '${matrix.how.part}'\nscorers: {detection: {}}\n"
    )
    done = CliRunner().invoke(main, ["validate", str(tmp_path / "task.yaml")])
    assert done.exit_code == 2 and "task.yaml:8: explainer.with.exampels" in done.output


def test_a_baseline_that_is_neither_explainer_nor_coder_is_refused_with_the_reason(tmp_path, plugins):
    text = plugins.read_text() + "\nclass Broken:\n    name = 'broken'\n"
    plugins.write_text(text)
    for use, said in (
        (f"{plugins}:Broken", "neither an explainer nor a coder"),
        (f"{plugins}:Sames", "did you mean 'Same'"),
        ("nobody/same", "unknown explainer 'nobody/same'"),
        ("top_token", "did you mean 'top_tokens'"),
    ):
        with truthful_server() as server, pytest.raises(saeval.SpecError, match=said):
            load_task(spec(server, baselines=[use]), registry=Registry())


def test_two_baselines_of_one_name_are_refused(tmp_path, plugins):
    (tmp_path / "other.py").write_text(PLUGINS)
    with truthful_server() as server, pytest.raises(saeval.SpecError, match="two baselines have the name 'same'"):
        load_task(spec(server, baselines=[f"{plugins}:Same", f"{tmp_path}/other.py:Same"]), registry=Registry())


def test_a_coder_and_an_explainer_of_an_installed_package_are_baselines(tmp_path, monkeypatch):
    """As `pip install saeval-acme` leaves them: a module and its entry point."""
    package = tmp_path / "site"
    package.mkdir()
    hooks = """
from saeval.plugin import hookimpl

@hookimpl
def saeval_explainers():
    return [Same]
"""
    (package / "saeval_acme.py").write_text(PLUGINS + hooks)
    facts = package / "saeval_acme-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: saeval-acme\nVersion: 1.0\nRequires-Dist: saeval\n")
    (facts / "entry_points.txt").write_text("[saeval]\nacme = saeval_acme\n")
    monkeypatch.syspath_prepend(package)
    with truthful_server() as server:
        cell = load_task(spec(server, baselines=["acme/same"]), registry=Registry()).cells[0]
    assert cell.floors == ("same",) and cell.alternatives["same"].part.label == "acme/same 1.0"
