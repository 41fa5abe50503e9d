"""Each way to reach a language model speaks its server's language, and plays back or makes up nothing unasked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from fake_server import body, content, error, fake_server
from pydantic import ValidationError
from saeval_plugins.llms import LiteLLM, OpenAICompatible, Replay, Scripted
from test_gateway import ask, direct, gateway, through_litellm

from saeval import InputError, LLMError, LogprobRequest, Message, Request, TokenLogprobs
from saeval.calls import export_replay


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("saeval.gateway._FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


@pytest.fixture(params=[direct, pytest.param(through_litellm, marks=pytest.mark.slow)])
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


def test_answer_cut_at_the_limit_says_so_and_an_empty_one_is_not_asked_for_again(tmp_path, client):
    with fake_server() as server:
        server.always = content("a long sto", "length")
        gate = gateway(tmp_path, client(server))
        assert ask(gate, Request.of("x"))[0].finish_reason == "length"
        server.always, server.calls = content("", "length"), []  # a thinking model that never came to its answer
        assert isinstance(ask(gate, Request.of("y"))[0], LLMError)
        assert len(server.calls) == 1


def test_server_without_a_key_gets_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "mine-123456")
    with fake_server() as server:
        ask(gateway(tmp_path, direct(server, api_key_env="MINE")), Request.of("x"))
        ask(gateway(tmp_path, direct(server, api_key_env="NOT_SET")), Request.of("y"))
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
    with pytest.raises(InputError, match="put keys into the environment"):
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
    monkeypatch.setattr("saeval.releases.version", lambda _: release)
    monkeypatch.delitem(sys.modules, "litellm", raising=False)
    llm = LiteLLM(model="openai/x")
    with pytest.raises(InputError, match=f"litellm {release} is a malicious release"):
        llm.check()
    with pytest.raises(InputError, match="malicious"):
        asyncio.run(llm.complete(Request.of("x", max_tokens=1)))
    assert "litellm" not in sys.modules


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


def test_server_that_echoes_nothing_is_told_from_one_that_is_busy(tmp_path):
    request = LogprobRequest(("is it blue?",), (" yes",))
    with fake_server() as server:
        server.faults = [body('{"error": {"message": "overloaded"}}'), error(503)]
        assert score(tmp_path, server, request) == (((-3.0,),),)
        server.always, server.calls = body('{"choices": [{"text": "x", "logprobs": null}]}'), []
        with pytest.raises(LLMError, match="set scores: false"):
            score(tmp_path, server, request, cache=False)
        assert len(server.calls) == 1


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


def test_recording_of_a_run_plays_back_what_was_said(tmp_path):
    requests = [Request.of("one"), Request.of("one", repeat=1), Request.of("two\u2028lines", temperature=0.7)]
    with fake_server(lambda messages: messages[-1]["content"] + "\u2028é") as server:
        server.faults = [content("ye", logprobs=TOP)]
        gate = gateway(tmp_path, direct(server), concurrency=1)
        said = ask(gate, *requests, requests[0])
        server.always = error(400)
        ask(gate, Request.of("never answered"))
    path = tmp_path / "said.jsonl"
    assert export_replay(gate._log, gate._calls, "judge", path) == 3
    with pytest.raises(InputError, match="'explainer' was given no reply"):
        export_replay(gate._log, gate._calls, "explainer", path)
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
    with pytest.raises(InputError, match="every line should be"):
        Replay(model=str(tmp_path / "said.jsonl")).check()
    with pytest.raises(InputError, match="cannot be read"):
        Replay(model=str(tmp_path / "nothing")).check()
