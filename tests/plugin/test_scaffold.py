"""`saeval new` makes plugins that keep their contract and run at once; `saeval plugins check` says whether others do."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from environments import new_environment, sh
from root import ROOT

import saeval
from saeval import InputError, LLMError, PluginError
from saeval.cli.group import main
from saeval.plugin import AUROC, LLM, LogprobReply, Outcome, Reply, Score, Scorer, Usage, scaffold
from saeval.plugin.kinds import KINDS
from saeval.plugin.registry import Loaded, Registry
from saeval.task.loader import load_task
from saeval.testing.contracts import check_llm
from saeval.testing.plugin_checks import check_package

RUNNABLE = {"scorer", "explainer", "sampler", "source"}
SPEC = {
    "saeval": 1, "task": "mine", "version": "1",
    "source": {"use": "synthetic", "with": {"n_latents": 8, "documents": 60}},
    "latents": {"n": 3, "min_windows": 20},
    "sampler": {"use": "random", "with": {"explain": 10, "score": 10, "non_activating": {"n": 10}}},
    "explainer": {"use": "top_tokens", "with": {"k": 1}},
    "llms": {"judge": {"model": "scripted/rule", "reply": "[1, 1, 1, 1, 1]"}},
    "scorers": {"detection": {}},
}  # fmt: skip


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that puts a made package on the path, with the metadata pip would write."""
    before = set(sys.modules)

    def install(made: list[Path]) -> str:
        project = tomllib.loads(made[0].read_text())["project"]
        source = made[0].parent / "src"
        info = source / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {r}\n" for r in project["dependencies"])
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{needs}"
        )
        points = "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["saeval"].items())
        (info / "entry_points.txt").write_text(f"[saeval]\n{points}")
        monkeypatch.syspath_prepend(str(source))
        return str(project["name"])

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("saeval_my"):
            del sys.modules[name]


@pytest.mark.parametrize("kind", KINDS)
def test_made_package_keeps_its_contract_and_its_task_is_valid(installed, tmp_path, kind):
    package = installed(scaffold.new(kind, f"my_{kind}", out=tmp_path))
    checked = list(check_package(Registry(), package))
    assert [(row.kind, row.status, row.reason) for row in checked if row.kind != "task"] == [(kind, "ok", "")]
    assert [row.status for row in checked if row.kind == "task"] == ["ok"] * (kind in RUNNABLE)


@pytest.mark.parametrize("kind", sorted(RUNNABLE))
def test_task_of_a_made_package_runs_without_a_model(installed, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    installed(scaffold.new(kind, f"my_{kind}", out=tmp_path))
    result = saeval.run(f"my-{kind}/my_{kind}", out=tmp_path / "run")
    row = result.cells[0].scores[0]
    assert (row.n, row.failed) == (6, 0) and row.value == 1.0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llm"])
def test_single_file_is_valid_in_a_spec(tmp_path, kind):
    (file,) = scaffold.new(kind, f"my_{kind}", single_file=True, out=tmp_path)
    part = {"use": f"{file}:{scaffold.class_name(f'my_{kind}')}"}
    corpus = tmp_path / "text.txt"
    corpus.write_text("text " * 100)
    changes = {
        "coder": {"source": {"use": "transformers", "with": {
            "model": "someone/model", "hookpoint": "layers.0", "coder": part, "corpus": {"path": str(corpus)}
        }}},
        "scorer": {"scorers": {"mine": part}},
        "tracker": {"run": {"trackers": [part]}},
    }.get(kind, {kind: part})  # fmt: skip
    task = load_task({**SPEC, **changes}, registry=Registry(), check=kind != "coder")
    assert any(p.loaded.id == f"local/my_{kind}" for p in (*task.parts(), *task.trackers))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("my-scorer", "name 'my-scorer': use lower-case letters, digits and single underscores"),
        ("Mine", "use lower-case letters"),
        ("mine_", "use lower-case letters"),
        ("../mine", "use lower-case letters"),
        ("2nd", "use lower-case letters"),
        ("", "use lower-case letters"),
        ("score", "its class would be called Score, which is taken"),
        ("scorer", "its class would be called Scorer, which is taken"),
        ("none", "its class would be called None, which is taken"),
        ("class", "it is a keyword of Python"),
        ("plugins", "a module saeval_plugins is installed already"),
        ("local", "which saeval itself uses"),
        ("saeval", "which saeval itself uses"),
    ],
)
def test_name_that_will_not_do_is_one_clear_sentence_and_makes_nothing(tmp_path, name, complaint):
    done = CliRunner().invoke(main, ["new", "scorer", name, "--out", str(tmp_path)])
    assert done.exit_code == 2 and complaint in done.output and len(done.output.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_single_file_does_not_hide_a_module(tmp_path):
    with pytest.raises(InputError, match="a module numpy is installed already"):
        scaffold.new("scorer", "numpy", single_file=True, out=tmp_path)


def test_language_model_cannot_be_a_single_file(tmp_path):
    with pytest.raises(InputError, match="omit --file"):
        scaffold.new("llm", "mine", single_file=True, out=tmp_path)


@pytest.mark.parametrize("single_file", [True, False])
def test_nothing_is_overwritten(tmp_path, single_file):
    first, *_ = scaffold.new("scorer", "mine", single_file=single_file, out=tmp_path)
    first.write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        scaffold.new("scorer", "mine", single_file=single_file, out=tmp_path)
    assert first.read_text() == "precious"


def test_folder_that_cannot_be_written_to_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        scaffold.new("scorer", "mine", out=tmp_path / "file")


def test_made_package_asks_for_this_saeval_and_the_next_breaking_one_is_refused(installed, tmp_path, monkeypatch):
    package = installed(scaffold.new("scorer", "my_scorer", out=tmp_path))
    assert Registry().load("my-scorer")
    for version, needs in (("0.1.0", "saeval>=0.1,<0.2"), ("0.2.3", "saeval>=0.2,<0.3"), ("1.4.0", "saeval>=1.4,<2")):
        monkeypatch.setattr(saeval, "__version__", version)
        made = scaffold.new("scorer", "other", out=tmp_path / version)
        assert tomllib.loads(made[0].read_text())["project"]["dependencies"] == [needs]
    monkeypatch.setattr(saeval, "__version__", "0.2.0")
    with pytest.raises(PluginError, match=r"my-scorer 0.1.0 needs saeval<0.2,>=0.1, this is saeval 0.2.0"):
        list(check_package(Registry(), package))


# --- saeval plugins check -----------------------------------------------------------------------------------


class Fine(Scorer):
    """Always one half."""

    name = "fine"
    metrics = (AUROC,)

    async def score(self, explanation, examples, context):
        return Score(values={"auroc": 0.5})


class OutOfRange(Fine):
    """Leaves its metric's range."""

    name = "out_of_range"

    async def score(self, explanation, examples, context):
        return Score(values={"auroc": 2.0})


class Fewer(Fine):
    """Judges two windows."""

    name = "fewer"

    async def score(self, explanation, examples, context):
        windows = examples.activating[:1] + examples.non_activating[:1]
        outcomes = tuple(Outcome(example=w.id, active=w.active, predicted=w.active) for w in windows)
        return Score(values={"auroc": 1.0 if outcomes else 0.5}, outcomes=outcomes)


class Raising(Fine):
    """Raises."""

    name = "raising"

    async def score(self, explanation, examples, context):
        raise TypeError("of\ntwo lines")


class NeedsOptions(Fine):
    """Has an option without a default."""

    name = "needs_options"
    n: int


class GivesOptions(NeedsOptions):
    """Gives an example of its options."""

    name = "gives_options"
    contract_options = {"n": 3}


class NeedsModel(Fine):
    """Asks the live model."""

    name = "needs_model"

    def needs(self):
        return frozenset({"subject"})


class MissingFile(Fine):
    """Looks for a file that is not there."""

    name = "missing_file"

    def check(self):
        raise InputError("ratings.csv: no such file")


@pytest.fixture
def acme(monkeypatch):
    """A package of the scorers named."""

    def provide(*classes):
        found = {("scorer", c.name): Loaded(f"acme/{c.name}", "scorer", c, "saeval-acme", "1.0") for c in classes}
        monkeypatch.setattr(Registry, "load", lambda self, namespace: found)
        monkeypatch.setattr(Registry, "namespaces", ["acme"])
        monkeypatch.setattr("saeval.testing.plugin_checks.shipped_tasks", lambda registry: [])

    return provide


def test_every_plugin_is_a_row_with_what_became_of_it(acme):
    acme(Fine, Fewer, OutOfRange, Raising, NeedsOptions, GivesOptions, NeedsModel, MissingFile)
    rows = {row.name: (row.status, row.reason) for row in check_package(Registry(), "acme")}
    status, reason = rows.pop("acme/fewer")
    assert status == "ok" and "windows have no outcome" in reason
    assert rows == {
        "acme/fine": ("ok", ""),
        "acme/out_of_range": ("failed", "auroc = 2.0 lies outside 0.0 to 1.0"),
        "acme/raising": ("failed", "TypeError: of two lines"),
        "acme/needs_options": ("unchecked", "requires options; set them in `contract_options`: n is missing"),
        "acme/gives_options": ("ok", ""),
        "acme/needs_model": ("unchecked", "needs a source with a subject; test it with `source=`"),
        "acme/missing_file": ("unchecked", "ratings.csv: no such file"),
    }


@pytest.mark.parametrize(("classes", "code"), [((Fine, NeedsOptions), 0), ((Fine, Raising), 1)])
def test_exit_code_says_whether_a_contract_is_broken(acme, classes, code):
    acme(*classes)
    shown = CliRunner().invoke(main, ["plugins", "check", "acme"])
    listed = CliRunner().invoke(main, ["plugins", "check", "acme", "--json"])
    assert shown.exit_code == listed.exit_code == code
    assert "ok         scorer acme/fine" in shown.output
    assert [row["name"] for row in json.loads(listed.output)] == sorted(f"acme/{c.name}" for c in classes)


def test_package_that_is_not_installed_is_one_clear_sentence():
    done = CliRunner().invoke(main, ["plugins", "check", "nowhere"])
    assert done.exit_code == 2 and "no plugin package 'nowhere' is installed" in done.output


def test_plugins_are_still_listed():
    done = CliRunner().invoke(main, ["plugins", "--without", "*", "--json"])
    assert done.exit_code == 0 and "saeval" in [row["namespace"] for row in json.loads(done.output)]


@pytest.mark.slow
def test_built_ins_and_shipped_tasks_break_no_contract():
    rows = list(check_package(Registry(), "saeval"))
    assert [row for row in rows if row.status == "failed"] == []
    assert {"detection", "top_tokens", "random", "synthetic", "random_sae", "quickstart"} <= {
        row.name for row in rows if row.status == "ok"
    }


# --- the contract of language models ------------------------------------------------------------------------


class Parrot(LLM):
    """Repeats."""

    name = "parrot"
    model: str = "any"
    fault: str = ""

    @property
    def can_score(self):
        return self.fault.startswith("score")

    async def complete(self, request):
        if self.fault == "type":
            return "Paris"
        if self.fault == "usage":
            return Reply("Paris", Usage(input_tokens=-1))
        return Reply("" if self.fault == "empty" else "Paris")

    async def logprobs(self, request):
        if self.fault in ("", "usage", "empty"):
            raise LLMError("cannot score")
        high = {"score above": 0.5, "score nan": float("nan")}.get(self.fault, -1.0)
        continuations = request.continuations[: 1 if self.fault == "score few" else None]
        return LogprobReply(tuple(tuple((high,) for _ in continuations) for _ in request.prompts))


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("empty", "an empty answer is returned; raise LLMError"),
        ("usage", "is negative"),
        ("type", "`complete` returned str instead of Reply"),
        ("unsaid", "continuations are scored although `can_score` is False"),
        ("score few", "does not score every continuation"),
        ("score above", "above 0 or not finite"),
        ("score nan", "above 0 or not finite"),
    ],
)
def test_the_language_model_contract_catches(fault, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_llm(Parrot(fault=fault))


class PlainParrot(Parrot):
    def complete(self, request):
        return Reply("Paris")


def test_language_model_that_is_not_async_is_told_what_to_write():
    with pytest.raises(AssertionError, match="`complete` is not async; write `async def complete`"):
        check_llm(PlainParrot())


def test_language_model_that_answers_and_cannot_score_keeps_the_contract():
    check_llm(Parrot())


# --- installed ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_made_packages_install_editable_pass_their_tests_and_run(tmp_path):
    made = {kind: scaffold.new(kind, f"my_{kind}", out=tmp_path)[0].parent for kind in KINDS}
    editable = [part for folder in (ROOT, *made.values()) for part in ("--editable", folder)]
    python = new_environment(tmp_path / "environment", *editable)
    tests = [folder / "tests" for folder in made.values()]
    shown = sh(python, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", *tests, cwd=tmp_path)
    assert " passed" in shown and "failed" not in shown
    for kind, folder in made.items():
        rows = json.loads(sh(python, "-m", "saeval", "plugins", "check", folder.name, "--json", cwd=tmp_path))
        assert {row["status"] for row in rows} == {"ok"}, kind
    cache = {"SAEVAL_CACHE": str(tmp_path / "cache")}
    task = "my-scorer/my_scorer"
    assert "my_scorer" in sh(python, "-m", "saeval", "run", "--task", task, "--out", "run", cwd=tmp_path, **cache)
