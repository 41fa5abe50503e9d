"""Ask the loopback server, as `python -m benchmarks.call_client SIDE URL REQUESTS IN_FLIGHT`; prints what it took."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import cpu_seconds

os.environ.setdefault("OPENAI_API_KEY", "none")

Ask = Callable[[int], Awaitable[object]]

_SYSTEM = "You judge whether windows of text fit an explanation. " * 20
_EXAMPLE = "Explanation: words about the sea\nWindow 1: the old ship left the harbour at dawn\n" * 8
_QUESTION = "Explanation: the number {}\nWindow 1: nothing here names any number at all, as it seems\n"


def _messages(number: int) -> list[dict[str, str]]:
    """Return a conversation of 3.7 kB, most of which all conversations share."""
    question = _QUESTION.format(number) * 16
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _EXAMPLE},
        {"role": "assistant", "content": "[1]"},
        {"role": "user", "content": question},
    ]


@asynccontextmanager
async def _aiohttp(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """A client of a few lines, as anybody would write it."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> object:
            body = {"model": "m", "messages": _messages(number), "max_tokens": 100, "temperature": 0.0}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                data = await response.json()
                return data["choices"][0]["message"]["content"]

        yield ask


@asynccontextmanager
async def _litellm(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """litellm as it comes, without its messages and without fetching its list of prices."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.suppress_debug_info = True

    async def ask(number: int) -> object:
        response = await litellm.acompletion(
            model="openai/m", messages=_messages(number), max_tokens=100, temperature=0.0, api_base=url, api_key="none"
        )
        return response.choices[0].message.content

    yield ask


@asynccontextmanager
async def _gateway(url: str, llm: str, concurrency: int | str, **options: Any) -> AsyncIterator[Ask]:
    """The gateway, writing down answers and ledger as a run does."""
    from saeval_plugins.llms import LiteLLM, OpenAICompatible

    from saeval.llm import AnswerCache, Asker, Budget, CallLedger, Gateway, RoleSettings, rare_garbage_collection
    from saeval.plugin import Message, Request

    plugin: Any = (
        LiteLLM(model="openai/m", api_base=url, **options)
        if llm == "litellm"
        else OpenAICompatible(model="m", api_base=url)
    )
    settings = RoleSettings(concurrency=concurrency, retries=20)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, rare_garbage_collection():  # as in a run
        gateway = Gateway(
            Asker("judge", plugin, "m", settings),
            identity=["m", "1.0"],
            calls=AnswerCache(Path(folder) / "calls.sqlite"),
            log=CallLedger(Path(folder) / "calls.jsonl"),
            budget=Budget(None),
        )

        async def ask(number: int) -> object:
            turns = tuple(Message(m["role"], m["content"]) for m in _messages(number))  # type: ignore[arg-type]
            return (await gateway.complete(Request(turns, max_tokens=100, temperature=0.0))).text

        async with aclosing(plugin):
            yield ask


_SIDES: dict[str, Callable[[str, int], Any]] = {
    "aiohttp": _aiohttp,
    "litellm": _litellm,
    "gateway": lambda url, n: _gateway(url, "openai_compatible", n),
    "gateway_litellm": lambda url, n: _gateway(url, "litellm", n),
    "gateway_2_processes": lambda url, n: _gateway(url, "litellm", n, processes=2),
    "gateway_auto": lambda url, n: _gateway(url, "openai_compatible", "auto"),
}


async def _measure(side: str, url: str, requests: int, in_flight: int) -> dict[str, float]:
    async with _SIDES[side](url, in_flight) as ask:
        # Connections are opened before; where the way to a limit is what is measured, only modules are imported.
        before = 1 if side == "gateway_auto" else in_flight
        numbers = iter(range(-before, requests))

        async def work(until: int) -> None:
            for number in numbers:
                await ask(number)
                if number >= until:
                    return

        await asyncio.gather(*(work(-before) for _ in range(before)))
        began, cpu = time.perf_counter(), cpu_seconds()
        await asyncio.gather(*(work(requests) for _ in range(in_flight)))
        seconds = time.perf_counter() - began
        return {"per_second": requests / seconds, "cpu_ms": 1000 * (cpu_seconds() - cpu) / requests}


if __name__ == "__main__":
    side, url, *sizes = sys.argv[1:]
    print(json.dumps(asyncio.run(_measure(side, url, *map(int, sizes)))))
