"""A loopback server whose latency is lognormal: prints its address, and when its input ends, how long it answered.

Started as `python -m benchmarks.pipeline_server`. It explains and judges without reading, in the format asked for.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time

from aiohttp import web

_MEDIAN, _SIGMA = 0.0, 0.8  # of the logarithm of the latency in seconds: a median of one second


async def serve() -> None:
    """Answer until standard input ends, then print the sum of latencies and the time from first to last."""
    draw = random.Random(0)
    busy, began, ended = 0.0, 0.0, 0.0

    async def answer(request: web.Request) -> web.Response:
        nonlocal busy, began, ended
        body = await request.json()
        began = began or time.monotonic()
        latency = draw.lognormvariate(_MEDIAN, _SIGMA)
        await asyncio.sleep(latency)
        busy, ended = busy + latency, time.monotonic()
        windows = len(re.findall(r"^Window \d+:", body["messages"][-1]["content"], re.MULTILINE))
        explains = "EXPLANATION" in body["messages"][0]["content"]
        text = "EXPLANATION: ordinary words" if explains else json.dumps([n % 2 for n in range(windows)])
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 900, "completion_tokens": 15, "total_tokens": 915}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )

    app = web.Application(client_max_size=10**8)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps({"busy": busy, "span": ended - began}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
