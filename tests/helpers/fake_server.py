"""A real OpenAI-compatible HTTP server on loopback, which counts its calls and can be told to misbehave."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from aiohttp import web

from saeval.llm.first_calls import PROBE

Fault = Callable[[web.Request], Any]


@dataclass
class FakeServer:
    """What the server answers, and what it was asked.

    Attributes:
        reply: Makes the answer from the messages of a request; may be a coroutine function.
        faults: Responses to send first, instead of answers, one a call.
        always: A fault for every call.
        calls: Bodies of all requests.
        headers: Headers of all requests.
        answered: Number of real answers sent.
        most_in_flight: Most requests that were under way at once.
        most_by_model: The same by the model that was asked.
        delay: Seconds each answer takes.
        chooses: Chooses a fault by the body of the request and the number of the call, from 1; None for an answer.
        tokens: Counts the tokens of a text, for usage that depends on it; without it, every call takes the same.
        batches: What was sent to the batch API, and its state.
        looks: Times a batch is looked at before it is over.
        look_fault: A fault for those looks.
        ends_as: How batches end.
        lost: Requests of a batch that get no answer, from its end.
        files: Files that were uploaded, or hold the answers of a batch.
        probes: Requests that only try whether the model answers; no other count or fault knows of them.
        probe_fault: A fault for those.
    """

    reply: Callable[[list[dict[str, str]]], str]
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: int = 0
    in_flight: Counter[str] = field(default_factory=Counter)
    most_by_model: Counter[str] = field(default_factory=Counter)
    most_in_flight: int = 0
    delay: float = 0.0
    url: str = ""
    chooses: Callable[[dict[str, Any], int], Fault | None] = lambda body, number: None
    tokens: Callable[[str], int] | None = None
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks: int = 1
    look_fault: Fault | None = None
    ends_as: str = "completed"
    lost: int = 0
    files: dict[str, str] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    probe_fault: Fault | None = None

    def _probed(self, body: dict[str, Any], request: web.Request) -> web.StreamResponse | None:
        """Answer a request that only tries whether the model answers; it takes nothing."""
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if asked not in (PROBE, "A first word"):
            return None
        self.probes.append(body)
        if self.probe_fault is not None:
            return self.probe_fault(request)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": "ok"},
            "finish_reason": "stop",
        }
        if "prompt" in body:
            logprobs = {"tokens": ["A", " first", " word", "."], "token_logprobs": [None, -1.0, -1.0, -1.0]}
            choice = {"text": "", "logprobs": logprobs}
        usage = {"prompt_tokens": 0, "completion_tokens": int("prompt" in body), "total_tokens": 0}
        head = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"]}
        return web.json_response({**head, "choices": [choice], "usage": usage})

    def _fault(self, body: dict[str, Any]) -> Fault | None:
        return self.faults.pop(0) if self.faults else self.always or self.chooses(body, len(self.calls))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer /chat/completions."""
        body = await request.json()
        if (probed := self._probed(body, request)) is not None:
            return probed
        self.calls.append(body)
        self.headers.append(dict(request.headers))
        fault = self._fault(body)
        if fault is not None:
            made = fault(request)
            return await made if asyncio.iscoroutine(made) else made
        model = body["model"]
        self.in_flight[model] += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight.total())
        self.most_by_model[model] = max(self.most_by_model[model], self.in_flight[model])
        try:
            await asyncio.sleep(self.delay)
            text = self.reply(body["messages"])
            text = await text if asyncio.iscoroutine(text) else text
        finally:
            self.in_flight[model] -= 1
        self.answered += 1
        return web.json_response(self._completion(body, text))

    def _completion(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        taken, given = (100, 10) if self.tokens is None else (self._prompt_tokens(body), self.tokens(text))
        return {
            "id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": taken, "completion_tokens": given, "total_tokens": taken + given,
                      "prompt_tokens_details": {"cached_tokens": min(40, taken)}},
        }  # fmt: skip

    def _prompt_tokens(self, body: dict[str, Any]) -> int:
        assert self.tokens is not None
        return sum(4 + self.tokens(message["content"]) for message in body["messages"])

    async def upload(self, request: web.Request) -> web.StreamResponse:
        """Take a file, as /files does."""
        form = await request.post()
        sent = form["file"]
        assert isinstance(sent, web.FileField)
        name = f"file-{len(self.files)}"
        self.files[name] = sent.file.read().decode()
        return web.json_response(
            {
                "id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 1, "filename": "x",
                "purpose": "batch", "status": "processed",
            }
        )  # fmt: skip

    async def download(self, request: web.Request) -> web.StreamResponse:
        """Give a file."""
        if (name := request.match_info["file"]) not in self.files:
            return error(404, f"no such file: {name}")(request)
        return web.Response(text=self.files[name], content_type="application/octet-stream")

    async def begin_batch(self, request: web.Request) -> web.StreamResponse:
        """Take a batch, as /batches does; each of its requests is answered as a call would be, or fails as it would."""
        asked = [json.loads(line) for line in self.files[(await request.json())["input_file_id"]].splitlines()]
        good, bad = [], []
        for line in asked[: len(asked) - self.lost]:
            body = line["body"]
            self.calls.append(body)
            if (fault := self._fault(body)) is not None:
                made = fault(request)
                response = {"status_code": made.status, "body": json.loads(made.text)}
            else:
                self.answered += 1
                response = {"status_code": 200, "body": self._completion(body, self.reply(body["messages"]))}
            into = good if fault is None else bad
            into.append(json.dumps({"custom_id": line["custom_id"], "response": response, "error": None}))
        name = f"batch_{len(self.batches)}"
        self.files |= {f"{name}-good": "\n".join(reversed(good)), f"{name}-bad": "\n".join(bad)}
        self.batches[name] = {"asked": asked, "looks": 0, "bad": bool(bad)}
        return web.json_response(self._batch(name))

    async def look(self, request: web.Request) -> web.StreamResponse:
        """Return the progress of a batch."""
        if (name := request.match_info["batch"]) not in self.batches:
            return error(404, f"no batch found with id {name}")(request)
        if self.look_fault is not None:
            return self.look_fault(request)
        self.batches[name]["looks"] += 1
        return web.json_response(self._batch(name))

    def _batch(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        over, n = batch["looks"] >= self.looks, len(batch["asked"])
        failed = over and self.ends_as == "failed"  # a batch that fails was never begun
        files = {"output_file_id": f"{name}-good", "error_file_id": f"{name}-bad" if batch["bad"] else None}
        errors = {"object": "list", "data": [{"code": "x", "message": "no such file", "line": None, "param": None}]}
        return {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "x", "created_at": 1,
            "completion_window": "24h", "status": self.ends_as if over else "in_progress",
            "request_counts": {"total": n, "completed": n if over else n // 2, "failed": 0},
            "errors": errors if failed else None, **(files if over and not failed else {}),
        }  # fmt: skip

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Answer /completions with echo, as vLLM does: each word is a token of log-probability -(its length).

        BOS and the generated token are listed too, and BOS takes up room in the text offsets.
        """
        body = await request.json()
        if (probed := self._probed(body, request)) is not None:
            return probed
        self.calls.append(body)
        fault = self._fault(body)
        if fault is not None:
            made = fault(request)
            return await made if asyncio.iscoroutine(made) else made
        first, *others = body["prompt"].split(" ")
        tokens = ["<|begin_of_text|>", first, *(f" {word}" for word in others), " and"]
        logprobs = {
            "tokens": tokens,
            "token_logprobs": [None, *(-float(len(token.strip())) for token in tokens[1:])],
            "text_offset": [0, *accumulate(map(len, tokens[:-1]))],
        }
        usage = {"prompt_tokens": len(tokens) - 1, "completion_tokens": 1}
        return web.json_response({"choices": [{"text": "", "logprobs": logprobs}], "usage": usage})


def error(status: int, message: str = "no", code: str | None = None, headers: dict[str, str] | None = None) -> Fault:
    """Return a fault that answers with an HTTP error."""
    return lambda _: web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


def body(text: str) -> Fault:
    """Return a fault that answers 200 with this body."""
    return lambda _: web.Response(text=text, content_type="application/json")


def content(text: str | None, finish_reason: str = "stop", logprobs: Any = None, **message: Any) -> Fault:
    """Return a fault that answers 200 with this content, and bills for it."""
    choice = {
        "index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason,
        "logprobs": logprobs,
    }  # fmt: skip
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage}
    return body(json.dumps(whole))


def hang(request: web.Request) -> Any:
    """Never answer."""

    async def wait() -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    return wait()


def drop(request: web.Request) -> web.Response:
    """Close the connection in the middle of the answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def drip(request: web.Request) -> Any:
    """Send an answer's first bytes, one every now and then, and never its end."""

    async def send() -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for byte in json.dumps({"choices": []}) * 1000:
            await response.write(byte.encode())
            await asyncio.sleep(0.02)
        return response

    return send()


def pieces(text: str) -> int:
    """Count the tokens of a text by a simple rule: pieces of words of up to six letters, digits, marks, and the spaces
    before digits; it comes to what GPT-4o's tokenizer makes of the prompts here, within a few percent."""
    return len(re.findall(r"[^\W\d]{1,6}|\d|[^\w\s]|\s(?=\d)", text))


@contextmanager
def fake_server(reply: Callable[[list[dict[str, str]]], str] | str = "fine") -> Iterator[FakeServer]:
    """Run a server in a thread for as long as the block lasts."""
    server = FakeServer(reply if callable(reply) else lambda _: reply)
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", server.chat)
        app.router.add_post("/v1/messages", server.chat)  # Anthropic's, for errors; answers are in OpenAI's format
        app.router.add_post("/v1/completions", server.completions)
        app.router.add_post("/v1/files", server.upload)
        app.router.add_get("/v1/files/{file}/content", server.download)
        app.router.add_post("/v1/batches", server.begin_batch)
        app.router.add_get("/v1/batches/{batch}", server.look)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    async def stop() -> None:
        others = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=1)
        loop.stop()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop)
        thread.join(5)
