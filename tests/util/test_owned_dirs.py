"""saeval writes into its own directories only: never over a user's files, and never through a link out of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from command import run_command
from made_run import made_run
from planted_run import spec, truthful_server

import saeval
from saeval import InputError
from saeval._util.owned_dirs import OWNER_FILE, claim
from saeval.cli.group import main
from saeval.exchange.hub import pull, push
from saeval.report.files import write_reports

SMALL = {"baselines": [], "scorers": {"detection": {}}, "latents": {"n": 1, "min_windows": 20}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def command(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


MINE = {
    "spec.yaml": "# my notes\nsaeval: 1\n",
    "results.json": "[1, 2]",
    "run.json": '{"mine": true}',
    "report/index.html": "<p>mine",
}


@pytest.mark.parametrize("name", MINE)
def test_run_into_a_directory_of_the_users_own_is_refused_and_nothing_in_it_changes(tmp_path, name):
    home = tmp_path / "home"
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text(MINE[name])
    before = contents(home)
    with truthful_server() as server:
        with pytest.raises(InputError, match="contains files that saeval did not create"):
            saeval.run(spec(server, **SMALL), out=home)
        assert not server.calls
    assert contents(home) == before


@pytest.mark.parametrize("place", ["out", "cache"])
def test_name_that_is_not_utf8_is_refused_before_anything_is_asked(tmp_path, place):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/b\xfcro")
    out, cache = (folder, str(tmp_path / "cache")) if place == "out" else (str(tmp_path / "run"), folder)
    done = run_command("run", "quickstart-recorded", "--out", out, env={"SAEVAL_CACHE": cache}, code=2)
    assert not Path(folder).exists()
    assert r"b\udcfcro: its name is not UTF-8; rename it" in done.stderr.splitlines()[-1]


def test_name_that_no_disk_can_hold_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"saeval": 1, "task": "t", "version": "1", **LONE}))
    done = command("run", "--task", tmp_path / "task.yaml", "--out", tmp_path / ("x" * 300))
    assert done.exit_code == 2 and "File name too long" in done.output and "Traceback" not in done.output


LONE = {
    "llms": {"judge": {"model": "scripted/x", "reply": "[0]"}}, "source": {"use": "synthetic"}, "latents": {"n": 1}, "sampler": "random",
    "explainer": "top_tokens", "scorers": {"detection": {}}, "baselines": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory, and its task."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        task = spec(server, **SMALL)
        saeval.run(task, out=folder / "run")
    return folder / "run", task


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run directory."""
    import shutil

    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_runs_own_directory_is_used_again_also_where_an_earlier_version_made_it(run, finished):
    assert (run / OWNER_FILE).is_file()
    (run / OWNER_FILE).unlink()
    assert saeval.run(finished[1], out=run).cells == saeval.read(finished[0]).cells  # all is in the journal
    assert (run / OWNER_FILE).is_file()


def test_spec_that_says_the_same_keeps_its_comments(run):
    mine = "# which SAE, and why\n" + (run / "spec.yaml").read_text()
    (run / "spec.yaml").write_text(mine)
    saeval.run(run / "spec.yaml", out=run)
    assert (run / "spec.yaml").read_text() == mine and yaml.safe_load(mine)


KINDS = {
    "link to a file": lambda place, other: place.symlink_to(other / "mine.txt"),
    "link to a folder": lambda place, other: place.symlink_to(other),
    "dangling link": lambda place, other: place.symlink_to(other / "nothing"),
    "hard link": lambda place, other: os.link(other / "mine.txt", place), "pipe": lambda place, other: os.mkfifo(place),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["journal.jsonl", "calls.jsonl", "report/report.md", "cells/more"])
def test_run_directory_with_links_or_pipes_is_refused_by_whatever_writes_into_it(run, finished, tmp_path, kind, place):
    other = tmp_path / "other"
    (other / "latents").mkdir(parents=True)
    for name in ("mine.txt", "index.html", "latents/0.js"):
        (other / name).write_text("mine")
    before = contents(other)
    (run / place).unlink(missing_ok=True)
    KINDS[kind](run / place, other)
    with pytest.raises(InputError, match=r"is a symbolic link|is a hard link|is not a plain file"):
        saeval.run(finished[1], out=run)
    if place.startswith("report"):
        assert command("report", run).exit_code == 2
    with pytest.raises(InputError, match=r"is a symbolic link|is a hard link|is not a plain file"):
        push(run, str(tmp_path / "sent"))
    assert contents(other) == before and not (tmp_path / "sent").exists()


def test_report_of_a_hostile_directory_follows_no_link(tmp_path):
    """A directory from somebody whose `report` leads to the reader's own pages."""
    site, evil = tmp_path / "site", tmp_path / "evil"
    (site / "latents").mkdir(parents=True)
    for name in ("index.html", "latents/mine.html"):
        (site / name).write_text("mine")
    before = contents(site)
    evil.mkdir()
    (evil / "results.json").write_text(made_run().model_dump_json(by_alias=True))
    (evil / OWNER_FILE).write_text("")
    (evil / "report").symlink_to(site)
    for arguments in (("report", evil), ("report", evil / "results.json"), ("view", evil), ("view", evil, "--serve")):
        done = command(*arguments)
        assert done.exit_code == 2 and "is a symbolic link" in done.output, arguments
    assert contents(site) == before


def test_report_beside_results_that_were_handed_over_overwrites_no_report_of_another_kind(tmp_path):
    (tmp_path / "results.json").write_text(made_run().model_dump_json(by_alias=True))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("mine")
    done = command("report", tmp_path)
    assert done.exit_code == 2 and "saeval did not create" in " ".join(done.output.split())
    assert (tmp_path / "report" / "index.html").read_text() == "mine"
    (tmp_path / "report" / "index.html").unlink()
    assert command("report", tmp_path).exit_code == 0 and command("report", tmp_path).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "report"}


def test_plots_overwrite_nothing_of_the_users(tmp_path):
    write_reports(made_run(), tmp_path / "run" / "report")
    (tmp_path / "run" / "results.json").write_text(made_run().model_dump_json(by_alias=True))
    figures = tmp_path / "figures"
    assert command("report", tmp_path / "run", "--plots", figures).exit_code == 0
    names = {p.name for p in figures.glob("*.svg")}
    assert names and command("report", tmp_path / "run", "--plots", figures).exit_code == 0
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / sorted(names)[0]).write_text("mine")
    done = command("report", tmp_path / "run", "--plots", mine)
    assert done.exit_code == 2 and [p.read_text() for p in mine.iterdir()] == ["mine"]


def test_pipes_in_somebodys_run_are_refused_and_not_waited_for(run):
    for name in ("results.json", "calls.jsonl"):
        (run / name).unlink()
        os.mkfifo(run / name)
    for arguments in (
        ("report", run),
        ("leaderboard", run),
        ("compare", run, run),
        ("plan", "--task", run / "spec.yaml", "--like", run),
    ):
        done = command(*arguments)
        assert done.exit_code == 2 and "is a pipe" in done.output, (arguments, done.output)


def test_what_was_fetched_or_imported_is_a_directory_of_ones_own(run, tmp_path):
    push(run, str(tmp_path / "sent"))
    assert not list((tmp_path / "sent").rglob(OWNER_FILE))
    pull(str(tmp_path / "sent"), tmp_path / "back")
    assert command("report", tmp_path / "back").exit_code == 0
    assert json.loads((tmp_path / "back" / "results.json").read_text())


def test_a_file_in_place_of_a_run_directory_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="is a file, not a directory; choose another place for a run"):
        claim(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"
