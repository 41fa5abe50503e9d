"""Processes that share a cache ask each question once, and take over what a dead one was asking."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from fake_server import error, fake_server, hang
from planted_run import spec, truthful_server
from saeval_plugins.llms.openai_compatible import OpenAICompatible

import saeval
from saeval.llm import AnswerCache
from saeval.llm.budget import Budget
from saeval.llm.gateway import Gateway
from saeval.llm.leases import Leases
from saeval.llm.ledger import CallLedger
from saeval.llm.role import Asker, RoleSettings
from saeval.plugin import LLMError, Request

KEYS = ["0" * 32, "1" * 32]


def gateway(folder, server, name, **settings):
    """The gateway of a process of its own, as far as its cache and ledger go."""
    llm = OpenAICompatible(model="m", api_base=server.url)
    return Gateway(
        Asker("judge", llm, "m", RoleSettings(retries=0, **settings)), identity="m", calls=AnswerCache(folder / "calls.sqlite"),
        log=CallLedger(folder / f"{name}.jsonl"), budget=Budget(None),
    )  # fmt: skip


async def answers(gateways, texts):
    made = [gateway.complete(Request.of(text)) for gateway in gateways for text in texts]
    found = await asyncio.gather(*made, return_exceptions=True)
    for each in gateways:
        await each._llm.aclose()
    return found


def test_lease_is_held_by_one_and_released(tmp_path):
    one, other = Leases(tmp_path / "leases"), Leases(tmp_path / "leases")
    assert one.take(KEYS[0]) and not one.take(KEYS[0])
    assert not other.take(KEYS[0]) and other.take(KEYS[1])
    one.release(KEYS[1])  # not its own
    assert not one.take(KEYS[1])
    one.release(KEYS[0])
    assert other.take(KEYS[0])
    other.close()
    assert one.take(KEYS[0]) and one.take(KEYS[1])
    one.close()


def test_questions_that_come_at_once_are_asked_once(tmp_path):
    texts = [f"question {i}" for i in range(12)]
    with fake_server(lambda messages: messages[-1]["content"].upper()) as server:
        server.delay = 0.05
        gateways = [gateway(tmp_path, server, name) for name in "abcd"]
        replies = asyncio.run(answers(gateways, texts))
        assert [reply.text for reply in replies] == [text.upper() for text in texts] * 4
        assert len(server.calls) == 12
    lines = [json.loads(line) for name in "abcd" for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert sum("cached" not in line for line in lines) == 12 and len(lines) == 48


def test_question_that_another_could_not_answer_is_asked(tmp_path):
    with fake_server("fine") as server:
        server.delay, server.faults = 0.1, [error(400)]
        replies = asyncio.run(answers([gateway(tmp_path, server, name) for name in "ab"], ["x"]))
        assert [isinstance(reply, LLMError) for reply in replies].count(True) == 1 and len(server.calls) == 2


def test_role_that_wants_no_cache_waits_for_nobody(tmp_path):
    with fake_server("fine") as server:
        server.delay = 0.1
        asyncio.run(answers([gateway(tmp_path, server, name, cache=False) for name in "ab"], ["x"]))
        assert len(server.calls) == 2


def start(folder, name):
    env = {**os.environ, "SAEVAL_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "saeval", "run", "--task", "task.yaml", "--out", name, "--display", "none"]
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_four_processes_on_one_cache_ask_each_question_once(tmp_path):
    with truthful_server() as server:
        server.delay = 0.05
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec(server, baselines=[], scorers={"detection": {}})))
        children = [start(tmp_path, f"run{i}") for i in range(4)]
        errors = [child.communicate()[1] for child in children]
        assert [child.returncode for child in children] == [0] * 4, errors
        asked = [json.dumps(call, sort_keys=True) for call in server.calls]
    results = [saeval.read(tmp_path / f"run{i}").cells[0].scores[0].value for i in range(4)]
    sys.stdout.write(f"4 processes: {len(asked)} calls for {len(set(asked))} questions\n")
    assert len(asked) == len(set(asked)) and len(set(results)) == 1


@pytest.mark.slow
def test_lease_of_a_killed_process_is_taken_over_at_once(tmp_path):
    with truthful_server() as server:
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec(server, baselines=[], scorers={"detection": {}})))
        server.always = hang
        first = start(tmp_path, "first")
        while len(server.calls) < 4 and first.poll() is None:
            time.sleep(0.01)
        server.always = None
        second = start(tmp_path, "second")
        time.sleep(1)
        first.send_signal(signal.SIGKILL)
        _, errors = second.communicate(timeout=100)
        first.communicate()
    assert second.returncode == 0, errors
    assert not saeval.read(tmp_path / "second").partial
