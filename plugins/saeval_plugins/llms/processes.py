"""Runs litellm in several processes, because one core manages only about a hundred litellm calls per second."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from typing import Any

from saeval.plugin import LLMError, Refused
from saeval_plugins.llms.openai_chat import ServerError

_KINDS: dict[str, type[LLMError]] = {"refused": Refused, "server": ServerError, "other": LLMError}
_LONGEST = 1 << 26  # maximum bytes of a request or an answer


class Processes:
    """Distributes calls over worker processes, each with many calls in flight.

    If a worker dies, its calls fail as retryable and the worker is replaced. Workers exit when this process does,
    because their input ends. Keys are passed through the environment only.

    Args:
        number: Number of workers.
        options: Options of the `LiteLLM` that makes the calls.
    """

    def __init__(self, number: int, options: Mapping[str, Any]):
        self._options = options
        self._workers: list[_Worker | None] = [None] * number
        self._starting = asyncio.Lock()

    async def ask(self, arguments: Mapping[str, Any]) -> tuple[Any, float | None]:
        """Run `LiteLLM.ask` in the worker with the fewest calls in flight.

        Raises:
            LLMError: If the call failed or the worker died.
        """
        async with self._starting:
            for i, worker in enumerate(self._workers):
                if worker is None or worker.dead:
                    self._workers[i] = await _Worker.start(self._options)
        worker = min((worker for worker in self._workers if worker is not None), key=lambda worker: len(worker.asked))
        return await worker.ask(arguments)

    async def aclose(self) -> None:
        """End the workers."""
        for worker in self._workers:
            if worker is not None:
                await worker.end()


class _Worker:
    def __init__(self, process: Process):
        self._process = process
        self._number = 0
        self.asked: dict[int, asyncio.Future[Any]] = {}
        self.dead = False
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def start(cls, options: Mapping[str, Any]) -> _Worker:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            json.dumps(options),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LONGEST,
            env={**os.environ, "PYTHONPATH": path},
        )
        return cls(process)

    async def ask(self, arguments: Mapping[str, Any]) -> tuple[Any, float | None]:
        assert self._process.stdin is not None
        self._number += 1
        number = self._number
        answer = self.asked[number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps([number, arguments]).encode() + b"\n")
        try:
            found = await answer
        finally:
            self.asked.pop(number, None)
        if "error" in found:
            kind = _KINDS[found.pop("kind")]
            raise kind(found.pop("error"), **found)
        return found["body"], found["usd"]

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                number, found = json.loads(line)
                if (answer := self.asked.get(number)) is not None and not answer.done():
                    answer.set_result(found)
        finally:
            self.dead = True
            for answer in self.asked.values():
                if not answer.done():
                    answer.set_exception(LLMError("a litellm worker process died", retryable=True))

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._process.stdin.close()


async def _work(options: Mapping[str, Any]) -> None:
    """Run as a worker: read one call per line from standard input, and write one line per finished call."""
    from saeval_plugins.llms.litellm import LiteLLM

    llm = LiteLLM(**options)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not appear among the answers
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=_LONGEST)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    making: set[asyncio.Task[None]] = set()

    async def make(number: int, arguments: Mapping[str, Any]) -> None:
        found: dict[str, Any]
        try:
            body, usd = await llm.ask(arguments)
            found = {"body": body, "usd": usd}
        except LLMError as error:
            kind = next(name for name, each in _KINDS.items() if isinstance(error, each))
            found = {
                "error": str(error), "kind": kind, "retryable": error.retryable, "retry_after": error.retry_after,
                "lasting": error.lasting, "busy": error.busy, "cut": error.cut,
            }  # fmt: skip
            if isinstance(error, ServerError):
                found["said"] = error.said
        answers.write(json.dumps([number, found]).encode() + b"\n")

    async for line in lines:
        task = asyncio.ensure_future(make(*json.loads(line)))
        making.add(task)
        task.add_done_callback(making.discard)
    for task in making:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_work(json.loads(sys.argv[1])))
