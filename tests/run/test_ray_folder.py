"""The folder of a local Ray cluster is closed to other users, and nothing of it stays when its driver is killed."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from planted_run import spec, truthful_server
from second_user import AS_NOBODY

from saeval._run.executors import ray_reaper

# Not imported here: Ray reads its settings when it is imported, and test_executors.py makes others.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
CLUSTERS = Path("/tmp")


def processes(folder):
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder}/".encode() in (place / "cmdline").read_bytes():
                found.append(place.name)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_reaper_waits_for_the_driver_and_then_leaves_nothing_of_its_cluster(tmp_path):
    folder = tmp_path / "cluster"
    (folder / "r").mkdir(parents=True)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    member = subprocess.Popen([sys.executable, "-c", deaf, f"--session-dir={folder}/r"])
    other = subprocess.Popen([sys.executable, "-c", deaf, f"--session-dir={folder}-of-another/r"])
    program = Path(ray_reaper.__file__)
    reaper = subprocess.Popen([sys.executable, "-I", program, folder, "0.3"], stdin=subprocess.PIPE)
    try:
        time.sleep(1)
        assert member.poll() is None and folder.exists()  # the driver is there
        reaper.stdin.close()  # the driver is gone
        assert member.wait(30) == -signal.SIGKILL and reaper.wait(30) == 0
        assert not folder.exists() and other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_folder_is_closed_to_others_and_goes_with_a_killed_driver(tmp_path):
    before = set(CLUSTERS.glob("saeval-*"))
    with truthful_server() as server:
        server.delay = 0.2
        task = spec(server, baselines=[], scorers={"detection": {}}, run={"executor": "ray", "workers": 1})
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
        child = subprocess.Popen(
            [sys.executable, "-m", "saeval", "run", "--task", "task.yaml", "--out", "run", "--display", "none"],
            cwd=tmp_path, env={**os.environ, "SAEVAL_CACHE": str(tmp_path / "cache")}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while server.answered < 2 and child.poll() is None:
            time.sleep(0.05)
        assert child.poll() is None, child.stderr.read()
        (folder,) = [new for new in CLUSTERS.glob("saeval-*") if new not in before and (new / "r").exists()]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and processes(folder)
        if os.getuid() == 0 and shutil.which("setpriv"):
            seen = subprocess.run(
                [*AS_NOBODY, "find", str(folder), "-mindepth", "1"], capture_output=True, text=True, check=False
            )
            assert seen.stdout == "" and "Permission denied" in seen.stderr
            inside = str(folder / "r")
            assert subprocess.run([*AS_NOBODY, "ls", inside], capture_output=True, check=False).returncode != 0
            assert (
                subprocess.run([*AS_NOBODY, "mv", inside, f"{inside}x"], capture_output=True, check=False).returncode
                != 0
            )
        child.send_signal(signal.SIGKILL)
        child.wait()
        until = time.monotonic() + 60
        while (folder.exists() or processes(folder)) and time.monotonic() < until:
            time.sleep(0.2)
    assert not processes(folder) and not folder.exists()
