"""Another user of the machine reads nothing that is closed, changes nothing that is not theirs, and lays no trap."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from second_user import AS_NOBODY

import saeval
from saeval._util.owned_dirs import OWNER_FILE
from saeval.cli.group import main

# Python and its packages may lie in a closed home; to read everything does not help to write anything.
READING_ALL = [*AS_NOBODY, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
SPEC = """
saeval: 1
task: shared
version: "1.0"
llms: {judge: {model: scripted/rule, reply: "[0]"}}
source: {use: synthetic, with: {n_latents: 6, documents: 60}}
latents: {n: 2, min_windows: 20}
sampler: {use: random, with: {explain: 5, score: 5, non_activating: {n: 5}}}
explainer: top_tokens
scorers: {detection: {with: {batch: 1}}}
baselines: []
"""


def setpriv_works():
    if os.name != "posix" or os.getuid() != 0 or not shutil.which("setpriv"):
        return False
    return subprocess.run([*READING_ALL, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not setpriv_works(), reason="only root can act as another user (setpriv)")


def theirs(*command):
    """Run a command as the other user."""
    return subprocess.run([*AS_NOBODY, *map(str, command)], capture_output=True, text=True, check=False)


def contents(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def open_folder():
    """A folder that the other user can reach; those of pytest are closed."""
    folder = Path(tempfile.mkdtemp(prefix="second-user-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def run_in(folder, monkeypatch, mask):
    """Run a task with its own cache under a umask."""
    monkeypatch.setenv("SAEVAL_CACHE", str(folder / "cache"))
    before = os.umask(mask)
    try:
        return saeval.run(yaml.safe_load(SPEC), out=folder / "run")
    finally:
        os.umask(before)


def test_results_and_cache_are_closed_to_others_where_the_umask_says_so(open_folder, monkeypatch):
    run_in(open_folder, monkeypatch, 0o077)
    for closed in ("run", "cache"):
        seen = theirs("find", open_folder / closed, "-mindepth", "1")
        assert seen.stdout == "" and "Permission denied" in seen.stderr
    for file in [*contents(open_folder)]:
        assert theirs("cat", file).returncode != 0 and theirs("cp", "/dev/null", file).returncode != 0


@pytest.mark.parametrize("trap", ["link", "link inside", "pipe"])
def test_directory_that_another_user_prepared_is_refused_and_leads_nowhere(open_folder, monkeypatch, trap):
    monkeypatch.setenv("SAEVAL_CACHE", str(open_folder / "cache"))
    (open_folder / "home").mkdir()
    (open_folder / "home" / "index.html").write_text("mine")
    (open_folder / "task.yaml").write_text(SPEC)
    (open_folder / "shared").mkdir()
    (open_folder / "shared").chmod(0o777)
    place = open_folder / "shared" / "run"
    lay = {
        "link": f"ln -s {open_folder}/home {place}/report",
        "link inside": f"mkdir {place}/report && ln -s {open_folder}/home/index.html {place}/report/index.html",
        "pipe": f"mkfifo {place}/journal.jsonl",
    }[trap]
    prepared = theirs("sh", "-c", f"mkdir {place} && touch {place}/{OWNER_FILE} && {lay}")
    assert prepared.returncode == 0, prepared.stderr
    for command in (["run", "--task", open_folder / "task.yaml", "--out", place], ["report", place]):
        done = CliRunner().invoke(main, [*map(str, command)])
        assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    assert contents(open_folder / "home") == {open_folder / "home" / "index.html": b"mine"}


@pytest.mark.slow
def test_another_user_gets_a_sentence_and_changes_nothing(open_folder, monkeypatch):
    run_in(open_folder, monkeypatch, 0o022)
    (open_folder / "task.yaml").write_text(SPEC)
    (open_folder / "shared").mkdir()
    (open_folder / "shared").chmod(0o777)
    before = contents(open_folder)
    where = ["--task", "task.yaml", "--display", "none", "--out"]
    for command, said in (
        (["report", "run"], "cannot be written"),
        (["run", *where, "run"], "cannot be written"),
        (["run", *where, "run/inside"], "cannot be written to"),
        (["run", *where, "shared/theirs"], "the cache of model answers cannot be used"),
        (["leaderboard", "run"], ""),
    ):
        done = subprocess.run(
            [*READING_ALL, sys.executable, "-m", "saeval", *command], cwd=open_folder, capture_output=True, text=True,
            env={**os.environ, "HOME": str(open_folder / "nowhere")}, check=False,
        )  # fmt: skip
        assert done.returncode == (2 if said else 0) and "Traceback" not in done.stderr, (command, done.stderr)
        assert said in " ".join(done.stderr.split()), (command, done.stderr)
    shutil.rmtree(open_folder / "shared" / "theirs")
    assert contents(open_folder) == before
