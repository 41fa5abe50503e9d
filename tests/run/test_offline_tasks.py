"""Every shipped task that needs no model server, key or network ends with exit code 0 on a fresh machine."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from saeval.cli.group import main

SLOW = {"quickstart", "methods-tour", "controls"}
"""Tasks with a model in process: `test_quickstart.py` runs the first two, and `.ci/tasks` runs all of them each night."""
LISTED = CliRunner().invoke(main, ["list", "--tag", "offline", "--json"]).output
OFFLINE = {task["name"] for task in json.loads(LISTED)}


def test_tasks_that_run_offline_are_known():
    assert len(OFFLINE) >= 6 and OFFLINE.issuperset(SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(OFFLINE - SLOW))
def test_offline_task_ends_with_exit_code_0_on_two_latents(task, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(main, ["run", task, "--limit", "2", "--out", str(tmp_path / "run"), "--display", "none"])
    assert done.exit_code == 0, done.output
    assert "PARTIAL" in done.output and (tmp_path / "run" / "report" / "index.html").is_file()
