"""Trackers are told of a run when it ends, and whatever goes wrong there harms no run."""

from __future__ import annotations

import json
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from made_run import made_run
from saeval_plugins.trackers import Mlflow, Trackio, Wandb

import saeval
from saeval import SpecError
from saeval._run import tracking
from saeval._util.progress import Silent
from saeval.plugin import RunResult, Tracker
from saeval.plugin.registry import Loaded, Registry
from saeval.task.loader import load_task
from saeval.task.parts import Part
from saeval.testing.contracts import check_tracker

SPEC = {
    "saeval": 1, "task": "told", "version": "1.0", "source": {"use": "synthetic", "with": {"documents": 60, "n_latents": 8}},
    "llms": {"judge": {"model": "scripted/no", "reply": "[0]"}}, "latents": {"n": 3, "min_windows": 20},
    "sampler": {"use": "random", "with": {"explain": 10, "score": 20, "non_activating": {"n": 20}}},
    "explainer": "top_tokens", "scorers": {"detection": {"with": {"batch": 1}}},
}  # fmt: skip


class Kept(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def part(tracker):
    return Part(tracker, Loaded(f"saeval/{tracker.name}", "tracker", type(tracker), "saeval", "0"))


class Diary(Tracker):
    """Keeps what it is told."""

    name = "diary"

    def track(self, result, folder):
        (folder / "diary.txt").write_text(result.task)


class Broken(Tracker):
    """Fails in the way that is asked for."""

    name = "broken"
    how: str = "raise"

    def track(self, result, folder):
        if self.how == "raise":
            raise RuntimeError("no such project, key sk-canary-1234567890abcdef")
        if self.how == "exit":
            sys.exit(3)
        time.sleep(60)


@pytest.mark.parametrize(
    ("how", "said"), [("raise", "RuntimeError: no such project"), ("exit", "SystemExit: 3"), ("hang", "still not done")]
)
def test_tracker_that_fails_is_a_sentence_and_the_next_one_is_told(tmp_path, monkeypatch, how, said):
    monkeypatch.setattr(tracking, "_LONGEST", 0.2)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1234567890abcdef")
    display = Kept()
    tracking.tell([part(Broken(how=how)), part(Diary())], made_run(), tmp_path, display)
    assert (tmp_path / "diary.txt").read_text() == "face-off"
    (line,) = display.said
    assert "tracker broken: " in line and said in line and "the run itself is whole" in line and "canary" not in line


def test_run_names_its_trackers_and_tells_them_whether_it_ends_whole_or_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "diary.py").write_text(
        "import json\nfrom saeval.plugin import Tracker\n\n\nclass Diary(Tracker):\n    '''Keeps what it is told.'''\n\n"
        "    name = 'diary'\n\n    def track(self, result, folder):\n"
        "        told = folder / 'diary.json'\n        told.write_text(json.dumps([result.run_id, result.partial]))\n"
    )
    task = SPEC | {"run": {"trackers": [{"use": f"{tmp_path}/diary.py:Diary"}]}}
    result = saeval.run(task, out=tmp_path / "run", limit=2)
    assert json.loads((tmp_path / "run" / "diary.json").read_text()) == ["run", True]
    assert result.reproducible == saeval.run(SPEC, out=tmp_path / "other", limit=2).reproducible
    saeval.run(task, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "diary.json").read_text()) == ["run", False]


def test_trackers_change_neither_the_task_s_hash_nor_its_place():
    def sha(**run):
        return load_task(SPEC | {"run": run}, registry=Registry(), check=False).sha

    assert sha(trackers=["wandb"]) == sha() == sha(concurrency=3)
    assert sha(seed=1) != sha()


def test_unknown_tracker_is_refused_before_anything_runs():
    with pytest.raises(SpecError, match=r"run.trackers.0.use: unknown tracker 'wandbb', did you mean 'wandb'"):
        load_task(SPEC | {"run": {"trackers": ["wandbb"]}}, registry=Registry())


@pytest.mark.parametrize("tracker", [Mlflow(), Trackio(), Wandb()])
def test_tracker_that_is_not_installed_says_what_to_install(monkeypatch, tracker):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(saeval.InputError, match="pip install"):
        tracker.check()


def test_wandb_without_a_key_is_refused_before_anything_runs(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(saeval.InputError, match="set WANDB_API_KEY, or WANDB_MODE=offline"):
        Wandb().check()
    monkeypatch.setenv("WANDB_MODE", "offline")
    Wandb().check()


@pytest.mark.slow
def test_wandb_keeps_the_contract_without_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    check_tracker(Wandb())


@pytest.mark.parametrize(("module", "tracker"), [("mlflow", Mlflow()), ("trackio", Trackio())])
def test_tracker_keeps_the_contract_on_this_machine(tmp_path, monkeypatch, module, tracker):
    pytest.importorskip(module)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    check_tracker(tracker)


def test_wandb_is_told_numbers_settings_and_files_under_one_name(tmp_path, monkeypatch):
    told = []

    def init(**options):
        told.append(options)
        return SimpleNamespace(
            log=lambda numbers: told.append(numbers), log_artifact=lambda a: told.append(a), finish=lambda: None
        )

    wandb = ModuleType("wandb")
    wandb.init, wandb.Settings = init, SimpleNamespace
    wandb.Artifact = lambda name, type: SimpleNamespace(files=[], add_file=lambda file: told.append(file))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / "results.json").write_text("{}")
    result: RunResult = made_run()
    Wandb(project="mine").track(result, tmp_path)
    first = told[0]
    numbers = told[1]
    assert first["project"] == "mine" and first["resume"] == "allow" and first["config"]["spec_sha"] == result.spec_sha
    row = result.cells[0].scores[0]
    name = f"{result.cells[0].cell}/{row.scorer}.{row.metric}"
    assert numbers[name] == row.value and (numbers[name + ".low"], numbers[name + ".high"]) == row.ci95
    assert numbers[name + ".n"] == row.n and numbers["partial"] == 0.0
    assert "usd" not in numbers  # the price of made_run's judge is unknown
    assert told[2] == str(tmp_path / "results.json")
    told.clear()
    Wandb().track(result, tmp_path)
    assert told[0]["id"] == first["id"]
