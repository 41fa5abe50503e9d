"""Every call ends as an answer or as an error with a reason; no answer is paid for twice; no key leaks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fake_server import body, content, drop, error, fake_server, hang
from saeval_plugins.llms import LiteLLM, OpenAICompatible

from saeval import BudgetExceeded, LLMError, LogprobRequest, Refused, Request
from saeval.calls import Budget, CallLog, CallStore
from saeval.gateway import Gateway, RoleSettings

CANARY = "sk-canary-1234567890abcdef"


def gateway(folder, llm, *, limit=None, identity="m", **settings):
    return Gateway(
        "judge", llm, model=f"{llm.name}/{llm.model}", identity=identity, settings=RoleSettings(**settings),
        calls=CallStore(folder / "calls.sqlite"), log=CallLog(folder / "calls.jsonl"), budget=Budget(limit),
    )  # fmt: skip


def direct(server, **options):
    return OpenAICompatible(model="m", api_base=server.url, **options)


def through_litellm(server):
    return LiteLLM(model="openai/m", api_base=server.url)


def ask(gate, *requests, **options):
    """Ask all at once and close; return answers, errors in their place."""

    async def main():
        try:
            return await asyncio.gather(*(gate.complete(r) for r in requests), return_exceptions=True)
        finally:
            await gate._llm.aclose()

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("saeval.gateway._FIRST_WAIT", 0.01)
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
        assert [line["status"] for line in lines] == ["ok", "failed"]
        assert lines[1]["reason"]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_error_that_stays_the_same_is_not_tried_again(tmp_path, client, status):
    with fake_server() as server:
        server.always = error(status, "wrong")
        (failed,) = ask(gateway(tmp_path, client(server)), Request.of("x"))
        assert isinstance(failed, LLMError) and not failed.retryable
        assert len(server.calls) == 1


@pytest.mark.parametrize("fault", [content("no", refusal="I will not"), content("", "content_filter")])
def test_refusal_is_a_refusal(tmp_path, fault):
    with fake_server() as server:
        server.always = fault
        (failed,) = ask(gateway(tmp_path, direct(server)), Request.of("x"))
        assert isinstance(failed, Refused)
        assert json.loads((tmp_path / "calls.jsonl").read_text())["status"] == "refused"


def test_hang_ends_at_the_timeout(tmp_path):
    with fake_server() as server:
        server.always = hang
        (failed,) = ask(gateway(tmp_path, direct(server), timeout=0.1, retries=1), Request.of("x"))
        assert "no answer within 0.1 s" in str(failed)
        assert len(server.calls) == 2


def test_retry_after_is_kept(tmp_path):
    with fake_server() as server:
        server.faults = [error(429, **{"Retry-After": "0.4"})]
        began = asyncio.new_event_loop().time()
        (reply,) = ask(gateway(tmp_path, direct(server)), Request.of("x"))
        assert reply.text == "fine"
        assert asyncio.new_event_loop().time() - began >= 0.4


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
        from test_gateway import gateway
        from saeval import Request
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
            arguments = [str(Path(__file__).parent), str(tmp_path), server.url, str(kill_after)]
            subprocess.run([sys.executable, "-c", program, *arguments], check=False)
        assert len(server.calls) == 10


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


def test_key_is_sent_but_never_written(tmp_path, client, caplog, capfd):
    with fake_server() as server:
        server.faults = [error(401, f"Incorrect API key provided: {CANARY}")]
        gate = gateway(tmp_path, client(server))
        failed, _ = ask(gate, Request.of("a"), Request.of("b"))
        assert isinstance(failed, LLMError)
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


def test_server_that_echoes_prompts_scores_continuations(tmp_path):
    with fake_server() as server:
        gate = gateway(tmp_path, direct(server, scores=True))

        async def main():
            try:
                return await gate.logprobs(
                    LogprobRequest(("is it blue?", "is it a whale?"), (" yes", " oh no"), "the sea. ")
                )
            finally:
                await gate._llm.aclose()

        reply = asyncio.run(main())
        assert gate.can_score
        assert reply.logprobs == (((-3.0,), (-2.0, -2.0)), ((-3.0,), (-2.0, -2.0)))


def test_model_that_cannot_score_says_so(tmp_path):
    with fake_server() as server, pytest.raises(LLMError, match="cannot score continuations"):
        asyncio.run(gateway(tmp_path, direct(server)).logprobs(LogprobRequest(("a",), ("b",))))


@pytest.mark.parametrize("release", ["1.82.7", "1.82.8", "1.107.0", "1.107.3"])
def test_malicious_litellm_releases_are_refused_before_import(monkeypatch, release):
    from saeval import InputError

    monkeypatch.setattr("saeval_plugins.llms.litellm.version", lambda _: release)
    with pytest.raises(InputError, match=f"litellm {release} is a malicious release"):
        LiteLLM(model="openai/x").check()
