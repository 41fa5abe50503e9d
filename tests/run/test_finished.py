"""A run that is finished and unchanged is left as it is; whatever changes is noticed."""

from __future__ import annotations

import pytest
from planted_run import spec, truthful_server

import saeval


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        task = spec(server, baselines=[], scorers={"detection": {}}, latents={"n": 3, "min_windows": 10})
        yield task, tmp_path / "run", saeval.run(task, out=tmp_path / "run"), server


def times(folder):
    return {
        file: file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file() and file.name not in ("lock", "run.log")
    }


def test_a_finished_run_is_not_written_again(run, monkeypatch):
    task, out, first, server = run
    before, asked = times(out), len(server.calls)
    monkeypatch.setattr("saeval._run.runner.choose_records", None)
    again = saeval.run(task, out=out)
    assert times(out) == before and len(server.calls) == asked
    assert (again.cells, again.findings, again.warnings) == (first.cells, first.findings, first.warnings)


@pytest.mark.parametrize("name", ["results.json", "report/index.html", "cells/all/calls.parquet", "journal.jsonl"])
def test_a_file_that_was_changed_or_is_gone_is_made_again(run, name):
    task, out, first, server = run
    asked, content = len(server.calls), (out / name).read_bytes()
    (out / name).unlink()
    assert saeval.run(task, out=out).cells == first.cells
    assert (out / name).exists() and len(server.calls) == asked
    (out / name).write_bytes(content[: len(content) // 2])
    assert saeval.run(task, out=out).cells == first.cells
    assert len((out / name).read_bytes()) > len(content) // 2 and len(server.calls) == asked


def test_another_task_another_limit_and_a_new_check_of_the_judge_are_noticed(run, monkeypatch):
    task, out, first, _ = run
    more = saeval.run({**task, "latents": {**task["latents"], "n": 4}}, out=out)
    assert more.cells[0].counts["explained"] == 4 != first.cells[0].counts["explained"]
    assert saeval.run({**task, "latents": {**task["latents"], "n": 4}}, out=out, limit=2).cells == more.cells
    described = {**task, "latents": {**task["latents"], "n": 4}, "description": "of nouns"}
    assert saeval.run(described, out=out).description == "of nouns"


def test_files_of_a_finished_run_are_hashed_once(run, monkeypatch):
    from saeval.records import integrity

    task, out, first, _ = run
    hashed, changed_files = [], integrity.changed_files
    monkeypatch.setattr(integrity, "changed_files", lambda folder: hashed.append(folder) or changed_files(folder))
    again = saeval.run(task, out=out)
    assert hashed == [out] and again.scores.equals(first.scores)
