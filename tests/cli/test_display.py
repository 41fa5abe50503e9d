"""What becomes of a command's output decides neither over its work nor over its exit code."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from planted_run import spec, truthful_server

import saeval
from saeval._util import Silent

SMALL = {"baselines": [], "scorers": {"detection": {}}, "latents": {"n": 2, "min_windows": 20}}


def start(folder, *arguments, **options):
    env = {**os.environ, "SAEVAL_CACHE": str(folder / "cache"), **options.pop("env", {})}
    return subprocess.Popen([sys.executable, "-m", "saeval", *arguments], cwd=folder, env=env, **options)


def run(folder, style, **options):
    return start(folder, "run", "--task", "task.yaml", "--out", "run", "--display", style, **options)


@pytest.fixture
def task(tmp_path):
    with truthful_server() as server:
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec(server, **SMALL)))
        yield server


def status(folder):
    return json.loads((folder / "run" / "run.json").read_text())["status"]


@pytest.mark.parametrize(
    "style", ["plain", pytest.param("json", marks=pytest.mark.slow), pytest.param("rich", marks=pytest.mark.slow)]
)
def test_reader_of_the_output_that_goes_away_stops_nothing(tmp_path, task, style):
    task.delay = 0.02
    child = run(tmp_path, style, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    child.stdout.read(1)  # `| head -c 1`
    child.stdout.close()
    assert child.wait() == 0 and status(tmp_path) == "done"
    assert not saeval.read(tmp_path / "run").partial


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_device_as_output_stops_nothing(tmp_path, task):
    with Path("/dev/full").open("w") as full:
        assert run(tmp_path, "plain", stdout=full, stderr=full).wait() == 0
        assert start(tmp_path, "leaderboard", "run", stdout=full, stderr=full).wait() == 0
    assert status(tmp_path) == "done"


@pytest.mark.parametrize("closed", ["2>&-", pytest.param("<&- >&- 2>&-", marks=pytest.mark.slow)])
def test_descriptors_that_are_closed_stop_nothing(tmp_path, task, closed):
    command = f"{sys.executable} -m saeval run --task task.yaml --out run {closed}"
    env = {**os.environ, "SAEVAL_CACHE": str(tmp_path / "cache")}
    assert (
        subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, check=False).returncode == 0
    )
    assert status(tmp_path) == "done"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_encoding_that_lacks_a_character_stops_nothing(tmp_path, encoding):
    with truthful_server() as server:
        named = spec(server, **SMALL, matrix={"coder": ["詞典", "κ"]}, description="–μ–")
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(named))
        child = run(
            tmp_path, "plain", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={"PYTHONIOENCODING": encoding}
        )
        shown, _ = child.communicate()
    assert child.returncode == 0 and b"Traceback" not in shown and status(tmp_path) == "done"
    board = start(
        tmp_path,
        "leaderboard",
        "run",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PYTHONIOENCODING": encoding},
    )
    shown, _ = board.communicate()
    assert board.returncode == 0 and b"Traceback" not in shown and len(shown) > 100


@pytest.mark.slow
@pytest.mark.parametrize("style", ["plain", "rich"])
def test_terminal_that_closes_stops_nothing_where_hangups_are_ignored(tmp_path, task, style):
    task.delay = 0.02
    master, slave = pty.openpty()
    ignoring = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 - as nohup does
    child = run(tmp_path, style, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=ignoring)
    os.close(slave)
    while task.answered < 5 and child.poll() is None:
        time.sleep(0.01)
        os.set_blocking(master, False)
        with suppress(BlockingIOError):
            os.read(master, 65536)
    os.close(master)
    assert child.wait() == 0 and status(tmp_path) == "done"


class Broken(Silent):
    """A display that fails at each step."""

    def begin(self, stage, total, unit):
        raise RuntimeError("no screen")

    say = update = end = begin


def test_display_that_fails_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        result = saeval.run(spec(server, **SMALL), out=tmp_path / "run", display=Broken())
    assert not result.partial
    assert "progress is no longer shown" in (tmp_path / "run" / "logs" / "run.log").read_text()
