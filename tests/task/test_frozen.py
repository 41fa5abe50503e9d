"""A frozen run repeats what a real model was asked and answered, and says so."""

from __future__ import annotations

import json
import lzma
import re
import socket
import time

import pytest
from click.testing import CliRunner
from fake_server import fake_server
from root import ROOT
from saeval_plugins._frozen import read_frozen

import saeval
from saeval import InputError
from saeval.cli.group import main

TASKS = ROOT / "tasks"
ARCHIVE = TASKS / "recorded" / "strong-reader.jsonl.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recorded") / "run"


@pytest.fixture(scope="module")
def run(folder):
    def refuse(*_):
        raise AssertionError("the network was used")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        began = time.process_time()
        made = saeval.run("quickstart-recorded", out=folder)
    made_in = time.process_time() - began
    assert made_in < 30
    return made


def value(run, cell, scorer, variant="explanation"):
    (found,) = (c for c in run.cells if c.axes["coder"] == cell)
    rows = [r for r in found.scores if (r.scorer, r.variant, r.metric) == (scorer, variant, "balanced_accuracy")]
    assert rows[0].n == 24 and rows[0].failed == 0
    return round(rows[0].value, 3)


def test_the_recorded_numbers_come_out_again(run):
    coders = ("batchtopk", "topk", "neurons", "random_sae")
    assert [value(run, coder, "detection") for coder in coders] == [0.710, 0.654, 0.602, 0.600]
    assert [value(run, coder, "fuzzing") for coder in coders] == [0.787, 0.721, 0.765, 0.683]
    assert [value(run, coder, "detection", "frozen_shuffled") for coder in coders] == [0.550, 0.492, 0.481, 0.467]
    assert [c.axes["coder"] for c in run.cells if c.baseline] == ["random_sae", "neurons"]


def test_board_of_the_readme_is_what_the_command_prints(run, folder):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(mean over latents.*?)```", readme, re.S)
    done = CliRunner().invoke(main, ["run", "quickstart-recorded", "--out", str(folder), "--display", "none"])
    printed = [line.rstrip() for line in done.output.splitlines()]
    assert [line for line in shown.splitlines() if line != "…" and line not in printed] == []


def test_it_is_marked_and_does_not_rank_beside_live_runs(run, folder, tmp_path):
    assert run.recorded and not run.synthetic
    assert any("recorded in an earlier run" in warning for warning in run.warnings)
    report = (folder / "report" / "report.md").read_text()
    assert report.startswith("# quickstart-recorded 1.0 (recorded")
    live = tmp_path / "live"
    live.mkdir()
    results = json.loads((folder / "results.json").read_text())
    (live / "results.json").write_text(json.dumps(results | {"recorded": False}))
    with pytest.raises(InputError, match="recorded differs"):
        saeval.join([folder, live])


def test_prompts_and_replies_are_on_the_latents_pages(run, folder):
    import pyarrow.parquet as pq

    calls = pq.read_table(folder / "cells" / "coder=topk" / "calls.parquet").to_pylist()
    assert {c["step"] for c in calls} == {"explain", "detection", "fuzzing"}
    asked = next(c for c in calls if c["step"] == "fuzzing")
    assert asked["prompt"].startswith("[system]\nYou are given an explanation") and asked["reply"].startswith("[")


def test_another_judge_can_be_put_to_the_recorded_prompts(tmp_path):
    with fake_server(lambda messages: str([1] * messages[-1]["content"].count("\nWindow "))) as server:
        run = saeval.run(
            "quickstart-recorded", out=tmp_path / "run", limit=2,
            llms={"judge": "openai_compatible/yes"}, overrides={"llms.judge.api_base": server.url},
        )  # fmt: skip
    assert len(server.calls) > 50
    assert {r.value for c in run.cells for r in c.scores if r.metric == "balanced_accuracy"} == {0.5}


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "cut.jsonl.xz"
    path.write_bytes(ARCHIVE.read_bytes()[:5000])
    with pytest.raises(InputError, match="is damaged"):
        read_frozen(path)
    path.write_bytes(lzma.compress(b'{"about": {}}\n'))
    with pytest.raises(InputError, match="is damaged"):
        read_frozen(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_frozen(tmp_path / "nothing.jsonl.xz")
