"""What the documentation shows is what there is: its specs validate, its code runs, its links lead somewhere."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import click
import generated_docs
import pytest
import yaml
from jsonschema import Draft202012Validator
from planted_run import spec, truthful_server
from root import ROOT

import saeval
from saeval.cli.group import main
from saeval.plugin import Plugin, base as interfaces, hookspecs
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task
from saeval.task.schema import task_schema
from saeval.task.spec.document import SpecDocument
from saeval.task.spec.matrix import cells_of
from saeval.task.spec.models import LatentSelection, LeaderboardOptions, PartSpec, RoleSpec, RunOptions, Spec
from saeval.task.spec.validation import parse

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def in_pages(*languages: str) -> list[Any]:
    """The code blocks of the pages in these languages, as parameters of a test, each named by its page and place there."""
    found = []
    for page in PAGES:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        texts = [text for language, text in fenced if language in languages]
        found += [pytest.param(text, id=f"{page.stem}-{number}") for number, text in enumerate(texts)]
    return found


@pytest.mark.parametrize("text", in_pages("", "sh"))
def test_commands_that_are_shown_are_there_with_their_options(text):
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"^(?:pip install .* && )?saeval (.+)", joined, re.MULTILINE):
        words = shlex.split(line, comments=True)
        command: click.Command = main
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not isinstance(command, click.Group) or not words or words[0].startswith("-"), line
        command.make_context("saeval", words)  # raises when there is no such argument or option


def test_commands_named_in_the_text_exist_with_their_options():
    for page in PAGES:
        for text in re.findall(r"`saeval ([^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            words = text.replace("\\|", "|").split()
            command: click.Command = main
            while isinstance(command, click.Group) and words and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            options = {name for param in command.params if isinstance(param, click.Option) for name in param.opts}
            named = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
            assert named <= options and (command is not main or words[0] in ("COMMAND", "--help")), (
                f"{page.name}: saeval {text}"
            )


@pytest.fixture(scope="module")
def schema():
    return Draft202012Validator(task_schema(Registry(disabled=["*"])))


@pytest.mark.parametrize("text", in_pages("yaml"))
def test_spec_or_part_of_one_that_is_shown_is_valid(text, schema):
    shown = yaml.safe_load(text)
    if isinstance(shown, list):  # of coders
        parts = [{"source": {"use": "transformers", "with": {"coder": coder}}} for coder in shown]
    else:
        parts = [shown or {}]
    for part in parts:
        schema.validate(part)


@pytest.mark.parametrize("file", generated_docs.pages(), ids=lambda file: file.name)
def test_generated_page_is_up_to_date(file):
    assert file.read_text() == generated_docs.pages()[file], (
        "the code has changed: python tests/helpers/generated_docs.py"
    )


@pytest.mark.slow
def test_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    unreachable = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | unreachable, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.?(?:https?:)?//[^>]*>", page.read_text())
        assert not fetched, page
    assert "repository/examples/saeval-acme.html" in (tmp_path / "site" / "writing-a-plugin.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_spec_of_the_readme_is_a_task():
    (text,) = blocks("README.md", "yaml")
    task = load_task(yaml.safe_load(text), registry=Registry(), check=False)
    assert [cell.name for cell in task.cells] == ["all", "coder=random_sae"]


def test_spec_of_the_task_reference_is_valid():
    text, *_ = blocks("docs/task-reference.md", "yaml")
    assert [parse(filled).task for _, filled in cells_of(SpecDocument(yaml.safe_load(text), {}))] == ["face-off"] * 2


def test_specs_of_the_tutorial_are_valid():
    (role,), (mine,), (scorers,) = (
        [b for b in blocks("docs/tutorial.md", "yaml") if key in b] for key in ("api_base", "task: my-sae", "my_scorer")
    )
    RoleSpec.model_validate(yaml.safe_load(role)["llms"]["judge"])
    PartSpec.model_validate(yaml.safe_load(scorers)["scorers"]["mine"])
    assert parse(
        SpecDocument(
            {
                **yaml.safe_load(mine),
                "source": {"use": "synthetic"},
                "explainer": "default",
                "scorers": {"detection": None},
            },
            {},
        )
    )


def test_task_reference_names_every_key():
    page = (ROOT / "docs" / "task-reference.md").read_text()
    for model in (Spec, PartSpec, LatentSelection, RunOptions, LeaderboardOptions):
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}" in page or f"`{name}`" in page, name


def test_code_of_the_plugin_page_is_the_package_and_its_first_plugin_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    shown = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 4
    for file, text in shown:
        assert text == (ROOT / file).read_text(), f"{file} has changed"
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "length.py").write_text(blocks("docs/writing-a-plugin.md", "python")[0])
    with truthful_server() as server:
        scorers = {"length": {"use": f"{tmp_path}/length.py:Length"}}
        result = saeval.run(spec(server, scorers=scorers, baselines=[]), out=tmp_path / "run")
    assert result.cells[0].scores[0].value == 3.0  # the word 'harbor'


@pytest.mark.parametrize("code", blocks("docs/python.md", "python") + blocks("docs/concepts.md", "python"))
def test_code_about_runs_runs(code, runs, capsys):
    exec(code, {})
    out = capsys.readouterr().out
    assert out and "None" not in out  # a score of None: nothing was scored


@pytest.mark.parametrize("code", blocks("docs/python.md", "py"))
def test_code_for_other_data_frames_runs_where_they_are_installed(code, runs, capsys):
    pytest.importorskip(code.split()[1])
    exec(code, {})
    assert capsys.readouterr().out


def test_metrics_page_has_every_metric_of_every_scorer():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for loaded in Registry(disabled=["*"]).names("scorer"):
        for metric in loaded.cls.metrics if isinstance(loaded.cls.metrics, tuple) else ():
            row = rf"^\| .*`{metric.name}`.* \| .*`{loaded.cls.name}`.* \|"
            assert re.search(row, page, re.MULTILINE), f"{loaded.cls.name}: {metric.name}"


def test_tutorial_code_reads_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        saeval.run(spec(server, baselines=[]), out=tmp_path / "run")
    (code,) = blocks("docs/tutorial.md", "python")
    exec(code.replace("saeval-runs/quickstart-…", str(tmp_path / "run")), {})
    assert "balanced_accuracy 1.0" in capsys.readouterr().out


def test_hooks_page_has_every_hook_and_every_need_and_leads_to_a_page_each():
    page = (ROOT / "docs" / "hooks.md").read_text()
    hooks = {name for name in dir(hookspecs) if name.startswith("saeval_")}
    assert set(re.findall(r"^\| \[`(\w+)`\]", page, re.MULTILINE)) == hooks
    for hook in hooks - {"saeval_task_dirs"}:
        assert f"(hooks/{hook.removeprefix('saeval_')}.md)" in page
    assert set(re.findall(r'^\| `"(\w+)"`', page, re.MULTILINE)) == set(get_args(interfaces.Need))


def test_hooks_page_has_what_all_plugins_share():
    page = (ROOT / "docs" / "hooks.md").read_text()
    names = [*vars(Plugin), *vars(Plugin).get("__annotations__", {})]
    for name in (n for n in names if not n.startswith(("_", "model_"))):
        thing = getattr(Plugin, name, None)
        if inspect.isfunction(thing):
            summary = (inspect.getdoc(thing) or "").split("\n")[0]
            assert f"def {name}{inspect.signature(thing)}`: {summary}\n" in page, name
        else:
            assert f"`{name}`" in page, name


def test_reliability_page_names_tests_that_exist():
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 20
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), test


def test_reliability_code_does_failed_latents_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with truthful_server() as server:
        Path("mine.yaml").write_text(yaml.safe_dump(spec(server, baselines=[], scorers={"detection": {}})))
        (code,) = blocks("docs/reliability.md", "python")
        exec(code, {})
    assert capsys.readouterr().out == "0\n"


MINE = r"""
saeval: 1
task: mine
version: "1.0"
llms:
  judge: # a rule in a model's place: 1 for a window that holds the word which the explanation names
    model: scripted/rule
    rules: [{match: 'Explanation: .*?: (\w+)[\s\S]*Window 1: .*\b\1\b', reply: "[1]"}]
    reply: "[0]"
source: {use: synthetic, with: {n_latents: 6, documents: 60}}
latents: {n: 4, min_windows: 20}
sampler: {use: random, with: {explain: 10, score: 20, non_activating: {n: 20}}}
explainer: top_tokens
scorers: {detection: {with: {batch: 1}}}
baselines: [shuffled_explanation]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the spec `mine.yaml`, a run of it, `mine`, and one with a judge that always says no, `other`."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        Path("mine.yaml").write_text(MINE)
        saeval.run("mine.yaml", out="mine")
        saeval.run("mine.yaml", out="other", overrides={"llms.judge.rules": []})
        yield folder


def docstring_examples():
    found = []
    for file in sorted((ROOT / "saeval").rglob("*.py")):
        if ">>> " in file.read_text():
            module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            found += [test for test in doctest.DocTestFinder().find(module) if test.examples]
    return found


@pytest.mark.parametrize("example", docstring_examples(), ids=lambda example: example.name)
def test_example_of_a_docstring_is_true(example, runs):
    example.globs["saeval"] = saeval
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)


def test_notebook_of_the_examples_gives_what_it_shows(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    shown = nbformat.read(ROOT / "examples" / "first-steps.ipynb", as_version=4)
    run = nbclient.execute(copy.deepcopy(shown), cwd=str(tmp_path))

    def text(notebook):  # in one piece, since what is printed may come in several
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
        return "".join(o.get("text") or o["data"]["text/plain"] for o in outputs)

    assert text(run) == text(shown) != ""


def test_readme_and_ci_give_the_same_test_command():
    command = "pip install -c constraints.txt '.[test]' && pytest"
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()
    assert "run: bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
