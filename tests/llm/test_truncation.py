"""Answers that are cut get more room once, and a model that rambles whatever its room does not get it for ever."""

from __future__ import annotations

import asyncio

from fake_server import content, fake_server
from gateways import ask, direct, gateway
from planted_run import spec, truthful_server

import saeval
from saeval.llm.truncation import TruncationPolicy
from saeval.plugin import Request


def asked_with(server, tokens):
    return [call for call in server.calls if call["max_tokens"] == tokens]


def test_model_that_rambles_is_not_given_room_for_ever(tmp_path):
    told = []
    with fake_server() as server:
        server.always = content("and so on and so on", "length")
        gate = gateway(tmp_path, direct(server))
        gate._caller._room._tell = told.append
        replies = ask(gate, *(Request.of(f"question {n}") for n in range(40)))
        assert all(reply.finish_reason == "length" for reply in replies)
        assert len(asked_with(server, 4096)) <= 4 and len(asked_with(server, 256)) == 40
    assert len(told) == 1 and "answers in a row were cut off even at 4,096 tokens" in told[0]


def test_empty_answers_that_are_cut_are_not_given_room_for_ever_either(tmp_path):
    with fake_server() as server:
        server.always = content("", "length", reasoning_content="hm " * 50)
        failed = ask(gateway(tmp_path, direct(server)), *(Request.of(f"question {n}") for n in range(30)))
        assert all("max_tokens_if_cut" in str(error) for error in failed)
        assert len(asked_with(server, 4096)) <= 4


def test_model_that_needs_room_and_is_cut_now_and_then_keeps_it(tmp_path):
    with fake_server() as server:
        server.chooses = lambda body, n: (
            content("", "length") if body["max_tokens"] == 256 or n % 2 else content(f"fine {n}")
        )
        replies = ask(gateway(tmp_path, direct(server)), *(Request.of(f"question {n}") for n in range(60)))
        assert len(asked_with(server, 4096)) >= 50
        assert sum(not isinstance(reply, Exception) for reply in replies) >= 20


def test_run_with_a_model_that_rambles_says_so_and_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        truthful = server.chooses
        server.chooses = lambda body, n: (
            content("well, " * 20, "length")
            if body["messages"][-1]["content"].startswith("Explanation:")
            else truthful(body, n)
        )
        task = spec(server, baselines=[], scorers={"detection": {}}, latents={"n": 6, "min_windows": 20})
        result = saeval.run(task, out=tmp_path / "run", display="plain")
        assert len(asked_with(server, 4096)) <= 4
    assert result.cells[0].scores[0].failed == 6
    assert "cut off even at 4,096 tokens" in capsys.readouterr().err


def test_turns_end_when_room_has_helped_once():
    async def main():
        room = TruncationPolicy("judge", 256, 4096, lambda text: None)
        questions = [object() for _ in range(6)]
        turns = [asyncio.ensure_future(room.turn(question)) for question in questions]
        await asyncio.sleep(0)
        assert [turn.done() for turn in turns] == [True, True, False, False, False, False]
        room.note(whole=True, raised=True)
        assert all(await asyncio.gather(*turns)) and room.needed

    asyncio.run(main())
