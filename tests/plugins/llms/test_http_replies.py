"""Complete answers are read whatever success status or stream they come with, and their reasoning is no answer."""

from __future__ import annotations

import json
import socketserver
import threading

import pytest
from aiohttp import web
from fake_server import error, fake_server
from gateways import BOTH_DOORS, ask, direct, gateway, with_key_and_short_waits
from saeval_plugins.llms.openai_compatible import OpenAICompatible

from saeval import LLMError
from saeval.plugin import Refused, Request


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    with_key_and_short_waits(monkeypatch)


@pytest.fixture(params=BOTH_DOORS)
def client(request):
    return request.param


# --- status ---


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 207, 226])
def test_every_success_status_with_an_answer_is_one(tmp_path, client, status):
    choice = {"index": 0, "message": {"role": "assistant", "content": "made"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    with fake_server() as server:
        server.always = lambda _: web.json_response(whole, status=status)
        (reply,) = ask(gateway(tmp_path, client(server)), Request.of("x"))
        assert (reply.text, reply.usage.input_tokens, len(server.calls)) == ("made", 7, 1)


@pytest.mark.parametrize(
    "fault",
    [
        lambda _: web.Response(status=204),
        lambda _: web.json_response({"queued": True}, status=202),
        error(201, "overloaded"),
    ],
)
def test_success_status_without_an_answer_is_tried_again(tmp_path, client, fault):
    with fake_server("fine") as server:
        server.faults = [fault]
        gate = gateway(tmp_path, client(server), retries=1)
        assert ask(gate, Request.of("once"))[0].text == "fine"
        server.always = fault
        (failed,) = ask(gate, Request.of("always"))
        assert isinstance(failed, LLMError) and "status 200" not in str(failed)
        assert len(server.calls) == 4


# --- streams ---


def streamed(*deltas, end="\n\n"):
    """Return a response that streams these deltas, unescaped."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    chunks = [
        {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [c]} for c in choices
    ]
    lines = [*(json.dumps(chunk, ensure_ascii=False) for chunk in chunks), "[DONE]"]
    text = "".join(f"data: {line}{end}" for line in lines)
    return lambda _: web.Response(body=text.encode(), headers={"Content-Type": "text/event-stream"})


def reply_to(folder, fault):
    with fake_server() as server:
        server.always = fault
        (reply,) = ask(gateway(folder, direct(server), retries=0), Request.of("x"))
    return reply


@pytest.mark.parametrize(
    ("mark", "shown"),
    [
        ("\u2028", "\u2028"),
        ("\u2029", "\u2029"),
        ("\u00a0", "\u00a0"),
        ("\x85", "\ufffd"),
    ],  # the gateway marks control characters
)
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_line_separators_of_unicode_end_no_event(tmp_path, mark, shown, end):
    reply = reply_to(tmp_path, streamed({"content": f"one{mark}two"}, {"content": f"{mark}three"}, end=end))
    assert getattr(reply, "text", reply) == f"one{shown}two{shown}three"


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "reasoning", "text": "[0]"}, {"type": "thinking", "thinking": [{"type": "text", "text": "[0]"}]},
        {"type": "text", "text": "[0]", "thought": True}, {"type": "thinking", "thinking": "[0]"},
    ],
)  # fmt: skip
def test_reasoning_in_parts_of_a_stream_is_no_answer(tmp_path, thought):
    deltas = {"content": [thought]}, {"content": "[1"}, {"content": [{"type": "text", "text": ", 1"}]}, {"content": "]"}
    reply = reply_to(tmp_path, streamed({"role": "assistant", "content": None}, *deltas))
    assert (reply.text, reply.reasoning) == ("[1, 1]", "[0]")
    only = reply_to(tmp_path / "only", streamed({"content": [thought]}))
    assert isinstance(only, LLMError) and "reasoning" in str(only)


def test_parts_of_a_stream_are_read_as_those_of_a_whole_reply(tmp_path):
    parts = [
        {"type": "tool_use", "text": "no"},
        {"type": "text", "text": "a"},
        "b",
        {"type": "output_text", "text": "c"},
    ]
    assert reply_to(tmp_path / "list", streamed({"content": parts})).text == "abc"
    assert reply_to(tmp_path / "part", streamed({"content": parts[1]}, {"content": "d"})).text == "ad"
    declined = reply_to(tmp_path / "no", streamed({"content": [{"type": "refusal", "refusal": "I would rather not"}]}))
    assert isinstance(declined, Refused) and "rather not" in str(declined)


# --- proxies ---


class Refusing(socketserver.BaseRequestHandler):
    """A proxy that asks for a password."""

    def handle(self):
        self.request.recv(65536)
        self.request.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_asks_for_a_password_is_named_as_the_cause(scheme, tmp_path, monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_address[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        llm = OpenAICompatible(model="m", api_base=f"{scheme}://127.0.0.1:1/v1")
        (problem,) = ask(gateway(tmp_path, llm, retries=3), Request.of("x"))
        proxy.shutdown()
    assert "the proxy for" in str(problem) and "status 407" in str(problem)
    assert "put user and password into HTTP_PROXY" in str(problem)
    assert problem.lasting and not problem.retryable


def test_unreachable_proxy_is_named_as_the_cause_without_its_password(tmp_path, monkeypatch):
    with fake_server("fine") as server:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, "http://me:hunter2@127.0.0.1:1")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        (problem,) = ask(gateway(tmp_path / "a", direct(server), retries=0), Request.of("x"))
        assert isinstance(problem, LLMError) and problem.retryable
        assert "cannot reach the proxy" in str(problem) and "HTTP_PROXY" in str(problem)
        assert not [part for part in ("hunter2", "me:", "start the server") if part in str(problem)]
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")  # as the message advises
        (reply,) = ask(gateway(tmp_path / "b", direct(server), retries=0), Request.of("x"))
        assert reply.text == "fine"
