"""Processes killed at random moments lose nothing that was finished and pay for nothing twice.

`SAEVAL_KILLS=200 pytest -s tests/run/test_kills.py` kills more often and prints the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import yaml
from kept_answers import kept, key_of
from planted_run import finished, spec, truthful_server

import saeval
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task

KEY = "sk-canary-1234567890abcdef"
KILLS = int(os.environ.get("SAEVAL_KILLS", "8"))


def command(task, out):
    return [sys.executable, "-m", "saeval", "run", "--task", str(task), "--out", str(out), "--display", "none"]


def start(arguments, cache, **options):
    env = {**os.environ, "SAEVAL_CACHE": str(cache), "OPENAI_API_KEY": KEY}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": in_the_foreground}
    return subprocess.Popen(arguments, env=env, **{**pipes, **options})


def in_the_foreground():
    """Have the child begin as in the foreground, also where these tests run in the background of a shell."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked if a command ran in this process before
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def in_the_background():
    """Have the child begin as a shell without job control begins what is followed by `&`."""
    in_the_foreground()
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_pay_nothing_twice(tmp_path, monkeypatch):
    luck = random.Random(7)
    kills, stages, again, all_calls, rounds, repeated = 0, Counter(), 0, 0, 0, 0
    with truthful_server() as server:
        server.delay = 0.01
        task = tmp_path / "task.yaml"
        task.write_text(yaml.safe_dump(spec(server, run={"concurrency": 4})))
        identity = load_task(str(task), registry=Registry()).roles["judge"].identity
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "calm-cache"))
        saeval.run(task, out=tmp_path / "calm")
        calm, expected = finished(tmp_path / "calm"), saeval.read(tmp_path / "calm").cells
        whole = len(server.calls)
        while kills < KILLS:
            rounds += 1
            run, cache = tmp_path / f"run{rounds}", tmp_path / f"cache{rounds}"
            server.calls.clear()
            paid, seen = set(), 0
            while True:
                began, answered = time.monotonic(), server.answered
                child = start(command(task, run), cache)
                # By the clock, so that starting, collecting and reporting are hit too, or by what was answered.
                by_clock = luck.random() < 0.5
                moment = luck.uniform(0.05, 2.5) if by_clock else luck.randint(1, whole // 3)
                while child.poll() is None and kills < KILLS:
                    passed = time.monotonic() - began if by_clock else server.answered - answered
                    if passed >= moment:
                        time.sleep(luck.uniform(0, 0.02))
                        child.send_signal(signal.SIGKILL)
                        break
                    time.sleep(0.001)
                _, errors = child.communicate()
                keys = [key_of(body, identity) for body in server.calls]
                repeated += sum(key in paid for key in keys[seen:])
                paid, seen = kept(cache), len(keys)
                if child.returncode == 0:
                    break
                assert child.returncode == -signal.SIGKILL, errors
                kills += 1
                state = (
                    json.loads((run / "run.json").read_text())["status"] if (run / "run.json").exists() else "starting"
                )
                stages["calls" if state == "running" and seen else state] += 1
            assert set(keys) == paid  # nothing was asked that is not kept
            all_calls += len(keys)
            again += len(keys) - len(set(keys))
            assert finished(run) == calm
            assert saeval.read(run).cells == expected
    sys.stdout.write(
        f"{kills} kills in {rounds} runs of {whole} calls ({dict(stages)}): {all_calls} calls asked, {repeated} finished "
        f"ones again, {again} that were under way at a kill\n"
    )
    assert repeated == 0
    assert again <= kills * 4 * 8  # at most what is in flight


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Results of a run that nobody disturbs."""
    place = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch, truthful_server() as server:
        patch.setenv("SAEVAL_CACHE", str(place / "cache"))
        patch.setenv("OPENAI_API_KEY", KEY)
        saeval.run(spec(server), out=place / "run")
    return saeval.read(place / "run").cells


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "after", "place"),
    [
        *((signal.SIGINT, after, in_the_foreground) for after in (1, 20, 100)),
        *((how, 20, in_the_foreground) for how in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)),
        *((how, 20, in_the_background) for how in (signal.SIGTERM, signal.SIGHUP)),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", value)),
)
def test_run_that_is_told_to_stop_reports_what_it_has_and_keeps_answers_under_way(
    tmp_path, monkeypatch, calm, how, after, place
):
    with truthful_server() as server:
        server.delay = 0.05
        task = tmp_path / "task.yaml"
        task.write_text(yaml.safe_dump(spec(server)))
        child = start(command(task, tmp_path / "run"), tmp_path / "cache", preexec_fn=place)
        while server.answered < after and child.poll() is None:
            time.sleep(0.002)
        if place is in_the_background:
            child.send_signal(signal.SIGINT)  # Ctrl-C is for what runs in the foreground
            time.sleep(0.2)
            assert child.poll() is None
        child.send_signal(how)
        _, errors = child.communicate()
        assert child.returncode == 130
        assert "rerun the same command" in errors and "Traceback" not in errors
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
        assert saeval.read(tmp_path / "run").partial
        assert "PARTIAL" in (tmp_path / "run" / "report" / "report.md").read_text().upper()
        monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        saeval.run(task, out=tmp_path / "run")
        calls = [json.dumps(call, sort_keys=True) for call in server.calls]
        assert len(calls) == len(set(calls))  # not even those that were under way
    resumed = saeval.read(tmp_path / "run")
    assert not resumed.partial and resumed.cells == calm


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6])
def test_run_that_is_told_to_stop_while_it_reports_writes_the_report_to_its_end(tmp_path, seconds):
    with truthful_server() as server:
        task = tmp_path / "task.yaml"
        task.write_text(yaml.safe_dump(spec(server)))
        child = start(command(task, tmp_path / "run"), tmp_path / "cache")
        while server.answered < 294 and child.poll() is None:
            time.sleep(0.002)
        time.sleep(seconds)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate()
    assert child.returncode in (0, 130) and "Traceback" not in errors  # 0 where it was through already
    status = json.loads((tmp_path / "run" / "run.json").read_text())["status"]
    assert saeval.read(tmp_path / "run").partial == (status == "interrupted")
    assert status in ("done", "interrupted") and (tmp_path / "run" / "report" / "report.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.05, 0.4])
def test_ctrl_c_pressed_many_times_is_no_traceback(tmp_path, pause):
    with truthful_server() as server:
        server.delay = 0.05
        task = tmp_path / "task.yaml"
        task.write_text(yaml.safe_dump(spec(server)))
        child = start(command(task, tmp_path / "run"), tmp_path / "cache")
        while server.answered < 20 and child.poll() is None:
            time.sleep(0.002)
        for _ in range(5):
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
            time.sleep(pause)
        _, errors = child.communicate()
        assert child.returncode == 130 and "Traceback" not in errors and "Exception" not in errors
        assert start(command(task, tmp_path / "run"), tmp_path / "cache").wait() == 0
    assert not saeval.read(tmp_path / "run").partial


@pytest.mark.slow
def test_two_processes_in_one_directory_do_not_mix(tmp_path):
    with truthful_server() as server:
        answer, refused = server.reply, threading.Event()

        async def reply(messages):
            while not refused.is_set():
                await asyncio.sleep(0.01)
            return answer(messages)

        server.reply = reply
        task = tmp_path / "task.yaml"
        task.write_text(yaml.safe_dump(spec(server, baselines=[], scorers={"detection": {}})))
        first = start(command(task, tmp_path / "run"), tmp_path / "cache")
        while not server.calls and first.poll() is None:
            time.sleep(0.005)
        second = start(command(task, tmp_path / "run"), tmp_path / "cache")
        _, errors = second.communicate()
        refused.set()
        assert second.returncode == 2 and "another saeval process is running" in errors
        assert first.wait() == 0
        calls = [json.dumps(call, sort_keys=True) for call in server.calls]
        assert len(calls) == len(set(calls))
