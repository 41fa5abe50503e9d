"""A run begins with models that answer and a limit that holds, says who answered, and forgets what nobody could read."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import count
from typing import ClassVar

import pytest
from aiohttp import web
from click.testing import CliRunner
from fake_server import body, content, error
from planted_run import spec, truthful, truthful_server

import saeval
from saeval import InputError
from saeval.cli import main
from saeval.llm import Asker, Budget, CallLedger, Earlier, RoleSettings, try_models
from saeval.plugin import LLM, Reply

SMALL = {"latents": {"n": 2, "min_windows": 20}, "baselines": [], "scorers": {"detection": {}}}


@pytest.fixture(autouse=True)
def _quick_and_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)


def judging(messages):
    return messages[-1]["content"].startswith("Explanation:")


def served(messages, **head):
    """Return a fault that is an answer, with more in its head."""
    choice = {"message": {"content": truthful(messages)}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, **head.pop("usage", {})}
    return body(json.dumps({"choices": [choice], "usage": usage, "model": "m", **head}))


@pytest.mark.parametrize(
    "fault",
    [error(401, "invalid key"), error(404, "no such model"), error(402, "no credit"), error(500, "out of memory")],
)
def test_model_that_cannot_be_asked_is_known_before_anything_is_collected(tmp_path, fault):
    with truthful_server() as server:
        server.probe_fault = fault
        with pytest.raises(InputError, match=r"(explainer|judge): .*status \d+.*nothing was collected"):
            saeval.run(spec(server, **SMALL, run={"patience": 0}), out=tmp_path / "run")
        assert not server.calls and not (tmp_path / "cache" / "stores").exists()
        server.probe_fault = None
        assert saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0].n == 2


def test_models_are_tried_once_per_run_with_a_tiny_request(tmp_path):
    with truthful_server() as server:
        for _ in range(2):
            result = saeval.run(spec(server, **SMALL), out=tmp_path / "run")
        assert len(server.probes) == 2  # explainer and judge
        assert all(probe["max_tokens"] <= 16 for probe in server.probes)
        assert sum(row.calls for row in result.ledger) == len(server.calls)


@pytest.mark.parametrize("fault", [content("", "length"), content("I will not", refusal="no"), error(400, "too short")])
def test_odd_answer_to_the_first_request_stops_nothing(tmp_path, fault):
    with truthful_server() as server:
        server.probe_fault = fault
        assert saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0].n == 2


def test_limit_that_cannot_hold_refuses_to_start_unless_told_otherwise(tmp_path):
    with truthful_server() as server:
        with pytest.raises(InputError, match="price of openai_compatible/rules is unknown.*--unpriced"):
            saeval.run(spec(server, **SMALL), out=tmp_path / "run", max_cost=1.0)
        assert not server.calls
        saeval.run(spec(server, **SMALL), out=tmp_path / "run", max_cost=1.0, unpriced=True)
        assert server.calls


def test_cost_that_the_server_states_holds_the_limit(tmp_path):
    with truthful_server() as server:
        server.probe_fault = served([{"role": "user", "content": "Window 1: a<< b>>"}], usage={"cost": 0.001})
        server.chooses = lambda request, _: served(request["messages"], usage={"cost": 0.01})
        with pytest.raises(saeval.BudgetExceeded):
            saeval.run(spec(server, **SMALL, run={"concurrency": 1}), out=tmp_path / "run", max_cost=0.05)
        assert len(server.calls) <= 5 + 8


def test_change_of_the_served_model_is_refused_on_resume_and_said_within_a_run(tmp_path):
    with truthful_server() as server:
        server.chooses = lambda request, _: served(request["messages"], model="m-0613")
        saeval.run(spec(server, **SMALL), out=tmp_path / "run", limit=1)
        server.chooses = lambda request, _: served(request["messages"], model="m-1106")
        with pytest.raises(InputError, match="m-1106 answers now, but m-0613 answered before.*--allow-model-change"):
            saeval.run(spec(server, **SMALL), out=tmp_path / "run")
        result = saeval.run(spec(server, **SMALL), out=tmp_path / "run", allow_model_change=True)
    assert any("m-0613" in warning and "m-1106" in warning for warning in result.warnings)


def test_one_build_that_changes_is_refused_and_several_are_not(tmp_path):
    with truthful_server() as server:
        builds = count()
        server.chooses = lambda request, _: served(request["messages"], system_fingerprint="b1")
        saeval.run(spec(server, **SMALL), out=tmp_path / "one", limit=1)
        server.chooses = lambda request, _: served(request["messages"], system_fingerprint=f"c{next(builds) % 2}")
        with pytest.raises(InputError, match="b1"):
            saeval.run(spec(server, **SMALL), out=tmp_path / "one")
        changes = {**SMALL, "run": {"seed": 1}, "latents": {"n": 3, "min_windows": 20}}
        saeval.run(spec(server, **changes), out=tmp_path / "two", limit=2)
        server.chooses = lambda request, _: served(request["messages"], system_fingerprint="d")
        assert saeval.run(spec(server, **changes), out=tmp_path / "two").cells[0].scores[0].n == 3


def test_prompt_that_the_server_cut_is_said(tmp_path):
    with truthful_server() as server:
        server.chooses = lambda request, _: served(request["messages"], usage={"prompt_tokens": 64})
        warnings = saeval.run(spec(server, **SMALL), out=tmp_path / "run").warnings
    assert any("judge: the server read 64 tokens" in warning for warning in warnings), warnings


def unreadable_judge(request, _):
    return content("Let me think about it.") if judging(request["messages"]) else None


def test_unreadable_replies_are_asked_for_again_by_a_retry_and_by_another_run(tmp_path):
    with truthful_server() as server:
        server.chooses = unreadable_judge
        row = saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0]
        assert (row.n, row.failed) == (0, 2)
        server.chooses = lambda request, _: None
        explained = sum(not judging(call["messages"]) for call in server.calls)
        again = saeval.run(spec(server, **SMALL), out=tmp_path / "run", retry="failed").cells[0].scores[0]
        other = saeval.run(spec(server, **SMALL), out=tmp_path / "other").cells[0].scores[0]
        assert (again.value, other.value) == (1.0, 1.0)
        assert sum(not judging(call["messages"]) for call in server.calls) == explained


def test_retry_asks_again_for_single_windows_that_were_not_answered(tmp_path):
    with truthful_server() as server:
        first = []

        def choose(request, number):
            if judging(request["messages"]) and (not first or request in first):
                first.append(request)
                return content("hm")
            if any(request["messages"] == other["messages"] for other in first):
                return content("hm")
            return None

        server.chooses = choose
        row = saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0]
        assert row.unparsed == 5
        server.chooses, asked = lambda request, number: None, len(server.calls)
        row = saeval.run(spec(server, **SMALL), out=tmp_path / "run", retry="failed").cells[0].scores[0]
        assert (row.unparsed, row.value) == (0, 1.0)
        assert len(server.calls) - asked == 1


def test_cache_lists_and_clears_answers_by_model_run_and_status(tmp_path):
    def cache(*arguments):
        done = CliRunner().invoke(main, ["cache", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    with truthful_server() as server:
        server.chooses = unreadable_judge
        saeval.run(spec(server, **SMALL), out=tmp_path / "run")
        kept = {row["status"]: row for row in json.loads(cache("list", "--json"))}
        assert {row["model"] for row in kept.values()} == {"openai_compatible/rules"}
        assert kept["ok"]["answers"] == 2 and kept["unreadable"]["answers"] == 32
        assert cache("clear", "--status", "unreadable").startswith("32 ")
        assert cache("clear", "--model", "another").startswith("0 ")
        assert cache("clear", "--run", str(tmp_path / "run")).startswith("2 ")
        assert "none" in cache("list")
    assert CliRunner().invoke(main, ["cache", "clear"]).exit_code == 2


def test_exported_answers_replay_a_run_elsewhere_with_equal_scores_and_no_model(tmp_path, monkeypatch):
    def export(run, out):
        return CliRunner().invoke(main, ["cache", "export", str(run), "--out", str(out)])

    with truthful_server() as server:
        task = spec(server, **SMALL, explainer="default")
        task["llms"]["spare"] = {"model": "scripted/no", "reply": "[0]"}
        before = saeval.run(task, out=tmp_path / "run")
        saeval.run(
            {**task, "llms": {**task["llms"], "judge": {"model": "scripted/no", "reply": "[0]"}}}, out=tmp_path / "run"
        )
        mixed = export(tmp_path / "run", tmp_path / "mixed")
        assert (
            mixed.exit_code == 2
            and "judge: several models answered (openai_compatible/rules, scripted/no)" in mixed.output
        )
        saeval.run(task, out=tmp_path / "again")
    done = export(tmp_path / "again", tmp_path / "answers")
    assert done.exit_code == 0 and "saeval run" in done.output, done.output
    assert "spare: has no replies to export" in done.output
    assert {file.name for file in (tmp_path / "answers").iterdir()} == {"spec.yaml", "judge.jsonl", "explainer.jsonl"}
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "of-another"))
    (tmp_path / "answers").rename(tmp_path / "sent")
    after = saeval.run(tmp_path / "sent" / "spec.yaml", out=tmp_path / "replayed")
    assert after.recorded and not before.recorded
    for ours, theirs in zip(before.cells[0].scores, after.cells[0].scores, strict=True):
        assert (ours.scorer, ours.value, ours.ci95, ours.n) == (theirs.scorer, theirs.value, theirs.ci95, theirs.n)
    nothing = export(tmp_path / "again", tmp_path / "none")
    assert nothing.exit_code == 2 and "the cache has no answers of this run" in nothing.output
    assert not (tmp_path / "none").exists()


# --- doors ---


def stream(request, text, *, finish="stop"):
    chunks = [{"choices": [{"index": 0, "delta": {"content": c}, "finish_reason": None}]} for c in text]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "model": "m"})
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return lambda _: web.Response(text=lines + "data: [DONE]\n\n", content_type="text/event-stream")


def test_server_that_only_streams_is_asked_for_a_stream(tmp_path):
    def choose(request, _):
        if not request.get("stream"):
            return error(400, "This model only supports stream mode, please enable the stream parameter")
        return stream(request, truthful(request["messages"]))

    with truthful_server() as server:
        server.chooses = choose
        assert saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0].value == 1.0


def test_stream_that_breaks_off_is_no_answer(tmp_path):
    with truthful_server() as server:
        server.chooses = lambda request, _: stream(request, truthful(request["messages"]), finish=None)
        role = {"model": "openai_compatible/rules", "api_base": server.url, "retries": 0, "extra": {"stream": True}}
        task = spec(server, **SMALL, llms={"explainer": role, "judge": role})
        assert saeval.run(task, out=tmp_path / "run").cells[0].scores[0].value is None


def test_server_without_a_system_turn_gets_its_text_in_the_first_user_turn(tmp_path):
    def choose(request, _):
        if request["messages"][0]["role"] == "system":
            return error(400, "System role not supported")
        return None

    with truthful_server() as server:
        server.chooses = choose
        assert saeval.run(spec(server, **SMALL), out=tmp_path / "run").cells[0].scores[0].value == 1.0
        accepted = [call["messages"] for call in server.calls if call["messages"][0]["role"] == "user"]
        systems = [call["messages"][0]["content"] for call in server.calls if call["messages"][0]["role"] == "system"]
        assert accepted and all(messages[0]["content"].startswith(tuple(systems)) for messages in accepted)
        assert len(systems) < len(accepted)


def test_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with truthful_server() as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        role = {"model": "openai_compatible/rules", "api_base": "http://127.0.0.1:1/v1", "retries": 0}
        task = spec(server, **SMALL, llms={"explainer": role, "judge": role})
        assert saeval.run(task, out=tmp_path / "run").cells[0].scores[0].value == 1.0


def test_server_with_one_slot_is_waited_for(tmp_path):
    import threading
    import time

    lock = threading.Lock()

    def slowly(messages):
        with lock:
            time.sleep(0.1)
        return truthful(messages)

    with truthful_server() as server:
        server.reply = slowly  # blocks the server's loop, so that it answers one call after another
        role = {"model": "openai_compatible/rules", "api_base": server.url, "retries": 0, "timeout": 0.45}
        task = spec(server, **SMALL, llms={"explainer": role, "judge": role})
        row = saeval.run(task, out=tmp_path / "run").cells[0].scores[0]
        assert (row.n, row.failed, len(server.calls)) == (2, 0, 18)


def test_servers_of_one_identity_share_answers_whatever_their_address(tmp_path):
    with truthful_server() as first, truthful_server() as second:
        for server in (first, second):
            role = {"model": "openai_compatible/rules", "api_base": server.url, "identity": "ours"}
            saeval.run(spec(server, **SMALL, llms={"explainer": role, "judge": role}), out=tmp_path / "run")
        assert first.calls and not second.calls


class Odd(LLM):
    """A plugin whose answers are of another type than they should be."""

    name = "odd"
    answer: ClassVar[object] = "yes"

    async def complete(self, request):
        return self.answer


class Nothing(Odd):
    answer = None


class Unpaid(Odd):
    answer = Reply("yes", usage=None)


class Plain(Odd):
    def complete(self, request):
        return Reply("yes")


class Listing(Odd):
    @property
    def can_score(self):
        return True

    async def logprobs(self, request):
        return [[(-1.0,)]]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Odd, "odd/m: the plugin returned str instead of Reply"),
        (Nothing, "odd/m: the plugin returned NoneType instead of Reply"),
        (Plain, "odd/m: the plugin's `complete` is not async; write `async def complete`"),
        (Unpaid, "odd/m: the plugin returned Reply with a usage of type NoneType instead of Usage"),
        (Listing, "odd/m: the plugin returned list instead of LogprobReply"),
    ],
)
def test_plugin_whose_first_answer_is_no_answer_is_told_what_to_return(tmp_path, kind, said):
    asker = Asker("judge", kind(model="m"), "odd/m", RoleSettings())

    async def first_call():
        log, earlier = CallLedger(tmp_path / "calls.jsonl"), Earlier(frozenset(), frozenset(), {})
        await try_models([asker], log, Budget(None), earlier, patience=0, unpriced=True, tell=print)

    with pytest.raises(InputError, match=re.escape(f"judge: {said}; nothing was collected yet")):
        asyncio.run(first_call())
