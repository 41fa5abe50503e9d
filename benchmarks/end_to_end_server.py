"""A loopback language model that explains by the commonest marked words and judges by them, with 10 % errors.

Started as `python -m benchmarks.end_to_end_server LATENCY FAULTS`: latency in seconds, or `lognormal` (median 1 s,
sigma 0.8); share of judge's calls that fail (status 500 or 429, prose, a list that is too short, JSON that is cut off).
Prints its address, and for each line of its input what it was asked since the last: calls, tokens, latencies.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from hashlib import blake2b
from typing import Any

from aiohttp import web

_SIGMA = 0.8  # of the logarithm of the latency, whose median is 1 s
_ERRORS = 0.1  # share of windows that are judged wrongly
_WORD = re.compile(r"[A-Za-z']+")
_WINDOW = re.compile(r"^(?:Window|Example) \d+:", re.MULTILINE)
_EXPLANATION = re.compile(r"^(?:Latent explanation|Explanation): (.*)$", re.MULTILINE)
_FAULTS = ("500", "429", "prose", "short", "cut")


class Model:
    """Answers by rule, and remembers what it was asked."""

    def __init__(self, latency: str, faults: float) -> None:
        self.latency, self.faults = latency, faults
        self.asked: Counter[bytes] = Counter()
        self.clear()

    def clear(self) -> None:
        """Forget what was counted, but not which questions came before."""
        self.conversations: list[tuple[list[dict[str, str]], str]] = []
        self.busy, self.began, self.ended = 0.0, 0.0, 0.0

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a chat completion, late, and at times badly."""
        body = await request.json()
        messages = body["messages"]
        key = blake2b(json.dumps(messages).encode()).digest()
        self.asked[key] += 1
        key += bytes([self.asked[key] % 256])  # a question that is repeated may fare better
        self.began = self.began or time.monotonic()
        wait = self._wait(key)
        await asyncio.sleep(wait)
        self.busy, self.ended = self.busy + wait, time.monotonic()
        judges = bool(_EXPLANATION.search(messages[-1]["content"]))
        text = _judge(messages) if judges else _explain(messages)
        fault = _uniform(b"fault", key) / self.faults if judges and self.faults else 1.0
        if fault < 1:
            return self._fail(_FAULTS[int(fault * len(_FAULTS))], messages, text)
        return self._reply(messages, text)

    def told(self) -> dict[str, Any]:
        """Return what was counted: calls, prompt and answer tokens (cl100k), and how long calls were in flight."""
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it would ask the network for prices
        from litellm.litellm_core_utils.default_encoding import encoding

        def tokens(text: str) -> int:
            return len(encoding.encode(text, disallowed_special=()))

        prompt = sum(3 + sum(4 + tokens(m["content"]) for m in messages) for messages, _ in self.conversations)
        answer = sum(tokens(text) for _, text in self.conversations)
        return {
            "calls": len(self.conversations),
            "prompt": prompt,
            "answer": answer,
            "busy": self.busy,
            "span": self.ended - self.began,
        }

    def _wait(self, key: bytes) -> float:
        if self.latency != "lognormal":
            return float(self.latency)
        return math.exp(_SIGMA * random.Random(_uniform(b"latency", key)).gauss(0, 1))

    def _fail(self, fault: str, messages: list[dict[str, str]], text: str) -> web.Response:
        if fault in ("500", "429"):
            self.conversations.append((messages, ""))
            return web.json_response({"error": {"message": "failed on purpose"}}, status=int(fault))
        if fault == "cut":
            self.conversations.append((messages, ""))
            return web.Response(body=b'{"id": "x", "choices": [{"mess', content_type="application/json")
        short = json.dumps(json.loads(text)[:-1])
        return self._reply(messages, short if fault == "short" else "I think that some of them do fit quite well.")

    def _reply(self, messages: list[dict[str, str]], text: str) -> web.Response:
        self.conversations.append((messages, text))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 900, "completion_tokens": 15, "total_tokens": 915}
        return web.json_response(
            {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )


def _uniform(*parts: bytes) -> float:
    return int.from_bytes(blake2b(b"\x1f".join(parts), digest_size=8).digest(), "big") / 2**64


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _explain(messages: list[dict[str, str]]) -> str:
    marked = Counter(w for m in re.findall(r"<<(.*?)>>", messages[-1]["content"], re.DOTALL) for w in _words(m))
    commonest = sorted(marked, key=lambda word: (-marked[word], word))[:4]
    head = "[EXPLANATION]:" if "[EXPLANATION]" in messages[0]["content"] else "EXPLANATION:"
    return f"{head} the words {', '.join(commonest)}"


def _judge(messages: list[dict[str, str]]) -> str:
    question = messages[-1]["content"]
    found = _EXPLANATION.search(question)
    assert found is not None
    rule = set(_words(found[1])) - {"the", "words", "explanation"}
    body = re.sub(r"\nAnswer with a list of \d+ numbers\.\s*$", "", question)
    answers = []
    for window in _WINDOW.split(body)[1:]:
        text = " ".join(window.split())
        marks = re.findall(r"<<(.*?)>>", text)
        if marks:
            fits = sum(bool(rule & set(_words(mark))) for mark in marks) * 2 > len(marks)
        else:
            fits = bool(rule & set(_words(text)))
        errs = _uniform(b"error", found[1].strip().encode(), text.encode()) < _ERRORS
        answers.append(int(fits ^ errs))
    spaced = ", " in next(m["content"] for m in reversed(messages) if m["role"] == "assistant")
    return json.dumps(answers, separators=(", " if spaced else ",", ": "))


async def serve(latency: str, faults: float) -> None:
    """Answer until standard input ends; print what was asked since the last line of it for each."""
    model = Model(latency, faults)
    app = web.Application(client_max_size=10**8)
    app.router.add_post("/v1/chat/completions", model.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1", flush=True)
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        print(json.dumps(model.told()), flush=True)
        model.clear()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
