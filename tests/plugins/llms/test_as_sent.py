"""What servers send is read alike through both doors, and an answer without a reason that makes it whole is never one."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from saeval_plugins.llms.litellm import LiteLLM
from saeval_plugins.llms.openai_compatible import OpenAICompatible

from saeval import LLMError
from saeval.plugin import Refused, Request

MISSING = "missing"
THOUGHT = {"text": "perhaps [0]", "thought": True}
TEXT = {"type": "text", "text": "[1]"}


class Answering(BaseHTTPRequestHandler):
    """Answers every request with what the server holds."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        data = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def answering():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for provider in ("OPENAI", "ANTHROPIC", "GEMINI", "COHERE"):
        monkeypatch.setenv(f"{provider}_API_KEY", "nobodys-key-9x")


def chat(content="[1]", reason="stop", message=None, **choice):
    said = {"role": "assistant", "content": content} if message is None else message
    finish = {} if reason is MISSING else {"finish_reason": reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    whole = {"index": 0, "message": said, **finish, **choice}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [whole], "usage": usage}


def asked(llm):
    """What a call gives: finish reason, answer and thoughts; or the kind of error, and whether to try again."""

    async def ask():
        try:
            reply = await llm.complete(Request.of("hi", max_tokens=9, temperature=0.0))
            return reply.finish_reason, reply.text, reply.reasoning
        except LLMError as error:
            return ("refused" if isinstance(error, Refused) else "failed"), error.retryable
        finally:
            await llm.aclose()

    return asyncio.run(ask())


WHOLE, FAILED, REFUSED = ("stop", "[1]", ""), ("failed", True), ("refused", False)
SENT = {
    "no reason": (chat(reason=None), FAILED), "reason missing": (chat(reason=MISSING), FAILED),
    "empty reason": (chat(reason=""), FAILED), "number as reason": (chat(reason=0), FAILED),
    "unknown reason": (chat(reason="news"), FAILED), "tool call": (chat(None, "tool_calls"), FAILED),
    "sensitive": (chat(reason="sensitive"), REFUSED), "reason in a mapping": (chat(reason={"type": "stop", "matched": 2}), WHOLE),
    "cut, in a mapping": (chat(reason={"type": "length", "length": 9}), ("length", "[1]", "")),
    "provider was cut": (chat(native_finish_reason="MAX_TOKENS"), ("length", "[1]", "")),
    "provider has a word of its own": (chat(native_finish_reason="fin"), WHOLE),
    "error beside the answer": (chat(error={"code": 502, "message": "died"}), FAILED),
    "error with status 200": ({**chat(), "error": "overloaded"}, FAILED),
    "parts": (chat([TEXT]), WHOLE), "strings": (chat(["[", "1]"]), WHOLE), "one part": (chat(TEXT), WHOLE),
    "thinking": (chat([{"type": "thinking", "thinking": [{"type": "text", "text": "perhaps [0]"}]}, TEXT]), ("stop", "[1]", "perhaps [0]")),
    "flagged thought": (chat([THOUGHT, TEXT]), ("stop", "[1]", "perhaps [0]")),
    "reasoning part": (chat([{"type": "reasoning", "text": "perhaps [0]"}, TEXT]), ("stop", "[1]", "perhaps [0]")),
    "refusal part": (chat([{"type": "refusal", "refusal": "I cannot"}]), REFUSED),
    "refusal": (chat(message={"role": "assistant", "content": None, "refusal": "no"}), REFUSED),
    "image": (chat([{"type": "image_url", "image_url": {"url": "x"}}]), FAILED), "number": (chat(5), FAILED), "null": (chat(None), FAILED),
    "text as message": (chat(message="[1]"), WHOLE),
}  # fmt: skip


def test_both_doors_read_alike_what_servers_send():
    with answering() as (server, url):
        for name, (sent, meaning) in SENT.items():
            server.answer = sent
            doors = (OpenAICompatible(model="m", api_base=url), LiteLLM(model="openai/m", api_base=url))
            assert [asked(door) for door in doors] == [meaning, meaning], name


def anthropic(reason):
    named = {} if reason is MISSING else {"stop_reason": reason}
    content = [{"type": "text", "text": "[1]"}]
    return {"id": "x", "type": "message", "role": "assistant", "model": "c", "content": content, "usage": {"input_tokens": 9, "output_tokens": 5}, **named}  # fmt: skip


def gemini(reason):
    named = {} if reason is MISSING else {"finishReason": reason}
    return {
        "candidates": [{"content": {"parts": [{"text": "[1]"}], "role": "model"}, "index": 0, **named}],
        "usageMetadata": {},
    }


def ollama(reason):
    message = {"role": "assistant", "content": "[1]"}
    return {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": True, "done_reason": reason}


def old_completion(reason):
    choice = {"index": 0, "text": "[1]", "logprobs": None, "finish_reason": reason}
    return {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": {}}


NATIVE = {
    "anthropic/claude-3-haiku-20240307": (anthropic, "end_turn", "max_tokens", [None, MISSING, "pause_turn", "news"]),
    "gemini/gemini-2.0-flash": (gemini, "STOP", "MAX_TOKENS", [None, MISSING, "OTHER", "NEWS"]),
    "ollama_chat/m": (ollama, "stop", "length", [None, "unload"]),
    "text-completion-openai/m": (old_completion, "stop", "length", [None, "news"]),
}


@pytest.mark.parametrize("model", NATIVE)
def test_litellm_makes_no_answer_whole_that_its_provider_does_not_call_so(model):
    make, stop, length, others = NATIVE[model]
    with answering() as (server, url):

        def meaning(reason):
            server.answer = make(reason)
            return asked(LiteLLM(model=model, api_base=url))[0]

        assert [meaning(reason) for reason in (stop, length, *others)] == ["stop", "length", *["failed"] * len(others)]
