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
from saeval.plugin import RunProgress, RunResult, Tracker
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
    assert "tracker broken: " in line and said in line and "the run itself is complete" in line and "canary" not in line


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


@pytest.fixture
def open_runs(monkeypatch):
    """Stand-ins for wandb and trackio: what runs were opened with, and what they were told, by run."""
    opened, told = [], []

    def init(**options):
        opened.append(options)
        name = options.get("id") or options["name"]
        return SimpleNamespace(
            log=lambda numbers: told.append((name, numbers)), finish=lambda: told.append((name, "finished")),
            log_artifact=lambda artifact: told.append((name, artifact.files)),
            config=SimpleNamespace(update=lambda facts, **_: told.append((name, facts))),
        )  # fmt: skip

    def artifact(name, type):
        files = []
        return SimpleNamespace(files=files, add_file=files.append)

    for name in ("wandb", "trackio"):
        module = ModuleType(name)
        module.init, module.Settings, module.Artifact = init, SimpleNamespace, artifact
        monkeypatch.setitem(sys.modules, name, module)
    return opened, told


def progress_of(result, folder, **numbers):
    return RunProgress(result.task, result.spec_sha, result.run_id, folder, 12.0, numbers)


def test_wandb_is_told_numbers_settings_and_files_under_one_name(tmp_path, open_runs):
    opened, told = open_runs
    (tmp_path / "results.json").write_text("{}")
    result: RunResult = made_run()
    Wandb(project="mine").track(result, tmp_path)
    assert opened[0]["project"] == "mine" and opened[0]["resume"] == "allow"
    (_, numbers), (_, facts), (_, files), (_, last) = told
    assert facts["spec_sha"] == result.spec_sha and files == [str(tmp_path / "results.json")] and last == "finished"
    row = result.cells[0].scores[0]
    name = f"{result.cells[0].cell}/{row.scorer}.{row.metric}"
    assert numbers[name] == row.value and (numbers[name + ".low"], numbers[name + ".high"]) == row.ci95
    assert numbers[name + ".n"] == row.n and numbers["partial"] == 0.0
    assert "usd" not in numbers  # the price of made_run's judge is unknown
    Wandb().track(result, tmp_path)
    assert opened[1]["id"] == opened[0]["id"]
    assert opened[0]["reinit"] == "create_new"  # a run that the caller has open is not ended


@pytest.mark.parametrize("tracker", [Wandb(), Trackio()])
def test_one_run_of_the_tracker_gets_progress_and_results(tmp_path, open_runs, tracker):
    opened, told = open_runs
    result = made_run()
    for done in (0.25, 0.5):
        tracker.follow(progress_of(result, tmp_path, **{"done/explain": done, "usd": done}))
    tracker.track(result, tmp_path)
    assert len(opened) == 1
    assert [t["done/explain"] for _, t in told[:2]] == [0.25, 0.5] and told[0][1]["seconds"] == 12.0
    assert told[2][1]["partial"] == 0.0 and told[-1][1] == "finished"
    tracker.track(result, tmp_path)
    assert len(opened) == 2


def test_mlflow_gets_progress_by_second_and_results_in_one_run(tmp_path, monkeypatch):
    logged, runs = [], []

    class Client:
        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id="7")

        def search_runs(self, ids, filter_string, max_results):
            return [r for r in runs if r.key in filter_string]

        def create_run(self, experiment, run_name, tags):
            (key,) = tags.values()
            runs.append(SimpleNamespace(key=key, info=SimpleNamespace(run_id=f"r{len(runs)}")))
            return runs[-1]

        def log_batch(self, run_id, metrics=(), params=()):
            logged.extend((run_id, *metric) for metric in metrics)

        def set_terminated(self, run_id):
            logged.append((run_id, "over"))

    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = Client
    entities.Metric = lambda name, value, when, step: (name, value, step)
    entities.Param = lambda name, value: (name, value)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    result = made_run()
    Mlflow().follow(progress_of(result, tmp_path, usd=0.25))
    Mlflow().track(result, tmp_path)
    assert logged[0] == ("r0", "usd", 0.25, 12) and logged[-1] == ("r0", "over") and len(runs) == 1


DIARY = """
import json
from saeval.plugin import Tracker


class Diary(Tracker):
    "Keeps what it is told, and fails once there are scores."

    name = "diary"

    def follow(self, progress):
        with (progress.folder / "diary.jsonl").open("a") as file:
            print(json.dumps(dict(progress.numbers)), file=file)
        if any(name.startswith("so_far") for name in progress.numbers):
            raise RuntimeError("enough")

    def track(self, result, folder):
        (folder / "end.json").write_text("{}")
"""
SLOW = """
import asyncio
from saeval.plugin import Explainer, Explanation


class Slow(Explainer):
    "Waits, so that the thread that reports gets its turn while the run goes on."

    name = "slow"

    async def explain(self, examples, context):
        await asyncio.sleep(0.1 * (context.latent.index + 1))
        return Explanation(text="x")
"""


def test_run_reports_progress_spending_and_scores_while_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tracking, "_EVERY", 0.02)
    monkeypatch.setattr("saeval._run.progress_file._EVERY", 0.0)
    monkeypatch.setattr("saeval._run.progress_file._SHARE", 1e9)
    (tmp_path / "diary.py").write_text(DIARY)
    (tmp_path / "slow.py").write_text(SLOW)
    task = SPEC | {
        "explainer": f"{tmp_path}/slow.py:Slow",
        "run": {"trackers": [{"use": f"{tmp_path}/diary.py:Diary"}]},
    }
    display = Kept()
    saeval.run(task, out=tmp_path / "run", display=display)
    told = [json.loads(line) for line in (tmp_path / "run" / "diary.jsonl").read_text().splitlines()]
    assert any(0 < entry.get("done/explain", 0) < 1 for entry in told)
    scores = [name for name in told[-1] if name.startswith("so_far/all/detection.balanced_accuracy")]
    assert scores and told[-1]["calls"] > 0
    assert (tmp_path / "run" / "end.json").exists()  # a tracker that fails on the way gets the end all the same
    assert any("enough; it receives no more progress" in line for line in display.said)
