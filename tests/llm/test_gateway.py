"""Every call ends as an answer or as an error with a reason; no answer is paid for twice; no key leaks."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
from email.utils import formatdate
from importlib.resources import files

import pytest
from fake_server import body, content, drop, error, fake_server, hang
from gateways import ask, direct, gateway, through_litellm
from planted_run import spec, truthful_server
from pydantic import ValidationError
from root import ROOT

import saeval
from saeval import BudgetExceeded, LLMError, StoreError
from saeval._run.collect import store_path
from saeval._run.runner import Session, run_task
from saeval._util.progress import display
from saeval.llm.budget import Budget
from saeval.llm.cache import AnswerCache
from saeval.llm.gateway import Gateway
from saeval.llm.ledger import Call, CallLedger
from saeval.llm.role import Asker, RoleSettings
from saeval.plugin import LLM, LogprobRequest, Refused, Reply, Request, Usage
from saeval.plugin.registry import Registry
from saeval.task.loader import load_task

CANARY = "sk-canary-1234567890abcdef"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("saeval.llm.retries._FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


@pytest.fixture(params=[direct, pytest.param(through_litellm, marks=pytest.mark.slow)])
def client(request):
    return request.param


def test_answer_and_what_it_took_come_back(tmp_path, client):
    with fake_server("hello") as server:
        (reply,) = ask(gateway(tmp_path, client(server)), Request.of("hi"))
        assert (reply.text, reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cached_tokens) == (
            "hello",
            100,
            10,
            40,
        )
        assert server.calls[0]["messages"] == [{"role": "user", "content": "hi"}]
        assert server.calls[0]["temperature"] == 0.0


FAULTS = {
    "rate limit": error(429), "server error": error(500), "overload": error(503), "empty": content(""), "null": content(None),
    "truncated": body('{"choices": [{"mess'), "error in 200": body('{"error": {"message": "overloaded"}}'),
    "no choices": body('{"choices": []}'), "dropped": drop,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_passing_fault_is_tried_again_and_one_that_stays_ends_with_a_reason(tmp_path, client, fault):
    with fake_server("hello") as server:
        gate = gateway(tmp_path, client(server), retries=2)
        server.faults = [fault]
        (reply,) = ask(gate, Request.of("once"))
        assert reply.text == "hello"
        server.always, server.calls = fault, []
        (failed,) = ask(gate, Request.of("always"))
        assert isinstance(failed, LLMError) and str(failed)
        assert len(server.calls) == 3
        lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
        assert [line.get("status", "ok") for line in lines] == ["ok", "failed"]
        assert lines[1]["reason"]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_error_that_stays_the_same_is_not_tried_again(tmp_path, client, status):
    with fake_server() as server:
        server.always = error(status, "wrong")
        (failed,) = ask(gateway(tmp_path, client(server)), Request.of("x"))
        assert isinstance(failed, LLMError) and not failed.retryable
        assert len(server.calls) == 1


REFUSALS = {
    "in words": content("no", refusal="I will not"), "filtered": content("", "content_filter"),
    "prompt filtered": error(400, "declined", code="content_filter"),
    "against policy": error(400, "declined", code="content_policy_violation"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal_is_a_refusal_and_never_an_answer(tmp_path, client, fault):
    with fake_server() as server:
        server.always = fault
        (failed,) = ask(gateway(tmp_path, client(server)), Request.of("x"))
        assert isinstance(failed, Refused)
        assert len(server.calls) == 1
        assert json.loads((tmp_path / "calls.jsonl").read_text())["status"] == "refused"


def test_hang_ends_at_the_timeout(tmp_path):
    with fake_server() as server:
        server.always = hang
        (failed,) = ask(gateway(tmp_path, direct(server), timeout=0.1, retries=1), Request.of("x"))
        assert "no answer within 0.1 s" in str(failed)
        assert len(server.calls) == 2


def waited_after(tmp_path, llm, server, retry_after):
    """Seconds until an answer came, where the first attempt was told to wait."""
    ask(gateway(tmp_path, llm), Request.of("warm up"))
    server.faults = [error(429, headers={"Retry-After": retry_after})]
    began = time.monotonic()
    (reply,) = ask(gateway(tmp_path, llm), Request.of("x"))
    assert reply.text == "fine"
    return time.monotonic() - began


def test_retry_after_is_kept(tmp_path, client):
    with fake_server() as server:
        assert waited_after(tmp_path, client(server), server, "0.4") >= 0.4


def test_retry_after_may_be_a_date(tmp_path):
    with fake_server() as server:
        assert 0.9 < waited_after(tmp_path, direct(server), server, formatdate(time.time() + 2, usegmt=True)) < 10


@pytest.mark.parametrize("nonsense", ["soon", "nan", "inf", "-5", "Wed, 99 Foo"])
def test_retry_after_that_makes_no_sense_stops_nothing(tmp_path, nonsense):
    with fake_server() as server:
        assert waited_after(tmp_path, direct(server), server, nonsense) < 5  # not the minutes that a server may ask for


def test_server_that_is_not_there_is_one_clear_sentence(tmp_path, client):
    class Nowhere:
        url = "http://127.0.0.1:9/v1"

    (failed,) = ask(gateway(tmp_path, client(Nowhere), retries=0), Request.of("x"))
    assert isinstance(failed, LLMError)
    assert "connection" in str(failed).lower()


def test_equal_requests_are_asked_once_and_repeats_again(tmp_path):
    with fake_server() as server:
        gate = gateway(tmp_path, direct(server))
        ask(gate, Request.of("a"), Request.of("a"), Request.of("a", repeat=1), Request.of("b"))
        assert len(server.calls) == 3
        ask(gate, Request.of("a"), Request.of("b"))
        assert len(server.calls) == 3


def test_waiting_for_an_equal_request_is_written_down_as_cached(tmp_path):
    with fake_server() as server:
        server.delay = 0.05
        gate = gateway(tmp_path, direct(server))
        ask(gate, *[Request.of("a")] * 3)
        (total,) = gate._log.totals()
        assert (total.calls, total.cached, total.input_tokens) == (1, 2, 100)


def test_cancelled_caller_does_not_cancel_others(tmp_path):
    with fake_server() as server:
        server.delay = 0.2
        gate = gateway(tmp_path, direct(server))

        async def main():
            askers = [asyncio.ensure_future(gate.complete(Request.of("a"))) for _ in range(3)]
            await asyncio.sleep(0.05)
            askers[0].cancel()
            try:
                return await asyncio.gather(*askers, return_exceptions=True)
            finally:
                await gate._llm.aclose()

        first, *others = asyncio.run(main())
        assert isinstance(first, asyncio.CancelledError)
        assert [reply.text for reply in others] == ["fine", "fine"]
        assert len(server.calls) == 1  # it was under way, and is paid for


@pytest.mark.parametrize(("answered", "grace"), [(True, 5.0), (False, 0.1)])
def test_run_that_stops_keeps_answers_under_way_but_does_not_wait_forever(tmp_path, monkeypatch, answered, grace):
    monkeypatch.setattr("saeval.llm.gateway._GRACE", grace)
    with fake_server() as server:
        server.delay = 0.2
        server.always = None if answered else hang
        gate = gateway(tmp_path, direct(server), concurrency=1)

        async def main():
            askers = [asyncio.ensure_future(gate.complete(Request.of(text))) for text in "ab"]
            await asyncio.sleep(0.1)
            for asker in askers:
                asker.cancel()
            ended = await asyncio.gather(*askers, return_exceptions=True)
            await gate.finish()
            await gate._llm.aclose()
            return ended

        assert [type(e) for e in asyncio.run(main())] == [asyncio.CancelledError] * 2
        assert len(server.calls) == 1  # the one that waited for its turn was not asked
        server.always = None
        ask(gateway(tmp_path, direct(server)), Request.of("a"))
        assert len(server.calls) == (1 if answered else 2)


def test_answer_that_changed_on_disk_is_asked_for_again(tmp_path, caplog):
    with fake_server("fine") as server:
        ask(gateway(tmp_path, direct(server)), Request.of("a"))
        AnswerCache(tmp_path / "calls.sqlite")._db.execute("UPDATE kept SET answer = replace(answer, 'fine', 'fihe')")
        (reply,) = ask(gateway(tmp_path, direct(server)), Request.of("a"))
        assert (reply.text, len(server.calls)) == ("fine", 2)


@pytest.mark.parametrize("several", [0, -1])
def test_calls_in_flight_must_be_some(several):
    with pytest.raises(ValidationError, match="concurrency"):
        RoleSettings(concurrency=several)


def test_two_models_share_a_cache_but_no_answer(tmp_path):
    with fake_server() as server:
        for identity in ("one", "two", "one"):
            ask(gateway(tmp_path, direct(server), identity=identity), Request.of("a"))
        assert len(server.calls) == 2


def test_parameters_are_part_of_the_key(tmp_path):
    with fake_server() as server:
        gate = gateway(tmp_path, direct(server))
        ask(
            gate,
            Request.of("a"),
            Request.of("a", temperature=1.0),
            Request.of("a", max_tokens=3),
            Request.of("a", stop=("x",)),
        )
        assert len(server.calls) == 4


def test_process_killed_at_any_moment_pays_nothing_twice(tmp_path):
    program = textwrap.dedent("""
        import asyncio, os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from gateways import gateway
        from saeval.plugin import Request
        from saeval_plugins.llms import OpenAICompatible
        gate = gateway(Path(sys.argv[2]), OpenAICompatible(model="m", api_base=sys.argv[3]))
        async def main():
            for i in range(10):
                await gate.complete(Request.of(str(i)))
                if i == int(sys.argv[4]):
                    os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """)
    with fake_server() as server:
        for kill_after in (2, 5, 99):
            arguments = [str(ROOT / "tests" / "helpers"), str(tmp_path), server.url, str(kill_after)]
            subprocess.run([sys.executable, "-c", program, *arguments], check=False)
        assert len(server.calls) == 10


def test_finished_calls_are_kept_and_in_the_ledger_though_many_share_a_transaction(tmp_path, monkeypatch):
    kept, put = [], AnswerCache.put
    monkeypatch.setattr(
        AnswerCache, "put", lambda store, answers, model: (put(store, answers, model), kept.append(len(answers)))
    )
    with fake_server() as server:
        server.delay = 0.02
        gate = gateway(tmp_path, direct(server), concurrency=50)
        others, ledger = AnswerCache(tmp_path / "calls.sqlite"), CallLedger(tmp_path / "calls.jsonl")

        async def one(text):
            await gate.complete(Request.of(text))
            answers = {call.request: call.answer for call in ledger.calls() if call.status == "ok"}
            return len(answers), all(map(others.get, answers.values()))

        async def main():
            try:
                return await asyncio.gather(*(one(str(i)) for i in range(100)))
            finally:
                await gate._llm.aclose()

        found = asyncio.run(main())
    assert sum(kept) == 100 and len(kept) < 50
    assert all(lines >= i for i, (lines, _) in enumerate(sorted(found), 1)) and all(whole for _, whole in found)


def test_several_processes_share_the_answers(tmp_path):
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from saeval.llm.cache import AnswerCache
        for i in range(50):
            store = AnswerCache(Path(sys.argv[1]))
            store.put({f"{sys.argv[2]}-{i}": {"text": str(i)}})
            store.close()
    """)
    path = tmp_path / "calls.sqlite"
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), str(n)]) for n in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    store = AnswerCache(path)
    assert all(store.get(f"{n}-{i}") == {"text": str(i)} for n in range(4) for i in range(50))


def test_cache_that_cannot_be_used_says_so_in_one_sentence(tmp_path):
    (tmp_path / "garbage").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        AnswerCache(tmp_path / "garbage")
    AnswerCache(tmp_path / "newer")._db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="newer saeval .format 99.; use that version"):
        AnswerCache(tmp_path / "newer")
    store = AnswerCache(tmp_path / "full")
    store._db.execute("PRAGMA max_page_count=1")
    with pytest.raises(StoreError, match="cannot be used .*full"):
        store.put({"key": {"text": "x" * 100_000}})


def test_line_of_the_ledger_that_a_kill_cut_short_costs_no_other(tmp_path):
    path = tmp_path / "calls.jsonl"

    def call(usd):
        return Call("judge", "m", "r", "a", "ok", False, 1, Usage(10, 1, 0, usd, "spec"), 1.0)

    CallLedger(path).add(call(1.0))
    CallLedger(path).add(call(2.0))
    path.write_bytes(path.read_bytes()[:-30])
    log = CallLedger(path)
    log.add(call(4.0))
    log.add(call(8.0))
    assert log.spent() == 13.0
    assert log.totals()[0].calls == 3
    assert log.missing() == "calls.jsonl: 1 line is damaged, so the cost of those calls is not counted"


def test_unknown_price_stays_unknown_and_a_given_one_is_summed(tmp_path):
    with fake_server() as server:
        unknown = gateway(tmp_path, direct(server))
        ask(unknown, Request.of("a"))
        assert unknown._log.totals()[0].usd is None
        (tmp_path / "b").mkdir()
        known = gateway(tmp_path / "b", direct(server), usd_per_million_input=1.0, usd_per_million_output=10.0)
        ask(known, Request.of("a"), Request.of("b"))
        (total,) = known._log.totals()
        assert total.usd == pytest.approx(2 * (100 * 1.0 + 10 * 10.0) / 1e6)
        ask(known, Request.of("a"))
        (total,) = known._log.totals()
        assert (total.calls, total.cached, total.usd) == (2, 1, pytest.approx(4e-4))


def test_spending_limit_stops_before_the_next_call(tmp_path):
    with fake_server() as server:
        gate = gateway(
            tmp_path, direct(server), limit=3e-4, usd_per_million_input=1.0, usd_per_million_output=10.0, concurrency=1
        )
        replies = ask(gate, *(Request.of(str(i)) for i in range(5)))
        assert [isinstance(r, BudgetExceeded) for r in replies] == [False, False, True, True, True]
        assert len(server.calls) == 2


def test_provider_s_price_goes_before_the_spec_s_and_unknown_tokens_are_estimated(tmp_path):
    class Priced(LLM):
        name = "priced"

        async def complete(self, request):
            return Reply(
                "yes", {"theirs": Usage(10, 1, 0, 0.5, "list"), "no tokens": Usage()}[request.messages[0].content]
            )

    gate = gateway(tmp_path, Priced(model="m"), usd_per_million_input=1.0, usd_per_million_output=1.0)
    theirs, unknown = ask(gate, Request.of("theirs"), Request.of("no tokens"))
    assert (theirs.usage.usd, theirs.usage.price_source) == (0.5, "list")
    assert unknown.usage.usd > 0 and unknown.usage.estimated


def test_limit_that_cannot_hold_says_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "saeval")
    with fake_server() as server:
        gate = gateway(tmp_path, direct(server), limit=1.0)
        ask(gate, Request.of("a"), Request.of("b"))
        assert gate._caller._budget.unknown == 2
        assert caplog.text.count("its price is unknown, so the spending limit cannot hold it") == 1


PRICES = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}  # a call of the fake server takes $0.0002


def test_empty_answers_and_refusals_are_paid_for(tmp_path, client):
    with fake_server() as server:
        gate = gateway(tmp_path, client(server), retries=2, **PRICES)
        server.faults = [content(""), content("")]
        (reply,) = ask(gate, Request.of("a"))
        assert reply.usage.usd == pytest.approx(6e-4)
        server.always = content("no", refusal="I will not")
        ask(gate, Request.of("b"))
        server.always = content("")
        ask(gate, Request.of("c"))
        assert gate._caller._budget.spent == pytest.approx(14e-4)
        assert gate._log.totals()[0].usd == pytest.approx(14e-4)


def test_what_was_paid_before_the_limit_stopped_an_attempt_is_in_the_ledger(tmp_path):
    with fake_server() as server:
        server.always = content("")
        gate = gateway(tmp_path, direct(server), limit=3e-4, **PRICES)
        (stopped,) = ask(gate, Request.of("a"))
        assert isinstance(stopped, BudgetExceeded)
        assert (
            CallLedger(tmp_path / "calls.jsonl").spent()
            == pytest.approx(gate._caller._budget.spent)
            == pytest.approx(4e-4)
        )
        assert len(server.calls) == 2


def billed(text, usd):
    """Return an answer that states its price; None for an answer without one."""
    cost = {} if usd is None else {"cost": usd}
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return body(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1, **cost}}))


@pytest.mark.parametrize(
    ("attempts", "known"),
    [
        ([("", 0.5), ("yes", None)], 0.5),
        ([("", None), ("", 0.25), ("yes", None)], 0.25),
        ([("", None), ("yes", 0.125)], 0.125),
        ([("", 0.5), ("", None), ("", 0.25)], 0.75),
    ],
)
def test_known_cost_of_an_attempt_survives_another_without_a_price(tmp_path, attempts, known):
    with fake_server() as server:
        server.faults = [billed(text, usd) for text, usd in attempts]
        gate = gateway(tmp_path, direct(server), limit=10.0, retries=len(attempts) - 1)
        (reply,) = ask(gate, Request.of("a"))
    assert isinstance(reply, LLMError) == (attempts[-1][0] == "")
    assert gate._caller._budget.spent == known
    log = CallLedger(tmp_path / "calls.jsonl")
    assert log.spent() == known
    (total,) = log.totals()
    assert total.usd is None  # not all of it is known
    lines = (tmp_path / "calls.jsonl").read_text()
    assert json.loads(lines)["known_usd"] == json.loads(lines)["spent"] == known


def test_costs_that_are_all_known_or_all_unknown_are_written_once(tmp_path):
    with fake_server() as server:
        server.faults = [billed("", 0.5), billed("yes", 0.25), billed("", None), billed("yes", None)]
        gate = gateway(tmp_path, direct(server), concurrency=1)
        ask(gate, Request.of("a"))
        ask(gate, Request.of("b"))
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert [line["usage"].get("usd") for line in lines] == [0.75, None]
    assert not any("known_usd" in line for line in lines)


def test_plugin_that_breaks_is_in_the_ledger_without_its_words(tmp_path):
    class Broken(LLM):
        name = "broken"

        async def complete(self, request):
            raise RuntimeError(f"Bearer {CANARY}")

    (failed,) = ask(gateway(tmp_path, Broken(model="m")), Request.of("a"))
    assert isinstance(failed, RuntimeError)
    line = json.loads((tmp_path / "calls.jsonl").read_text())
    assert (line["status"], line["reason"]) == ("failed", "RuntimeError") and "attempts" not in line


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SystemExit(3), "the plugin raised SystemExit (3)"),
        (asyncio.CancelledError(), "the plugin was cancelled by itself"),
    ],
)
def test_plugin_that_exits_or_cancels_itself_fails_its_call(tmp_path, error, reason):
    class Quitter(LLM):
        name = "quitter"

        async def complete(self, request):
            raise error

    (failed,) = ask(gateway(tmp_path, Quitter(model="m")), Request.of("a"))
    assert isinstance(failed, LLMError)
    assert f"quitter/m: {reason}" in str(failed)
    assert json.loads((tmp_path / "calls.jsonl").read_text())["status"] == "failed"


def test_plugin_whose_answer_is_no_reply_is_told_what_to_return(tmp_path):
    class Text(LLM):
        name = "text"

        async def complete(self, request):
            return "Paris"

    class Plain(LLM):
        name = "plain"

        def complete(self, request):
            return Reply("Paris")

    (failed,) = ask(gateway(tmp_path, Text(model="m")), Request.of("a"))
    assert isinstance(failed, LLMError) and "text/m: the plugin returned str instead of Reply" in str(failed)
    (failed,) = ask(gateway(tmp_path, Plain(model="m")), Request.of("a"))
    assert isinstance(failed, LLMError) and "`complete` is not async; write `async def complete`" in str(failed)


def test_key_is_sent_but_never_written(tmp_path, client, caplog, capfd):
    with fake_server() as server:
        server.faults = [error(401, f"Incorrect API key provided: {CANARY}")]
        gate = gateway(tmp_path, client(server))
        failed = next(answer for answer in ask(gate, Request.of("a"), Request.of("b")) if isinstance(answer, LLMError))
        assert any(CANARY in h.get("Authorization", "") for h in server.headers)
        assert CANARY not in str(failed) and CANARY not in repr(failed)
        for file in tmp_path.rglob("*"):
            assert CANARY.encode() not in (file.read_bytes() if file.is_file() else b"")
        assert CANARY not in caplog.text + "".join(capfd.readouterr())


def test_auto_concurrency_grows_with_success_and_a_fixed_one_is_kept(tmp_path):
    with fake_server() as server:
        server.delay = 0.01
        ask(gateway(tmp_path, direct(server), concurrency=3), *(Request.of(f"x{i}") for i in range(30)))
        assert server.most_in_flight == 3
        ask(gateway(tmp_path, direct(server)), *(Request.of(f"y{i}") for i in range(300)))
        assert server.most_in_flight > 12


def test_model_that_cannot_score_says_so(tmp_path):
    with fake_server() as server, pytest.raises(LLMError, match="cannot score continuations"):
        asyncio.run(gateway(tmp_path, direct(server)).logprobs(LogprobRequest(("a",), ("b",))))


# --- waiting ---


def told_of(folder, llm, *requests, **settings):
    """Ask all at once, and return what a user is told."""
    told = []
    gate = Gateway(
        Asker("judge", llm, "m", RoleSettings(**settings)), identity="m", calls=AnswerCache(folder / "calls.sqlite"),
        log=CallLedger(folder / "calls.jsonl"), budget=Budget(None), tell=told.append,
    )  # fmt: skip
    ask(gate, *requests)
    return told


def test_wait_that_the_server_asked_for_is_reported_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("saeval.llm.retries._TOLD", 0.9)
    caplog.set_level(logging.INFO, "saeval")
    with fake_server() as server:
        server.faults = [error(429, "slow down", headers={"Retry-After": "1"})] * 3
        told = told_of(tmp_path, direct(server), *(Request.of(str(i)) for i in range(3)))
        assert told == ["judge: waiting 1 s, the server asked for it (m: status 429: slow down)"]
        assert told[0] in caplog.text
        server.faults = [error(429, headers={"Retry-After": "0.1"})]
        assert told_of(tmp_path, direct(server), Request.of("x")) == []


def test_server_that_is_silent_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("saeval.llm.retries._SILENCE", 0.2)
    with fake_server() as server:
        server.delay = 0.6
        told = told_of(tmp_path, direct(server), *(Request.of(str(i)) for i in range(3)))
    assert told and all(re.fullmatch(r"judge: no answer for \d+ s, \d calls? in flight", text) for text in told)


@pytest.mark.parametrize("style", ["rich", "plain", "json"])
def test_every_display_says_what_a_run_waits_for(style, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("saeval.llm.retries._TOLD", 0.1)
    with truthful_server() as server:
        server.faults = [error(503, headers={"Retry-After": "0.2"})]
        saeval.run(
            spec(server, scorers={"detection": {}}, baselines=[]), out=tmp_path / "run", limit=1, display=display(style)
        )
    said = capsys.readouterr().err
    assert "explainer: waiting 0 s, the server asked for it" in said
    if style == "json":
        assert "wait" in {json.loads(line)["event"] for line in said.splitlines()}


def test_run_says_that_another_process_collects_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        task = load_task(spec(server, scorers={"detection": {}}, baselines=[]), registry=Registry())
        path = store_path(task.cells[0].source)
        path.parent.mkdir(parents=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
            run_task(task, Session(limit=1), out=tmp_path / "run", display=display("plain"))
    assert (
        "collect activations: waiting for another saeval process that is collecting the same activations"
        in capsys.readouterr().err
    )


# --- shared beginnings ---


@pytest.mark.parametrize(
    "name", sorted(file.name for file in files("saeval_plugins.prompts").iterdir() if file.name.endswith(".md"))
)
def test_prompts_begin_with_what_all_latents_share_so_that_providers_can_cache_it(name):
    text = files("saeval_plugins.prompts").joinpath(name).read_text(encoding="utf-8")
    last_question = text.rindex("# user\n") if "# user\n" in text else 0
    assert "{{" not in text[:last_question]


def test_requests_of_a_run_differ_in_their_last_turn_only(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        saeval.run(spec(server, baselines=[]), out=tmp_path / "run", limit=3)
    turns = [[json.dumps(turn) for turn in call["messages"]] for call in server.calls]
    beginnings = {tuple(conversation[:-1]) for conversation in turns}
    assert len(beginnings) == 3 < len(turns)  # one for the explainer, one for each scorer
    assert all(len("".join(beginning)) > 500 for beginning in beginnings)
    (explained, judged) = json.loads((tmp_path / "run" / "results.json").read_text())["ledger"]
    assert explained["cached_tokens"] == 40 * explained["calls"] and judged["cached_tokens"] == 40 * judged["calls"]


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens_details": {"cached_tokens": 40}},
        {"prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 60},
        {"cache_read_input_tokens": 40, "prompt_tokens_details": {"cached_tokens": None}},
    ],
    ids=["OpenAI", "DeepSeek", "Anthropic"],
)
def test_tokens_that_the_provider_cached_are_in_the_ledger(tmp_path, usage):
    answer = json.loads(content("fine")(None).text)
    answer["usage"] |= usage
    with fake_server() as server:
        server.always = body(json.dumps(answer))
        gate = gateway(tmp_path, direct(server))
        ask(gate, Request.of("a"), Request.of("b"))
        (total,) = gate._log.totals()
    assert (total.input_tokens, total.cached_tokens) == (200, 80)
