"""A loopback server that speaks OpenAI's chat protocol: prints its address, then answers until its input ends.

Started as `python -m benchmarks.call_server LATENCY [most] [slots]`; it is a process of its own, so that no client
shares a core's interpreter with it, and hardly reads what it is sent, so that it is not what bounds a benchmark.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys

from aiohttp import web

_ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "[1, 0, 0, 1, 0]"}, "finish_reason": "stop"}
        ],
        "usage": {
            "prompt_tokens": 900,
            "completion_tokens": 15,
            "total_tokens": 915,
            "prompt_tokens_details": {"cached_tokens": 512},
        },
    }
).encode()


async def serve(latency: float, most: float, slots: int) -> None:
    """Answer each request after `latency` seconds.

    Args:
        latency: Seconds an answer takes.
        most: Requests under way above which the server refuses with status 429.
        slots: Requests that are worked on at once; others wait in line, as at vLLM or llama.cpp.
    """
    working = asyncio.Semaphore(slots)
    under_way = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal under_way
        await request.read()
        if under_way >= most:
            return web.json_response({"error": {"message": "too many requests"}}, status=429)
        under_way += 1
        try:
            async with working:
                await asyncio.sleep(latency)
        finally:
            under_way -= 1
        return web.Response(body=_ANSWER, content_type="application/json")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    given = [float(argument) for argument in sys.argv[1:]]
    latency, most, slots = [*given, *[0.05, math.inf, 1e9][len(given) :]]
    asyncio.run(serve(latency, most, int(slots)))
