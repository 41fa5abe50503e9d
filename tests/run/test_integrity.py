"""What a run published is known to be what it wrote: a changed file is said, and an impossible value is refused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections import Counter

import pytest
from click.testing import CliRunner
from command import run_command
from planted_run import spec, truthful_server

import saeval
from saeval import InputError
from saeval._run.run_dir import RunDir
from saeval.cli import main
from saeval.exchange.hub import pull, push
from saeval.llm.budget import Budget
from saeval.llm.ledger import Call, CallLedger
from saeval.records import Usage

FLIPS = int(os.environ.get("SAEVAL_FLIPS", "60"))
SMALL = {"baselines": [], "scorers": {"detection": {}}, "latents": {"n": 3, "min_windows": 20}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
        patch.setenv("SAEVAL_CACHE", str(folder / "cache"))
        saeval.run(spec(server, **SMALL), out=folder / "run")
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def published(run):
    return [
        run / "results.json",
        *sorted(run.glob("cells/*/*.parquet")),
        *sorted(run.glob("cells/*/explanations.jsonl")),
    ]


def command(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def changed(run):
    return [warning for warning in saeval.read(run).warnings if "changed after the run wrote it" in warning]


def test_untouched_run_is_silent_wherever_it_lies(run, tmp_path):
    assert changed(run) == []
    push(run, str(tmp_path / "sent"))
    pull(str(tmp_path / "sent"), tmp_path / "back")
    assert (tmp_path / "back" / "checksums.json").is_file() and changed(tmp_path / "back") == []


def test_changed_file_is_said_by_everything_that_reads_a_run(run, finished):
    text = (run / "results.json").read_text()
    (run / "results.json").write_text(text.replace('"seed": 0', '"seed": 1', 1))
    assert text != (run / "results.json").read_text() and len(changed(run)) == 1
    for arguments in (("report", run), ("leaderboard", run), ("compare", run, finished)):
        done = run_command(*arguments)
        assert "changed after the run wrote it: results.json" in done.stdout + done.stderr, arguments
    assert "changed after the run wrote it" in (run / "report" / "report.md").read_text()


@pytest.mark.parametrize("what", ["deleted", "added", "list"])
def test_missing_or_further_file_is_said(run, what):
    table = next(run.glob("cells/*/latents.parquet"))
    if what == "deleted":
        table.unlink()
    elif what == "added":
        shutil.copy(table, table.with_name("more.parquet"))
    else:
        (run / "checksums.json").write_text('{"format": "another"}')
    assert len(changed(run)) == 1


def test_run_without_checksums_is_said_by_everything_that_reads_one(run, finished):
    (run / "checksums.json").unlink()
    for arguments in (("report", run), ("leaderboard", run), ("compare", run, finished)):
        done = run_command(*arguments)
        assert "run: has no checksums.json" in " ".join((done.stdout + done.stderr).split()), arguments
    assert "has no checksums.json" in (run / "report" / "report.md").read_text()
    assert any("has no checksums.json" in warning for warning in saeval.read(run / "results.json").warnings)


def test_run_that_is_being_written_is_not_missed_its_checksums(run):
    (run / "checksums.json").unlink()
    head = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**head, "status": "running"}))
    with RunDir(run):
        assert not [warning for warning in saeval.read(run).warnings if "checksums" in warning]
    assert [warning for warning in saeval.read(run).warnings if "checksums" in warning]  # it was killed


def test_value_outside_its_own_interval_or_range_is_refused(run):
    facts = json.loads((run / "results.json").read_text())
    row = facts["cells"][0]["scores"][0]
    for value, interval in ((0.2, [0.6, 0.9]), (0.95, [0.6, 0.9]), (1.5, [0.6, 1.9])):
        row |= {"value": value, "ci95": interval}
        (run / "results.json").write_text(json.dumps(facts))
        with pytest.raises(InputError, match="outside its own"):
            saeval.read(run)
        for arguments in (("report", run), ("leaderboard", run)):
            assert command(*arguments).exit_code == 2


@pytest.mark.slow
def test_any_flipped_bit_of_what_is_published_is_said_or_refused(finished, tmp_path):
    luck, seen = random.Random(3), Counter()
    for file in published(finished):
        for _ in range(FLIPS):
            run = tmp_path / "run"
            shutil.copytree(finished, run)
            place = run / file.relative_to(finished)
            data = bytearray(place.read_bytes())
            data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
            place.write_bytes(data)
            try:
                seen[file.name, "said" if changed(run) else "silent"] += 1
            except InputError:
                seen[file.name, "refused"] += 1
            shutil.rmtree(run)
    sys.stdout.write(f"flipped bits: {dict(seen)}\n")
    assert not [place for place in seen if place[1] == "silent"]


# --- the ledger ---


def call(usd, tokens=10):
    return Call("judge", "m", "r", "a", "ok", False, 1, Usage(tokens, 1, 0, usd, "spec"), 1.0)


def test_changed_line_of_the_ledger_is_found_and_lowers_nothing_that_was_spent(tmp_path):
    path = tmp_path / "calls.jsonl"
    log = CallLedger(path)
    for usd in (1.0, 2.0, 4.0, 8.0):
        log.add(call(usd))
    lines = path.read_text().splitlines()
    for k in range(3):  # nothing later says what the last one took
        wrong = [*lines]
        wrong[k] = re.sub(r'"usd":[0-9.]+', '"usd":0.0', wrong[k])
        path.write_text("\n".join(wrong) + "\n")
        read = CallLedger(path)
        assert read.spent() == 15.0 and read.damaged == 1
        read.add(call(1.0))
        assert CallLedger(path).spent() == 16.0
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_lines_of_an_earlier_version_are_read(tmp_path):
    path = tmp_path / "calls.jsonl"
    CallLedger(path).add(call(3.0))
    path.write_text(re.sub(r',"spent".*"}', "}", path.read_text()))
    log = CallLedger(path)
    assert log.spent() == 3.0 and not log.damaged


def test_costs_below_zero_or_without_end_lower_no_budget(tmp_path):
    budget, log = Budget(10.0), CallLedger(tmp_path / "calls.jsonl")
    for usd in (6.0, -5.0, float("nan"), float("inf")):
        budget.add(Usage(10, 1, 0, usd), "m")
        log.add(call(usd))
    assert budget.spent == 6.0 and budget.unknown == 3
    assert CallLedger(tmp_path / "calls.jsonl").spent() == 6.0
