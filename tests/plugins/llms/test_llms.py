"""Each way to reach a language model speaks its server's language, and plays back or makes up nothing unasked."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from aiohttp import web
from fake_server import body, content, error, fake_server
from gateways import BOTH_DOORS, ask, direct, gateway, with_key_and_short_waits
from planted_run import spec, truthful_server
from pydantic import ValidationError
from saeval_plugins.llms import LiteLLM, OpenAICompatible, Replay, Scripted

import saeval
from saeval import BudgetExceeded, InputError, LLMError
from saeval._run.plan.dry_run import Counter
from saeval.llm import CallLedger, export_replies
from saeval.llm.cache import AnswerCache
from saeval.plugin import FillRequest, LogprobRequest, Message, Refused, Request, TokenLogprobs


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    with_key_and_short_waits(monkeypatch)


@pytest.fixture(params=BOTH_DOORS)
def client(request):
    return request.param


def test_listing_the_plugins_imports_nothing_heavy():
    program = "import sys, saeval_plugins.llms as l; l.saeval_llms(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "litellm", "aiohttp", "openai", "datasets"} & set(loaded)


# --- chat over HTTP ---

TOP = {
    "content": [
        {"token": "ye", "logprob": -0.1, "bytes": None, "top_logprobs": [
            {"token": "ye", "logprob": -0.1, "bytes": None}, {"token": "no", "logprob": -2.5, "bytes": None}
        ]}
    ]
}  # fmt: skip


def test_conversation_and_options_reach_the_server_and_alternatives_come_back(tmp_path, client):
    turns = (Message("system", "Be brief."), Message("user", "1"), Message("assistant", "[0]"), Message("user", "2"))
    with fake_server() as server:
        server.always = content("ye", logprobs=TOP)
        request = Request(turns, max_tokens=7, temperature=0.5, stop=("END",), top_logprobs=2)
        (reply,) = ask(gateway(tmp_path, client(server)), request)
        (sent,) = server.calls
    assert sent["messages"] == [{"role": turn.role, "content": turn.content} for turn in turns]
    assert (sent["max_tokens"], sent["temperature"], sent["stop"]) == (7, 0.5, ["END"])
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)
    assert reply.logprobs == (TokenLogprobs("ye", (("ye", -0.1), ("no", -2.5))),)


def test_extra_arguments_are_sent_along(tmp_path):
    with fake_server() as server:
        ask(gateway(tmp_path, direct(server, extra={"top_p": 0.9})), Request.of("x"))
        ask(gateway(tmp_path, LiteLLM(model="openai/m", api_base=server.url, extra={"top_p": 0.8})), Request.of("y"))
        assert [call["top_p"] for call in server.calls] == [0.9, 0.8]


def test_answer_cut_at_the_limit_says_so_and_is_asked_for_once_more_with_room(tmp_path, client):
    with fake_server() as server:
        server.always = content("a long sto", "length")
        gate = gateway(tmp_path, client(server))
        assert ask(gate, Request.of("x"))[0].finish_reason == "length"
        server.always, server.calls = content("", "length"), []  # a thinking model that never came to its answer
        gate = gateway(tmp_path, client(server))
        (failed,) = ask(gate, Request.of("y"))
        assert isinstance(failed, LLMError) and "max_tokens_if_cut" in str(failed)
        assert [call["max_tokens"] for call in server.calls] == [256, 4096]
        ask(gateway(tmp_path, client(server), max_tokens_if_cut=1), Request.of("z"))
        assert len(server.calls) == 3


def test_server_without_a_key_gets_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE_API_KEY", "mine-123456")
    with fake_server() as server:
        ask(gateway(tmp_path, direct(server, api_key_env="MINE_API_KEY")), Request.of("x"))
        ask(gateway(tmp_path, direct(server, api_key_env="NOT_SET_API_KEY")), Request.of("y"))
        assert [h.get("Authorization") for h in server.headers] == ["Bearer mine-123456", None]


def test_connections_are_pooled_and_closed():
    with fake_server() as server:
        llm = direct(server)

        async def main():
            request = Request.of("x", max_tokens=5, temperature=0.0)
            await asyncio.gather(*(llm.complete(request) for _ in range(3)))
            (session,) = llm._sessions.values()
            await llm.aclose()
            return session.closed, dict(llm._sessions)

        for _ in range(2):  # a new event loop each time
            assert asyncio.run(main()) == (True, {})


def test_key_in_the_address_is_refused():
    with pytest.raises(InputError, match="without user name, password"):
        OpenAICompatible(model="m", api_base="http://user:pass@localhost/v1").check()


# --- litellm ---


def test_price_is_litellm_s_where_it_knows_the_model(tmp_path):
    with fake_server() as server:
        prices = []
        for model in ("openai/gpt-4o-mini", "openai/some-finetune"):
            (reply,) = ask(
                gateway(tmp_path, LiteLLM(model=model, api_base=server.url), identity=model), Request.of("x")
            )
            prices.append((reply.usage.usd, reply.usage.price_source))
    assert prices[0][0] > 0 and prices[0][1] == "litellm"
    assert prices[1] == (None, None)


@pytest.mark.parametrize("release", ["1.82.7", "1.82.8", "1.107.0", "1.107.3"])
def test_malicious_litellm_releases_are_refused_before_import(monkeypatch, release):
    monkeypatch.setattr("saeval._util.releases.version", lambda _: release)
    monkeypatch.delitem(sys.modules, "litellm", raising=False)
    llm = LiteLLM(model="openai/x")
    with pytest.raises(InputError, match=f"litellm {release} is a malicious release"):
        llm.check()
    with pytest.raises(InputError, match="malicious"):
        asyncio.run(llm.complete(Request.of("x", max_tokens=1)))
    assert "litellm" not in sys.modules


# --- batches ---


def in_batch(folder, server, model="openai/gpt-4o-mini", **options):
    return gateway(folder, LiteLLM(model=model, api_base=server.url, batch=True, **options), retries=1)


@pytest.fixture
def _no_gathering(monkeypatch, tmp_path):
    monkeypatch.setattr("saeval_plugins.llms.batches._SEND_AFTER", 0.05)
    monkeypatch.setattr("saeval_plugins.llms.batches._POLL", 0.01)
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


quick = pytest.mark.usefixtures("_no_gathering")


@quick
@pytest.mark.slow
def test_batch_answers_each_request_at_the_batch_s_price(tmp_path):
    requests = [Request.of(f"say {i}") for i in range(300)]  # more than would ever be in flight
    with fake_server(lambda messages: messages[-1]["content"].upper()) as server:
        replies = ask(in_batch(tmp_path, server), *requests, Request.of("say 0", repeat=1))
        assert [reply.text for reply in replies] == [*(f"SAY {i}" for i in range(300)), "SAY 0"]
        assert len(server.batches) == 1
        assert server.calls[0] == {
            "model": "gpt-4o-mini", "messages": [{"role": "user", "content": "say 0"}], "max_tokens": 256, "temperature": 0.0
        }  # fmt: skip
        usage = replies[0].usage
        assert (usage.input_tokens, usage.cached_tokens, usage.price_source) == (100, 40, "litellm, as a batch")
        assert usage.usd == pytest.approx((100 * 0.075 + 10 * 0.3) / 1e6)  # half of gpt-4o-mini's 0.15 and 0.6
        assert not list((tmp_path / "cache" / "batches").iterdir())
        direct_reply, *_ = ask(gateway(tmp_path, LiteLLM(model="openai/gpt-4o-mini", api_base=server.url)), requests[0])
        assert (
            direct_reply.text == "SAY 0" and server.answered == 301
        )  # from the cache: how answers come is no part of the key


@quick
@pytest.mark.slow
@pytest.mark.parametrize("bound", [{"_MOST": 4}, {"_MOST_BYTES": 600}])
def test_requests_beyond_the_bounds_of_a_batch_go_into_further_batches(tmp_path, monkeypatch, bound):
    for name, value in bound.items():
        monkeypatch.setattr(f"saeval_plugins.llms.batches.{name}", value)
    with fake_server(lambda messages: messages[-1]["content"]) as server:
        replies = ask(in_batch(tmp_path, server), *(Request.of(str(i)) for i in range(10)))
        assert [reply.text for reply in replies] == list("0123456789")
        sizes = sorted(len(batch["asked"]) for batch in server.batches.values())
        assert sizes == ([2, 4, 4] if "_MOST" in bound else [2] * 5)
        uploaded = [text for name, text in server.files.items() if name.startswith("file")]
        assert len(uploaded) == len(sizes) and max(map(len, uploaded)) < (600 if "_MOST_BYTES" in bound else 1200)


@quick
@pytest.mark.slow
def test_request_that_fails_in_a_batch_is_sent_in_another_and_a_refusal_is_none(tmp_path):
    with fake_server() as server:
        server.chooses = lambda body, number: {
            "declined": error(400, "no", code="content_filter"), "shaky": error(500) if number < 3 else None, "wrong": error(400),
        }.get(body["messages"][0]["content"])  # fmt: skip
        requests = map(Request.of, ("good", "shaky", "declined", "wrong"))
        good, shaky, declined, wrong = ask(in_batch(tmp_path, server), *requests)
        assert (good.text, shaky.text) == ("fine", "fine")
        assert isinstance(declined, Refused)
        assert isinstance(wrong, LLMError) and not wrong.retryable and "in a batch: status 400" in str(wrong)
        assert [len(batch["asked"]) for batch in server.batches.values()] == [4, 1]


@quick
@pytest.mark.slow
@pytest.mark.parametrize(("ends_as", "lost"), [("expired", 1), ("cancelled", 1), ("cancelled", 2), ("failed", 0)])
def test_batch_that_ends_early_says_so(tmp_path, ends_as, lost):
    with fake_server() as server:
        server.ends_as, server.lost = ends_as, lost
        first, second = ask(in_batch(tmp_path, server), Request.of("a"), Request.of("b"))
        assert isinstance(second, LLMError)
        reasons = {"failed": "failed: no such file", "cancelled": "failed: cancelled"}
        none = reasons.get(ends_as, "ended as expired without an answer")
        if ends_as == "failed" or lost == 2:
            assert isinstance(first, LLMError) and first.lasting and none in str(first)
            assert len(server.batches) == 1
        else:
            assert first.text == "fine" and none in str(second)
            assert len(server.batches) == 2  # it was sent once more
            assert json.loads((tmp_path / "calls.jsonl").read_text().splitlines()[-1])["spent"] == 1.05e-05


def saved(tmp_path):
    return list((tmp_path / "cache" / "batches").glob("[!.]*.json"))


def killed_after_sending(tmp_path, server):
    """Ask five questions, and end without closing anything as soon as their batch is saved."""

    async def main():
        gate = in_batch(tmp_path, server)
        asking = asyncio.gather(*(gate.complete(Request.of(str(i))) for i in range(5)))
        while not saved(tmp_path):
            await asyncio.wait({asking}, timeout=0.01)

    looks, server.looks = server.looks, 10**6
    asyncio.run(main())
    server.looks = looks


@quick
@pytest.mark.slow
def test_run_that_was_killed_takes_its_answers_from_the_batch_that_it_sent(tmp_path):
    with fake_server(lambda messages: messages[-1]["content"]) as server:
        killed_after_sending(tmp_path, server)
        replies = ask(in_batch(tmp_path, server), *(Request.of(str(i)) for i in range(6)))
        assert [reply.text for reply in replies] == list("012345")
        assert [len(batch["asked"]) for batch in server.batches.values()] == [5, 1]
        assert not list((tmp_path / "cache" / "batches").iterdir())


async def asked_by_two_runs(tmp_path, server, one, other):
    gates = [in_batch(tmp_path, server), in_batch(tmp_path, server)]
    asking = [(gate, i) for gate, numbers in zip(gates, (one, other), strict=True) for i in numbers]
    replies = await asyncio.gather(*(gate.complete(Request.of(str(i))) for gate, i in asking))
    assert [reply.text for reply in replies] == [str(i) for _, i in asking]
    for gate in gates:
        await gate._llm.aclose()


@quick
@pytest.mark.slow
def test_runs_that_share_a_cache_send_each_request_in_one_batch_only(tmp_path):
    with fake_server(lambda messages: messages[-1]["content"]) as server:
        asyncio.run(asked_by_two_runs(tmp_path, server, range(6), range(3, 9)))
        assert server.answered == 9
    assert not saved(tmp_path)


@quick
@pytest.mark.slow
def test_saved_batch_is_deleted_once_several_runs_have_used_all_its_answers(tmp_path):
    with fake_server(lambda messages: messages[-1]["content"]) as server:
        killed_after_sending(tmp_path, server)
        asyncio.run(asked_by_two_runs(tmp_path, server, range(2), range(2, 4)))
        (file,) = saved(tmp_path)
        assert len(json.loads(file.read_text())["requests"]) == 1
        asyncio.run(asked_by_two_runs(tmp_path, server, [4], []))
        assert len(server.batches) == 1 and not saved(tmp_path)


@quick
@pytest.mark.slow
@pytest.mark.parametrize("lost", ["batch", "file"])
def test_requests_of_a_batch_that_the_provider_no_longer_has_are_sent_again(tmp_path, caplog, lost):
    with fake_server(lambda messages: messages[-1]["content"]) as server:
        killed_after_sending(tmp_path, server)
        if lost == "batch":
            del server.batches["batch_0"]
            server.batches["another"] = {"asked": [], "looks": 0, "bad": False}
        else:
            del server.files["batch_0-good"]
        replies = ask(in_batch(tmp_path, server), *(Request.of(str(i)) for i in range(5)))
        assert [reply.text for reply in replies] == list("01234")
        assert len(server.batches["batch_1"]["asked"]) == 5
    assert caplog.text.count("batch batch_0 is lost, so requests without an answer are sent again") == 1
    assert not saved(tmp_path)


@quick
@pytest.mark.slow
def test_batch_that_cannot_be_looked_at_for_now_is_kept(tmp_path):
    with fake_server(lambda messages: messages[-1]["content"]) as server:
        killed_after_sending(tmp_path, server)
        for status in (401, 403):
            server.look_fault = error(status, "wrong key")
            assert all(isinstance(reply, LLMError) for reply in ask(in_batch(tmp_path, server), Request.of("0")))
        server.look_fault = None
        assert ask(in_batch(tmp_path, server), Request.of("0"))[0].text == "0"
        assert len(server.batches) == 1


@quick
@pytest.mark.slow
def test_run_that_waits_for_a_batch_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("saeval.llm.retries._SILENCE", 0.05)
    caplog.set_level(logging.INFO, "saeval")
    with fake_server() as server:
        server.looks = 20
        ask(in_batch(tmp_path, server), *(Request.of(str(i)) for i in range(4)))
    assert "4 calls in flight: batch batch_0 is in_progress, 2 of 4 answered" in caplog.text


@quick
@pytest.mark.slow
def test_run_sends_each_step_of_all_latents_as_one_batch(tmp_path):
    with truthful_server() as server:
        role = {"model": "openai/rules", "api_base": server.url, "batch": True, "max_tokens": 100}
        changes = {
            "llms": {"explainer": role, "judge": role}, "scorers": {"detection": {}}, "baselines": [],
            "source": {"use": "synthetic", "with": {"n_latents": 45, "documents": 300}}, "latents": {"n": 40, "min_windows": 20},
        }  # fmt: skip
        result = saeval.run(spec(server, **changes), out=tmp_path / "run")
    assert result.cells[0].counts["explained"] == 40
    assert [len(batch["asked"]) for batch in server.batches.values()] == [40, len(server.calls) - 40]


def test_batches_of_a_provider_that_has_none_fail_at_once(tmp_path):
    with fake_server() as server:
        (failed,) = ask(in_batch(tmp_path, server, model="groq/llama"), Request.of("x"))
    assert isinstance(failed, LLMError) and failed.lasting and "batch: true supports openai" in str(failed)


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ("opnai/gpt-4o-mini", "litellm knows no provider 'opnai'; did you mean openai/gpt-4o-mini"),
        ("my-lab/model", "litellm knows no provider 'my-lab'; put the provider before it, such as openai/my-lab/model"),
        (
            "gpt-99",
            "litellm does not know who serves this model; put the provider before it: openai/gpt-99, or openai_compatible/gpt-99 for a server of your own",
        ),
    ],
)
def test_provider_that_litellm_does_not_know_ends_the_run_before_anything_is_collected(
    tmp_path, monkeypatch, model, remedy
):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    with truthful_server() as server:
        task = spec(server)
        task["llms"] = {**task["llms"], "judge": {"model": model}}
        with pytest.raises(InputError, match=re.escape(f"judge: {model}: {remedy}")) as caught:
            saeval.run(task, out=tmp_path / "run")
    assert str(caught.value).endswith("nothing was collected yet")
    assert not list(tmp_path.rglob("manifest.json"))
    with pytest.raises(LLMError, match=re.escape(remedy)):
        asyncio.run(LiteLLM(model=model, batch=True).complete(Request((Message("user", "hi"),))))


# --- processes ---


@pytest.mark.slow
def test_processes_of_litellm_share_the_calls_and_one_that_dies_is_replaced(tmp_path):
    with fake_server(lambda messages: messages[-1]["content"]) as server:
        server.delay = 0.3
        llm = LiteLLM(model="openai/gpt-4o-mini", api_base=server.url, processes=2)
        gate = gateway(tmp_path, llm, concurrency=8)

        async def main():
            try:
                asking = asyncio.gather(*(gate.complete(Request.of(str(i))) for i in range(16)))
                while not server.in_flight:
                    await asyncio.sleep(0.05)
                (processes,) = llm._by_loop.values()
                os.kill(processes._workers[0]._process.pid, signal.SIGKILL)
                replies = await asking
                server.always = error(401, "wrong key")
                with pytest.raises(LLMError, match="wrong key"):
                    await gate.complete(Request.of("x"))
                return replies, [worker._process for worker in processes._workers]
            finally:
                await llm.aclose()

        replies, processes = asyncio.run(main())
    assert [reply.text for reply in replies] == [str(i) for i in range(16)]
    assert replies[0].usage.price_source == "litellm"
    assert all(process.returncode is not None for process in processes)


# --- scoring over HTTP ---


def score(tmp_path, server, request, **settings):
    gate = gateway(tmp_path, direct(server, scores=True), **settings)

    async def main():
        try:
            return (await gate.logprobs(request)).logprobs
        finally:
            await gate._llm.aclose()

    assert gate.can_score
    return asyncio.run(main())


def test_server_that_echoes_prompts_scores_continuations(tmp_path):
    prompts, continuations = ("is it blue?", "is it a whale?"), (" yes", " oh no dear")
    with fake_server() as server:
        found = score(tmp_path, server, LogprobRequest(prompts, continuations, "the sea. "))
    assert found == (((-3.0,), (-2.0, -2.0, -4.0)),) * 2


def test_token_that_prompt_and_continuation_share_is_an_error_not_a_number(tmp_path):
    with fake_server() as server, pytest.raises(LLMError, match="share a token"):
        score(tmp_path, server, LogprobRequest(("is it blue?",), ("ish yes",)))


def test_echo_that_cannot_be_read_is_billed(tmp_path):
    prices = {"usd_per_million_input": 1e4, "usd_per_million_output": 0}
    with fake_server() as server:
        gate = gateway(tmp_path, direct(server, scores=True), **prices)

        async def main():
            with pytest.raises(LLMError, match="share a token"):
                await gate.logprobs(LogprobRequest(("is it red?",), ("dish yes",)))
            await gate._llm.aclose()

        asyncio.run(main())
    (total,) = gate._log.totals()
    assert (total.failed, total.input_tokens) == (1, 5) and total.usd == pytest.approx(0.05)


def test_server_that_echoes_nothing_is_told_from_one_that_is_busy(tmp_path):
    request = LogprobRequest(("is it blue?",), (" yes",))
    with fake_server() as server:
        server.faults = [body('{"error": {"message": "overloaded"}}'), error(503)]
        assert score(tmp_path, server, request) == (((-3.0,),),)
        server.always, server.calls = body('{"choices": [{"text": "x", "logprobs": null}]}'), []
        with pytest.raises(LLMError, match="set scores: false"):
            score(tmp_path, server, request, cache=False)
        assert len(server.calls) == 1


WINDOWS = LogprobRequest(tuple(f"window {i} says" for i in range(30)), (" so", " not so"), "all. ")
GAPS = FillRequest(tuple((f"the sea{i}", " is") for i in range(20)), " blue", (" blue", " red"), "see: ")


class Scoring:
    """An echoing server that counts what is in flight, refuses more than `most` calls, and fails as `fault` says."""

    def __init__(self, most=math.inf, fault=lambda number: None):
        self.most, self.fault, self.now, self.peak, self.number = most, fault, 0, 0, 0
        self.answered = []

    async def answer(self, request):
        sent = await request.json()
        self.now += 1
        self.number += 1
        self.peak = max(self.peak, self.now)
        fault = error(429, "too many") if self.now > self.most else self.fault(self.number)
        try:
            await asyncio.sleep(0.01)
            if fault is not None:
                return fault(request)
            self.answered.append(sent["prompt"])
            return web.json_response(echoed(sent["prompt"]))
        finally:
            self.now -= 1


def echoed(prompt):
    first, *others = prompt.split(" ")
    tokens = [first, *(f" {word}" for word in others), "."]
    tops = [{" blue": -0.5, " red": -1.5}] * len(tokens)
    logprobs = {"tokens": tokens, "token_logprobs": [-float(len(token)) for token in tokens], "top_logprobs": tops}
    usage = {"prompt_tokens": len(tokens) - 1, "completion_tokens": 1}
    return {"choices": [{"text": "", "logprobs": logprobs}], "usage": usage}


PRICED = {"usd_per_million_input": 1e4, "usd_per_million_output": 0.0}


def scored(folder, requests, *, most=math.inf, fault=lambda number: None, **settings):
    """Ask a server that echoes; return its counts, the replies (errors in their place), and the gateway."""

    async def main():
        served = Scoring(most, fault)
        app = web.Application()
        app.router.add_post("/v1/completions", served.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        gate = gateway(folder, OpenAICompatible(model="m", api_base=address, scores=True), **settings)
        try:
            calls = [gate.fill(r) if isinstance(r, FillRequest) else gate.logprobs(r) for r in requests]
            return served, await asyncio.gather(*calls, return_exceptions=True), gate
        finally:
            await gate.finish()
            await gate._llm.aclose()
            await runner.cleanup()

    return asyncio.run(main())


def test_scoring_over_http_has_no_more_requests_in_flight_than_the_role_allows(tmp_path):
    others = replace(WINDOWS, prefix="none. ")
    served, replies, _ = scored(tmp_path, [WINDOWS, others, GAPS], concurrency=3)
    assert served.peak == 3
    assert replies[0].logprobs == (((-3.0,), (-4.0, -3.0)),) * 30
    assert replies[1].logprobs == replies[0].logprobs
    assert replies[2].logprobs == (((-0.5, -1.5),) * 2,) * 20
    assert len(served.answered) == 60 + 60 + 20
    assert replies[0].usage.input_tokens == 30 * (5 + 6)


@pytest.mark.parametrize("request_", [WINDOWS, GAPS], ids=["logprobs", "fill"])
def test_scoring_uses_a_server_that_takes_few_requests_at_a_time(tmp_path, request_):
    served, (reply,), _ = scored(tmp_path, [request_], most=4, concurrency=4)
    assert not isinstance(reply, Exception)
    assert len(served.answered) == served.number  # none was refused
    (tmp_path / "auto").mkdir()
    served, (reply,), _ = scored(tmp_path / "auto", [request_], most=16, retries=50)
    assert not isinstance(reply, Exception)


@pytest.mark.parametrize("request_", [WINDOWS, GAPS], ids=["logprobs", "fill"])
def test_part_of_a_scoring_request_that_fails_is_asked_again_alone(tmp_path, request_):
    failing = {3, 7, 8}
    served, (reply,), gate = scored(
        tmp_path, [request_], fault=lambda n: error(503) if n in failing else None, concurrency=2, retries=3
    )
    assert not isinstance(reply, Exception)
    assert served.number == len(served.answered) + 3
    assert len(served.answered) == len(set(served.answered))
    (total,) = gate._log.totals()
    assert (total.input_tokens, total.failed) == (reply.usage.input_tokens, 0)


@pytest.mark.parametrize("request_", [WINDOWS, GAPS], ids=["logprobs", "fill"])
def test_scoring_request_that_fails_has_paid_for_what_was_answered_and_asks_no_more(tmp_path, request_):
    served, (failed,), gate = scored(
        tmp_path, [request_], fault=lambda n: error(400, "no") if n == 6 else None, concurrency=2, **PRICED
    )
    assert isinstance(failed, LLMError) and "no" in str(failed)
    assert len(served.answered) < 10
    (total,) = gate._log.totals()
    assert total.calls - total.failed == len(served.answered)
    assert gate._log.spent() == pytest.approx(gate._caller._budget.spent) == pytest.approx(total.usd)
    assert total.usd == pytest.approx(sum(len(prompt.split(" ")) for prompt in served.answered) * 0.01)
    again, (reply,), _ = scored(tmp_path, [request_], concurrency=2)
    assert not isinstance(reply, Exception)
    assert not set(again.answered) & set(served.answered)  # what was answered is not asked again


def test_spending_limit_stops_a_scoring_request_between_its_parts(tmp_path):
    served, (stopped,), gate = scored(tmp_path, [WINDOWS], limit=0.55, concurrency=1, **PRICED)
    assert isinstance(stopped, BudgetExceeded)
    assert 10 <= len(served.answered) <= 11
    assert gate._log.spent() == pytest.approx(gate._caller._budget.spent)


def test_answer_to_a_whole_scoring_request_in_the_cache_is_used(tmp_path):
    request = LogprobRequest(("a", "b"), (" c",))
    _, (reply,), gate = scored(tmp_path, [request])
    (tmp_path / "older").mkdir()
    store = AnswerCache(tmp_path / "older" / "calls.sqlite")
    store.put({gate._keyed("logprobs", request)[1]: reply}, "m")  # as an earlier version kept it
    served, (again,), _ = scored(tmp_path / "older", [request])
    assert again.logprobs == reply.logprobs and not served.number


def test_plan_counts_the_calls_that_scoring_makes(tmp_path):
    for singly, calls in ((False, 2), (True, 80)):
        counter = Counter(True, 100, singly)
        asyncio.run(counter.logprobs(WINDOWS))
        asyncio.run(counter.fill(GAPS))
        assert counter.calls == calls
    served, _, _ = scored(tmp_path, [WINDOWS, GAPS])
    assert served.number == 80


# --- scripted ---


def test_scripted_model_answers_the_first_rule_that_matches(tmp_path):
    rules = [{"match": r"\bwhale", "reply": "sea"}, {"match": "wh", "reply": "question"}]
    gate = gateway(tmp_path, Scripted(model="m", rules=rules, reply="else"))
    replies = ask(gate, Request.of("a whale"), Request.of("why"), Request.of("so"))
    assert [(reply.text, reply.usage.usd) for reply in replies] == [("sea", 0.0), ("question", 0.0), ("else", 0.0)]


def test_scripted_model_without_a_fitting_rule_fails(tmp_path):
    (failed,) = ask(gateway(tmp_path, Scripted(model="m", rules=[{"match": "a", "reply": "b"}])), Request.of("x"))
    assert isinstance(failed, LLMError) and "no rule matches the prompt 'x'" in str(failed)


def test_expression_that_cannot_be_read_is_a_mistake_of_the_spec():
    with pytest.raises(ValidationError, match="rules.0.match"):
        Scripted(model="m", rules=[{"match": "(", "reply": "b"}])


# --- replay ---


def test_recording_of_a_run_plays_back_what_was_said(tmp_path, monkeypatch):
    requests = [Request.of("one"), Request.of("one", repeat=1), Request.of("two\u2028lines", temperature=0.7)]
    with fake_server(lambda messages: messages[-1]["content"] + "\u2028é") as server:
        server.faults = [content("ye", logprobs=TOP)]
        gate = gateway(tmp_path, direct(server), concurrency=1)
        said = ask(gate, *requests, requests[0])
        server.always = error(400)
        ask(gate, Request.of("never answered"))
    path = tmp_path / "said.jsonl"
    read, passes = CallLedger.calls, []
    monkeypatch.setattr(CallLedger, "calls", lambda ledger: passes.append(ledger) or read(ledger))
    assert export_replies([gate._log], gate._calls, "judge", path) == 3 and len(passes) == 1
    assert export_replies([gate._log], gate._calls, "explainer", tmp_path / "none.jsonl") == 0
    assert not (tmp_path / "none.jsonl").exists()
    again = ask(gateway(tmp_path, Replay(model=str(path)), identity="replay"), *requests, requests[0])
    assert [(reply.text, reply.logprobs) for reply in again] == [(reply.text, reply.logprobs) for reply in said]
    assert again[0].logprobs is not None


def test_request_that_was_not_recorded_fails_and_says_which(tmp_path):
    path = tmp_path / "said.jsonl"
    path.write_text('{"key": "0", "text": "x"}\n')
    (failed,) = ask(gateway(tmp_path, Replay(model=str(path))), Request.of("a" * 100))
    assert isinstance(failed, LLMError) and not failed.retryable
    line = json.loads((tmp_path / "calls.jsonl").read_text())
    assert line["request"][:12] in str(failed) and "'" + "a" * 60 + "'" in str(failed)


def test_recording_counts_by_its_content(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, text in zip(paths, ("x", "x", "y"), strict=True):
        path.write_text(f'{{"key": "0", "text": "{text}"}}\n')
    a, b, c = (Replay(model=str(path)).fingerprint() for path in paths)
    assert a == b != c


@pytest.mark.parametrize("text", ["{", '{"key": 1}', "[]", '{"key": "0", "text": "x", "logprobs": [{"token": "x"}]}'])
def test_recording_that_cannot_be_read_says_so(tmp_path, text):
    (tmp_path / "said.jsonl").write_text(text)
    with pytest.raises(InputError, match="every line must be"):
        Replay(model=str(tmp_path / "said.jsonl")).check()
    with pytest.raises(InputError, match="cannot be read"):
        Replay(model=str(tmp_path / "nothing")).check()
