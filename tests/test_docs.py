"""What the documentation shows is what there is: its specs validate, its code runs, its links lead somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml
from planted_run import spec, truthful_server

import saeval
from saeval import (
    LLM,
    ActivationSource,
    Coder,
    Explainer,
    LanguageModel,
    Plugin,
    Sampler,
    Scorer,
    Step,
    hookspecs,
)
from saeval.plugins import Registry
from saeval.spec import Document, PartSpec, RoleSpec, TaskSpec, cells_of, parse
from saeval.task import load_task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_spec_of_the_readme_is_a_task():
    (text,) = blocks("README.md", "yaml")
    task = load_task(yaml.safe_load(text), registry=Registry(), check=False)
    assert [cell.name for cell in task.cells] == ["all", "coder=random_sae"]


def test_spec_of_the_task_reference_is_valid():
    (text,) = blocks("docs/task-reference.md", "yaml")
    assert [parse(filled).task for _, filled in cells_of(Document(yaml.safe_load(text), {}))] == ["face-off"] * 2


def test_specs_of_the_tutorial_are_valid():
    (role,), (mine,), (scorers,) = (
        [b for b in blocks("docs/tutorial.md", "yaml") if key in b] for key in ("api_base", "task: my-sae", "my_scorer")
    )
    RoleSpec.model_validate(yaml.safe_load(role)["llms"]["judge"])
    PartSpec.model_validate(yaml.safe_load(scorers)["scorers"]["mine"])
    assert parse(
        Document(
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
    for model in (TaskSpec, PartSpec):
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


def test_tutorial_code_reads_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        saeval.run(spec(server, baselines=[]), out=tmp_path / "run")
    (code,) = blocks("docs/tutorial.md", "python")
    exec(code.replace("saeval-runs/quickstart-…", str(tmp_path / "run")), {})
    assert "balanced_accuracy 1.0" in capsys.readouterr().out


def test_hooks_page_has_every_hook_with_its_signature():
    page = (ROOT / "docs" / "hooks.md").read_text()
    hooks = {name: getattr(hookspecs, name) for name in dir(hookspecs) if name.startswith("saeval_")}
    headings = re.findall(r"^## `(\w+)(\(.*)`$", page, re.MULTILINE)
    assert dict(headings) == {name: str(inspect.signature(hook)) for name, hook in hooks.items()}


KINDS = {
    "What all": (Plugin,),
    "`saeval_coders": (Coder,),
    "`saeval_explainers": (Explainer, Step),
    "`saeval_llms": (LLM, LanguageModel),
    "`saeval_samplers": (Sampler,),
    "`saeval_scorers": (Scorer, Step),
    "`saeval_sources": (ActivationSource,),
}


@pytest.mark.parametrize("heading", KINDS)
def test_hooks_page_has_everything_that_a_plugin_of_each_kind_may_fill_in(heading):
    page = (ROOT / "docs" / "hooks.md").read_text()
    (section,) = (s for s in page.split("\n## ") if s.startswith(heading))
    for cls in KINDS[heading]:
        names = [*vars(cls), *vars(cls).get("__annotations__", {})]
        for name in (n for n in names if not n.startswith(("_", "model_"))):
            thing = getattr(cls, name, None)
            if inspect.isroutine(thing):
                function = inspect.unwrap(getattr(thing, "__func__", thing))
                summary = (inspect.getdoc(function) or "").split("\n")[0]
                assert f"def {name}{inspect.signature(function)}`: {summary}\n" in section, name
            else:
                assert f"`{name}`" in section, name
        assert heading == "What all" or (inspect.getdoc(KINDS[heading][0]) or "").split("\n")[0] in section


def test_reliability_page_names_tests_that_exist():
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), test


def test_reliability_code_does_failed_latents_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with truthful_server() as server:
        Path("mine.yaml").write_text(yaml.safe_dump(spec(server, baselines=[], scorers={"detection": {}})))
        (code,) = blocks("docs/reliability.md", "python")
        exec(code, {})
    assert capsys.readouterr().out == "0\n"


def test_readme_and_ci_give_the_same_test_command():
    command = "pip install -c constraints.txt '.[test]' && pytest"
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()
