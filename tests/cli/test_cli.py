"""The command line as users type it: quick, one clear sentence for each mistake, honest exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from command import run_command
from fake_server import error
from planted_run import spec, truthful_server

from saeval.plugin import base as interfaces
from saeval.plugin.kinds import KINDS

HEAVY = (
    "torch",
    "transformers",
    "litellm",
    "sae_lens",
    "datasets",
    "sentence_transformers",
    "evaluate",
    "scipy",
    "pyarrow",
    "numpy",
    "pydantic",
)


@pytest.fixture
def saeval(tmp_path):
    return partial(run_command, cwd=tmp_path, env={"SAEVAL_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"})


def write(path, server, **changes):
    path.write_text(yaml.safe_dump(spec(server, **changes)))
    return path


@pytest.mark.parametrize("command", [["--help"], ["list"]])
def test_help_and_list_import_nothing_heavy(command):
    program = f"import sys; sys.argv = ['saeval', *{command!r}]\ntry:\n import saeval.cli; saeval.cli.main()\nexcept SystemExit: pass\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_listing_built_ins_imports_nothing_heavy():
    heavy = HEAVY[:9]
    program = f"import sys; from saeval.plugin.registry import Registry; Registry().load_all(); print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_kinds_of_plugins_are_those_of_the_registry():
    assert tuple(interfaces.BASE_CLASSES) == KINDS


def test_validating_leaves_source_code_unread():
    """The docstrings beneath options are for `show` and `schema`; to parse them took a third of the time."""
    program = """
import ast, sys
from unittest.mock import Mock
ast.parse = Mock(side_effect=ast.parse)
sys.argv = ["saeval", "validate", "--task", "quickstart"]
try:
    import saeval.cli
    saeval.cli.main()
finally:
    print(ast.parse.call_count)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    validated, parsed = done.stdout.splitlines()
    assert "valid" in validated and int(parsed) < 20


def test_activations_can_be_collected_before_any_model_is_there(saeval, tmp_path):
    """On the only GPU of a machine, collecting and a server take turns."""
    with truthful_server() as server:
        task = write(tmp_path / "task.yaml", server)
        server.always = error(503, "not yet")
        said = saeval("run", task, "--out", "run", "--until", "collect").stdout
        assert "collected 1 cell of" in said and "without --until" in said and not server.calls
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "collected"
        assert not (tmp_path / "run" / "results.json").exists()
        found = json.loads(saeval("run", task, "--out", "run", "--until", "collect", "--json").stdout)["collected"]
        (store,) = map(Path, found.values())
        written = (store / "manifest.json").stat().st_mtime_ns
        server.always = None
        saeval("run", task, "--out", "run", "--set", "run.seeds=1")
        assert server.calls and (store / "manifest.json").stat().st_mtime_ns == written
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_run_prints_the_leaderboard_writes_its_files_and_resumes(saeval, tmp_path):
    with truthful_server() as server:
        task = write(tmp_path / "task.yaml", server)
        first = saeval("run", "--task", task, "--out", "run", "--display", "plain")
        assert "detection" in first.stdout and "1.00" in first.stdout
        asked = len(server.calls)
        again = saeval("run", "--task", "task.yaml", "--out", "run", "--json")
        assert len(server.calls) == asked
        assert json.loads(again.stdout)["task"] == "planted"
        resolved = saeval("run", "--task", "run/spec.yaml", "--out", "run")
        assert len(server.calls) == asked and "detection" in resolved.stdout
    assert "detection" in saeval("report", "run").stdout
    assert json.loads(saeval("list", "runs", "--json").stdout) == []


def test_undefined_metric_of_a_scored_latent_is_no_failure(saeval, tmp_path):
    once = {
        "match": "Explanation: .*(harbor|lantern|violin)",
        "reply": "[1, 1, 1, 1, 1]",
    }  # for other latents precision is undefined
    judge = {"model": "scripted/rarely", "rules": [once], "reply": "[0, 0, 0, 0, 0]"}
    changes = {"llms": {"judge": judge}, "explainer": "top_tokens", "scorers": {"detection": {}}, "baselines": []}
    with truthful_server() as server:  # which nobody asks
        shown = saeval("run", write(tmp_path / "task.yaml", server, **changes), "--out", "run")
    assert "detection" in shown.stdout and "why latents failed" not in shown.stdout
    (cell,) = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    rows = {row["metric"]: row for row in cell["scores"]}
    assert rows["precision"]["n"] < rows["balanced_accuracy"]["n"]
    assert not rows["precision"]["failed"] and not rows["balanced_accuracy"]["failed"]


def test_default_directory_is_the_same_for_the_same_task(saeval, tmp_path):
    with truthful_server() as server:
        task = write(tmp_path / "task.yaml", server, baselines=[])
        saeval("run", "--task", task)
        saeval("run", "--task", task)
    (row,) = json.loads(saeval("list", "runs", "--json").stdout)
    assert row["status"] == "done" and row["name"].startswith("planted-")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--task", "quikstart"], "no task 'quikstart', did you mean 'quickstart'?"),
        (["run", "--task", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["run", "--task", "task.yaml", "--set", "run.sed=1"], "--set run.sed: no such key, did you mean 'seed'?"),
        (["run", "--task", "task.yaml", "--llm", "jugde=openai/x"], "the task has no role 'jugde'; it has: explainer, judge"),
        (["run", "--task", "task.yaml", "--llm", "judge"], "write ROLE=MODEL"),
        (["run", "--task", "task.yaml", "--out", "task.yaml/x"], "cannot be written"),
        (["run", "--task", "task.yaml", "--set", "latents.min_windows=9999"], "no latent has 9999 activating windows"),
        (["show", "scorer", "detecton"], "did you mean 'detection'?"),
        (["report", "nothing-here"], "no results.json there"),
        (["validate", "--task", "quickstart", "--set", "source.with.coder.with.path=./no-sae"], "no-sae"),
        (["validate", "--task", "quickstart", "--set", "source.with.model=./no-model"], "no-model"),
        (["validate", "--task", "quickstart", "--set", "source.with.corpus.path=./no-corpus.txt"], "no such file or folder"),
        (["validate", "--task", "quickstart", "--set", "source.with.model=package:nothing"], "no asset 'package:nothing'"),
    ],
)  # fmt: skip
def test_mistake_is_one_clear_sentence_and_exit_code_2(saeval, tmp_path, arguments, sentence):
    with truthful_server() as server:
        write(tmp_path / "task.yaml", server)
        done = saeval(*arguments, code=2)
        assert sentence in done.stderr
        assert not server.calls


def test_validate_reports_all_mistakes_and_shipped_tasks_are_valid(saeval, tmp_path):
    with truthful_server() as server:
        task = write(
            tmp_path / "task.yaml", server, scorers={"detection": {"with": {"batsh": 1}}, "nope": {}}, run={"sed": 1}
        )
        task.write_text(task.read_text().replace("sed: 1", "seed: 1"))
        done = saeval("validate", "--task", task, "--json", code=2)
        assert len(json.loads(done.stdout)["problems"]) == 2
    for name in ("quickstart", "quickstart-live"):
        assert json.loads(saeval("validate", "--task", name, "--json").stdout)["cells"] == [
            "coder=topk", "coder=random_sae", "coder=neurons", "coder=batchtopk",
        ]  # fmt: skip


def test_show_preview_and_plugins(saeval, tmp_path):
    assert "batch: int" in saeval("show", "scorer", "detection").stdout
    (tmp_path / "mine.py").write_text(
        "from saeval.plugin import Tracker\n\n\nclass Mine(Tracker):\n    name = 'mine'\n    def track(self, r, f): ..."
    )
    assert saeval("show", "tracker", "./mine.py:Mine").stdout.split("\n", 1)[1] == "\nno docstring\n\nno options\n"
    assert yaml.safe_load(saeval("show", "task", "quickstart").stdout)["task"] == "quickstart"
    assert json.loads(saeval("plugins", "--json").stdout)[0]["status"] == "ok"
    with truthful_server() as server:
        task = write(tmp_path / "task.yaml", server)
        prompts = json.loads(saeval("preview", "--task", task, "--json").stdout)
        assert {p["step"] for p in prompts} == {"explain", "detection", "fuzzing"}
        assert "(placeholder for the explanation)" in prompts[-1]["text"]
        assert not server.calls


CHATTY = """
from saeval.plugin import Metric, Score, Scorer

print("chatty: imported")


class Chatty(Scorer):
    name = "chatty"
    metrics = (Metric("words"),)

    async def score(self, explanation, examples, context):
        print("chatty: scores", flush=True)
        return Score(values={"words": 0.5})
"""


@pytest.mark.parametrize("command", [["validate"], ["plan"], ["run", "--out", "run"]])
def test_json_is_all_that_a_command_prints_whatever_plugins_print(saeval, tmp_path, command):
    (tmp_path / "chatty.py").write_text(CHATTY)
    with truthful_server() as server:
        changes = {"scorers": {"chatty": {"use": "./chatty.py:Chatty"}}, "baselines": [], "measure": []}
        task = write(tmp_path / "task.yaml", server, **changes)
        done = saeval(*command, task, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)
    assert "chatty: imported" in done.stderr and ("chatty: scores" in done.stderr) == (command[0] == "run")


def test_exit_codes_of_a_dead_server_a_spent_budget_and_too_many_failures(saeval, tmp_path):
    with truthful_server() as server:
        priced = {
            "model": "openai_compatible/x",
            "api_base": server.url,
            "usd_per_million_input": 100.0,
            "usd_per_million_output": 100.0,
        }
        task = write(tmp_path / "task.yaml", server, llms={"explainer": priced, "judge": priced}, baselines=[])
        done = saeval("run", "--task", task, "--out", "run", "--max-cost", "0.1", code=3)
        assert "rerun with a higher --max-cost" in done.stderr
        saeval("run", "--task", task, "--out", "run", "--max-cost", "100")
        truthful = server.reply
        server.reply = lambda m: (
            "?" if "'harbor'" in m[-1]["content"] and m[-1]["content"].startswith("Explanation") else truthful(m)
        )
        listed = {"select": "list", "indices": [0, 1, 2, 3]}
        flaky = write(
            tmp_path / "flaky.yaml",
            server,
            baselines=[],
            latents=listed,
            llms={r: {"model": "openai_compatible/f", "api_base": server.url} for r in ("explainer", "judge")},
        )
        assert "latents failed (run.max_failed 0.05)" in saeval("run", "--task", flaky, "--out", "flaky", code=1).stderr
        server.url = "http://127.0.0.1:9/v1"  # nobody listens there
        task = write(tmp_path / "dead.yaml", server, run={"give_up_after": 2})
    done = saeval("run", "--task", task, "--out", "dead", "--set", "llms.explainer.retries=0", code=2)
    assert "no connection" in done.stderr and "nothing was collected yet" in done.stderr
    assert "start the server, or correct `api_base`" in " ".join(done.stderr.split())
