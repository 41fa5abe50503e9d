"""What people try without reading: listing runs, folders of runs, shared files, and where a failure is explained."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import yaml
from click.testing import CliRunner
from command import run_command
from planted_run import cache_in, spec, truthful_server

import saeval
from saeval._util import write_atomic
from saeval._util.progress import Rich, Spending, remaining
from saeval.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a finished run, a later one that gave up, and a directory that is no run."""
    folder = tmp_path_factory.mktemp("habits")
    with cache_in(folder), truthful_server() as server:
        task = spec(server, baselines=[], scorers={"detection": {}}, latents={"n": 3, "min_windows": 20})
        saeval.run(task, out=folder / "saeval-runs" / "good")
        server.reply = lambda messages: "?"
        broken = {**task, "llms": {r: {**m, "model": "openai_compatible/bad"} for r, m in task["llms"].items()}}
        broken["run"] = {"give_up_after": 2}
        with pytest.raises(saeval.SaevalError):
            saeval.run(broken, out=folder / "saeval-runs" / "bad")
    (folder / "saeval-runs" / "notes").mkdir()
    return folder


def cli(folder, *arguments, code=0, **variables):
    return run_command(*arguments, cwd=folder, env={"BROWSER": "true", **variables}, code=code)


def test_runs_are_listed_with_date_status_models_headline_and_why_they_failed(runs):
    bad, good = json.loads(cli(runs, "list", "runs", "--json").stdout)
    assert good["status"] == "done" and good["n"] == 3 and good["models"] == ["openai_compatible/rules"]
    assert good["headline"].startswith("detection.balanced_accuracy 1.000")
    assert bad["status"] == "gave up" and "all failed for one reason" in bad["reason"]
    shown = cli(runs, "list", "runs", "saeval-runs", COLUMNS="80").stdout
    assert re.search(r"^20\d\d-\d\d-\d\d \d\d:\d\d  done +good$", shown, re.MULTILINE)
    assert all(len(line) <= 80 for line in shown.splitlines()) and "all failed for one reason" in shown


def test_models_of_a_run_are_those_of_its_results_though_its_ledger_counts_an_earlier_spec(runs, tmp_path):
    run = shutil.copytree(runs / "saeval-runs" / "good", tmp_path / "good")
    facts = json.loads((run / "results.json").read_text())
    facts["ledger"].insert(0, {**facts["ledger"][0], "model": "openai_compatible/before", "earlier": True})
    (run / "results.json").write_text(json.dumps(facts))
    (row,) = json.loads(cli(tmp_path, "list", "runs", run, "--json").stdout)
    assert row["models"] == ["openai_compatible/rules"]


def test_a_folder_of_runs_makes_one_board_and_what_has_no_results_is_passed_over(runs):
    board = json.loads(cli(runs, "leaderboard", "saeval-runs", "-f", "json").stdout)
    assert "good" in json.dumps(board)
    assert "no run.json or results.json" in cli(runs, "leaderboard", "saeval-runs/notes", code=2).stderr


def test_view_without_a_path_opens_the_last_run(runs, tmp_path):
    good = runs / "saeval-runs" / "good"
    os.utime(good / "run.json")  # now the latest
    assert "good/report/index.html" in cli(runs, "view").stdout
    assert "good/report/index.html" in cli(runs, "view", "saeval-runs").stdout
    assert "no run there yet" in cli(tmp_path, "view", code=2).stderr
    assert "--port needs --serve" in cli(runs, "view", good, "--port", 8000, code=2).stderr


def test_a_failed_run_says_where_its_log_is_and_the_log_says_why(runs):
    assert "all failed for one reason" in (runs / "saeval-runs" / "bad" / "logs" / "run.log").read_text()
    with truthful_server() as server:
        server.reply = lambda messages: "?"
        task = spec(server, baselines=[], latents={"n": 3, "min_windows": 20}, run={"give_up_after": 2})
        (runs / "unreadable.yaml").write_text(yaml.safe_dump(task))
        done = cli(runs, "run", "unreadable.yaml", "--out", "again", code=1, SAEVAL_CACHE=str(runs / "cache"))
    assert "again/logs/run.log" in done.stderr
    assert "latent" in (runs / "again" / "logs" / "run.log").read_text()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "results.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "results.json").stat().st_mode & 0o777 == mode


def test_a_lab_can_read_what_a_run_wrote(runs):
    mask = os.umask(0)
    os.umask(mask)
    files = [file for file in (runs / "saeval-runs" / "good").rglob("*") if file.is_file() and file.name != "lock"]
    assert len(files) > 10
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {oct(0o666 & ~mask)}


def test_bars_with_times_calls_and_cost_fit_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rich = Rich()
    rich.spending = lambda: Spending(123, 0.5)
    with rich.shown(), rich.stage("explain sae=a-rather-long-name-of-an-sae (random_explanation)", 15_159) as stage:
        stage.reach(9_876)
        stage.advance(failed=True)
    last = capsys.readouterr().err.splitlines()[-2:]
    assert "9,877/15,159 latents" in last[0] and "1 failed" in last[0] and "0:00:0" in last[0]
    assert "123 calls" in last[1] and "$0.50" in last[1]
    assert all(len(line) <= 80 for line in last)


def test_time_left_goes_by_the_speed_so_far():
    assert remaining(10, 5, 20) == "~30 s left"
    assert remaining(60, 1, 11) == "~10 min left"
    assert remaining(60, 0, 11) == remaining(60, 11, 11) == ""


@pytest.mark.parametrize("command", ["run quickstart --max-cost", "leaderboard RUN --match-l0"])
@pytest.mark.parametrize("number", ["nan", "-NaN"])
def test_option_that_is_not_a_number_is_refused_in_one_sentence(tmp_path, monkeypatch, command, number):
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, [*command.split(), number])
    assert said.exit_code == 2 and f"{number!r} is not a number." in said.output and not list(tmp_path.iterdir())


def test_a_display_may_be_named_and_an_unknown_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server, pytest.raises(saeval.InputError, match="did you mean 'plain'"):
        saeval.run(spec(server), out=tmp_path / "run", display="plian")


@pytest.mark.parametrize("kind", ["tasks", "scorers", "coders", "explainers"])
def test_lists_fit_a_terminal_of_80_columns(kind):
    done = CliRunner(env={"COLUMNS": "80"}).invoke(main, ["list", kind])
    assert done.exit_code == 0 and len(done.output.splitlines()) > 10
    assert max(map(len, done.output.splitlines())) <= 80
