"""Errors of providers are read alike from every body that they come in: cause, refusal, wait, and what they cost."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiohttp import web
from fake_server import fake_server
from gateways import BOTH_DOORS, ask, direct, gateway, with_key_and_short_waits
from saeval_plugins.llms import LiteLLM, OpenAICompatible

from saeval import LLMError
from saeval.plugin import Message, Refused, Request

TEMPLATE = "Developer instruction is not enabled for models/gemma-3-27b-it"
FLAGGED = {"reasons": ["violence"], "flagged_input": "the knife …", "provider_name": "OpenAI", "model_slug": "m"}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    with_key_and_short_waits(monkeypatch)


def sent(status, data, mark=b""):
    return lambda _: web.Response(body=mark + json.dumps(data).encode(), status=status, content_type="application/json")


def from_provider(raw):
    """An error as OpenRouter passes it on."""
    metadata = {"raw": raw, "provider_name": "Google AI Studio"}
    return {"error": {"message": "Provider returned error", "code": 400, "metadata": metadata}}


async def error_of(llm):
    """The error of one call, without retries."""
    try:
        with pytest.raises(LLMError) as raised:
            await llm.complete(Request.of("hi", max_tokens=9, temperature=0.0))
        return raised.value
    finally:
        await llm.aclose()


def failed(client, fault):
    """The error of a call that a server answers with a fault."""
    with fake_server() as server:
        server.always = fault
        return asyncio.run(error_of(client(server)))


CAUSES = {
    "Gemini's list": ([{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}], ": API key not valid."),
    "OpenRouter's provider": (from_provider(json.dumps({"error": {"message": TEMPLATE}})), f"Provider returned error: {TEMPLATE}"),
    "provider in a list": (from_provider(json.dumps([{"error": {"message": TEMPLATE}}])), f"Provider returned error: {TEMPLATE}"),
    "provider in words": (from_provider("upstream is gone"), "Provider returned error: upstream is gone"),
    "provider in an object": (from_provider({"message": "no such field"}), "Provider returned error: no such field"),
}  # fmt: skip


@pytest.mark.parametrize("client", BOTH_DOORS)
@pytest.mark.parametrize(("data", "cause"), CAUSES.values(), ids=CAUSES.keys())
def test_message_names_the_cause_wherever_it_is_in_the_body(client, data, cause):
    error = failed(client, sent(400, data))
    assert str(error).endswith(cause) and "{" not in str(error)
    assert not (error.retryable or error.lasting or isinstance(error, Refused))


def test_error_without_a_body_is_named_by_its_status():
    assert str(failed(direct, lambda _: web.Response(status=503))) == "m: status 503: Service Unavailable"


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_system_turn_that_a_routers_provider_refuses_is_moved(tmp_path, client):
    with fake_server("fine") as server:
        server.faults = [sent(400, from_provider(json.dumps({"error": {"message": TEMPLATE}})))]
        turns = (Message("system", "be brief"), Message("user", "one"))
        assert ask(gateway(tmp_path, client(server)), Request(turns))[0].text == "fine"
        assert [turn["role"] for turn in server.calls[-1]["messages"]] == ["user"]


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_prompt_that_a_routers_moderation_flags_is_a_refusal_and_a_missing_permission_is_lasting(client):
    flagged = {"error": {"message": "your input was flagged", "code": 403, "metadata": FLAGGED}}
    error = failed(client, sent(403, flagged))
    assert isinstance(error, Refused) and not error.lasting
    error = failed(client, sent(403, {"error": {"message": "no access", "code": 403, "metadata": {}}}))
    assert error.lasting and not isinstance(error, Refused)


@pytest.mark.parametrize("client", BOTH_DOORS)
@pytest.mark.parametrize("fields", [{"type": "insufficient_quota", "code": None}, {"code": "insufficient_quota"}])
def test_account_without_credit_is_not_waited_for(client, fields):
    error = failed(client, sent(429, {"error": {"message": "check your plan", **fields}}))
    assert error.lasting and not (error.retryable or error.busy)


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_request_that_is_too_large_is_not_waited_for(client):
    message = "Request too large on tokens per minute (TPM): Limit 6000, Requested 7000"
    error = failed(client, sent(413, {"error": {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}}))
    assert not (error.lasting or error.retryable or error.busy)


def of_anthropic(server):
    return LiteLLM(model="anthropic/claude-haiku", api_base=server.url.removesuffix("/v1"))


@pytest.mark.slow
def test_overload_of_anthropic_is_waited_for_through_litellm(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "nobodys-key-9x")
    overload = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    error = failed(of_anthropic, sent(529, overload))
    assert error.busy and error.retryable and str(error).endswith("Error: Overloaded")


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_byte_order_mark_hides_no_filter(client):
    data = {"error": {"message": "filtered", "code": "content_filter"}}
    assert isinstance(failed(client, sent(400, data, b"\xef\xbb\xbf")), Refused)


INSIDE = {
    "key": ({"message": "user not found", "code": 401}, {"lasting"}), "credit": ({"message": "no credit", "code": "402"}, {"lasting"}),
    "quota": ({"message": "check your plan", "code": "insufficient_quota"}, {"lasting"}),
    "rate limit": ({"message": "slow down", "code": 429}, {"retryable", "busy"}),
    "wait": ({"message": "loading, try again in 7s"}, {"retryable", "busy"}),
    "provider died": ({"message": "died", "code": 502}, {"retryable"}), "no code": ("unexpected endpoint", {"retryable"}),
}  # fmt: skip


@pytest.mark.parametrize("client", BOTH_DOORS)
@pytest.mark.parametrize(("error", "traits"), INSIDE.values(), ids=INSIDE.keys())
def test_error_inside_a_successful_response_counts_as_its_code_says(client, error, traits):
    found = failed(client, sent(200, {"error": error}))
    assert {trait for trait in ("lasting", "retryable", "busy") if getattr(found, trait)} == traits
    assert found.usage is None and not isinstance(found, Refused)


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_filter_inside_a_successful_response_is_a_refusal(client):
    for error in ({"message": "no", "code": "content_filter"}, {"message": "no", "code": 403, "metadata": FLAGGED}):
        assert isinstance(failed(client, sent(200, {"error": error})), Refused)
    cut = {"index": 0, "message": {"role": "assistant", "content": "[1"}, "finish_reason": "error", "error": error}
    usage = {"prompt_tokens": 30, "completion_tokens": 2}
    found = failed(client, sent(200, {"id": "x", "created": 1, "model": "m", "choices": [cut], "usage": usage}))
    assert isinstance(found, Refused) and found.usage.output_tokens == 2


@pytest.mark.parametrize("client", BOTH_DOORS)
def test_tokens_that_a_response_without_an_answer_took_are_billed(tmp_path, client):
    usage = {"prompt_tokens": 500, "completion_tokens": 900, "total_tokens": 1400, "cost": 0.02}
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": usage}
    with fake_server("fine") as server:
        server.faults = [
            sent(200, {**head, "choices": []}),
            sent(200, {**head, "error": {"code": 502, "message": "died"}}),
        ]
        reply = ask(
            gateway(tmp_path, client(server), usd_per_million_input=10, usd_per_million_output=10), Request.of("hi")
        )[0]
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (2 * 500 + 100, 2 * 900 + 10)
    assert reply.usage.usd == pytest.approx(2 * 0.02 + 110 * 10 / 1e6)


@contextmanager
def raw_server(answer):
    """A server that writes these bytes and closes the connection."""

    class Writing(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(answer)
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Writing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def written(answer):
    """Address of such a server, and the error of a call to it."""
    with raw_server(answer) as url:
        return url, asyncio.run(error_of(OpenAICompatible(model="m", api_base=url)))


def test_status_counts_although_the_error_s_body_breaks_off():
    url, error = written(b'HTTP/1.1 401 Unauthorized\r\nContent-Length: 500\r\n\r\n{"error"')
    assert error.lasting and str(error) == "m: status 401: Unauthorized"
    url, error = written(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices"')
    assert error.retryable and str(error) == f"m: the connection to {url} broke off (ClientPayloadError)"


REDIRECTS = {
    "https://lab.test/llm/v1/chat/completions": "set api_base: https://lab.test/llm/v1",
    "https://lab.test/login": "to use that address, set api_base", "/v1/": "correct api_base", "": "correct api_base",
}  # fmt: skip


@pytest.mark.parametrize(("place", "remedy"), REDIRECTS.items())
def test_redirect_names_the_address_to_set(place, remedy):
    _, error = written(f"HTTP/1.1 308 Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode())
    assert error.lasting and str(error).endswith(f"redirects are not followed; {remedy}") and "to ," not in str(error)
