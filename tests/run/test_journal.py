"""What a run finished survives a kill, and two processes never share a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, strategies as st

from saeval import InputError
from saeval._run.journal_entries import entry_of, expanded
from saeval._run.run_dir import RunDir
from saeval.records import Outcome, Score, Usage, run_state
from saeval.report.follow import progress
from saeval.results import list_runs


def test_finished_work_is_there_when_the_directory_is_opened_again(tmp_path):
    with RunDir(tmp_path / "r") as run:
        run.journal.finish("a", {"x": 1})
        assert run.journal.finished("a") == {"x": 1}
    with RunDir(tmp_path / "r") as run:
        assert run.journal.finished("a") == {"x": 1}
        assert run.journal.finished("b") is None


@pytest.mark.parametrize("tail", ['{"key": "b", "val', '{"key": "b"', "\x00\x00\x00"])
def test_line_that_a_kill_cut_short_is_dropped_and_writing_goes_on(tmp_path, tail):
    with RunDir(tmp_path / "r") as run:
        run.journal.finish("a", 1)
    with (tmp_path / "r" / "journal.jsonl").open("a") as file:
        file.write(tail)
    with RunDir(tmp_path / "r") as run:
        assert (run.journal.finished("a"), run.journal.finished("b")) == (1, None)
        run.journal.finish("b", 2)
    with RunDir(tmp_path / "r") as run:
        assert (run.journal.finished("a"), run.journal.finished("b")) == (1, 2)


RESULTS = (
    st.none() | st.integers() | st.text() | st.lists(st.dictionaries(st.text(), st.integers(), max_size=2), max_size=2)
)
OUTCOMES = st.lists(
    st.builds(
        Outcome, example=st.text(max_size=3), active=st.booleans(), predicted=st.none() | st.booleans(),
        probability=st.none() | st.floats(0, 1), decile=st.none() | st.integers(0, 9), weight=st.floats(0.1, 9), reason=st.text(max_size=3),
    ).map(lambda outcome: outcome.model_dump(mode="json")),
    max_size=3,
)  # fmt: skip


@given(RESULTS | st.fixed_dictionaries({"outcomes": OUTCOMES, "values": st.just({"accuracy": 0.5})}))
def test_any_entry_is_read_as_it_was_written(tmp_path_factory, result):
    folder = tmp_path_factory.mktemp("journal")
    for value in (result, {"result": result, "usage": None}):
        with RunDir(folder / "r") as run:
            run.journal.finish("a", value)
        with RunDir(folder / "r") as run:
            assert run.journal.finished("a") == value


def test_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from saeval._run.run_dir import RunDir
        with RunDir(Path(sys.argv[1])) as run:
            run.journal.finish("a", "kept")
            run.write_json("run.json", {"status": "running", "task": "t", "began": time.time(), "updated": time.time()})
            print("ready", flush=True)
            time.sleep(60)
    """)
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    with pytest.raises(InputError, match="another saeval process"):
        RunDir(tmp_path / "r")
    (head,) = list_runs(tmp_path)
    assert (head.status, head.reason) == ("running", "")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (tmp_path / "r" / "logs" / "lock").chmod(0o400)
    (tmp_path / "r" / "logs").chmod(0o500)
    (head,) = list_runs(tmp_path)
    assert head.status == progress(tmp_path / "r")["status"] == "interrupted"
    assert "rerun the same command" in head.reason
    (tmp_path / "r" / "logs").chmod(0o700)
    (tmp_path / "r" / "logs" / "lock").chmod(0o600)
    with RunDir(tmp_path / "r") as run:
        assert run.journal.finished("a") == "kept"


def test_looking_at_a_run_never_refuses_one_that_starts(tmp_path):
    RunDir(tmp_path / "r").__exit__(None, None, None)
    (tmp_path / "r" / "run.json").write_text('{"status": "running"}')
    done = threading.Event()

    def look():
        while not done.is_set():
            run_state(tmp_path / "r")

    with ThreadPoolExecutor(4) as threads:
        looking = [threads.submit(look) for _ in range(4)]
        try:
            for _ in range(20):
                with RunDir(tmp_path / "r"):
                    assert run_state(tmp_path / "r")["status"] == "running"
        finally:
            done.set()
        for one in looking:
            one.result()


def test_place_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written to.*choose another --out"):
        RunDir(tmp_path / "file" / "run")


def test_judged_windows_that_earlier_versions_wrote_are_read():
    """They were lists of numbers, and before that a mapping for each window."""
    window = Outcome(example="1:2", active=True, predicted=False, decile=3).model_dump(mode="json")
    columns = {"example": ["1:2"], "active": [1], "predicted": [0], "decile": [3]}
    for outcomes in ([window], columns, {**columns, "active": "1", "predicted": "0", "decile": "3"}):
        assert expanded({"result": {"outcomes": outcomes}}) == {"result": {"outcomes": [window]}}


def test_judged_windows_that_are_packed_take_little_room_and_are_read_or_left_as_they_are():
    windows = [Outcome(example=f"{37 * k}:{32 * (k % 8)}", active=k < 50, predicted=k % 3 == 0) for k in range(100)]
    score = Score(outcomes=tuple(windows))
    packed = entry_of(score, Usage(5))
    assert len(json.dumps(packed)) < 700
    assert expanded(packed) == {"result": score.model_dump(mode="json"), "usage": vars(Usage(5))}
    for damaged in ("", "eJw", packed["result"]["outcomes"][:-40], "kein Base64"):
        entry = {"result": {"outcomes": damaged}}
        assert expanded(entry) == entry
