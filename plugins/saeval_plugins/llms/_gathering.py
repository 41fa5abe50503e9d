"""Collects concurrent requests to a model in this process and answers them in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_WAIT = 0.02  # seconds to collect requests before a batch is answered

R = TypeVar("R")
A = TypeVar("A")


class Gathering(Generic[R, A]):
    """Queue of requests to one model, which are answered in batches; each event loop has its own queue.

    Args:
        answer: Function that returns an answer or an exception for each request of a batch. It runs in a thread.
        most: Maximum requests per batch.
    """

    def __init__(self, answer: Callable[[Sequence[R]], Sequence[A | Exception]], most: int):
        self._answer, self._most = answer, most
        self._queues: dict[asyncio.AbstractEventLoop, list[tuple[R, asyncio.Future[A]]]] = {}
        self._workers: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}

    async def ask(self, request: R) -> A:
        """Queue a request and return its answer.

        Raises:
            Exception: The one that `answer` returned for this request, or raised for its batch.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._queues.setdefault(loop, []).append((request, answer))
        if loop not in self._workers:
            self._workers[loop] = loop.create_task(self._work(loop))
        return await answer

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer queued requests in batches until the queue is empty."""
        queue = self._queues[loop]
        try:
            while queue:
                await asyncio.sleep(_WAIT)
                batch = [(request, answer) for request, answer in queue[: self._most] if not answer.done()]
                del queue[: self._most]
                if batch:
                    await self._answer_batch(batch)
        finally:
            del self._workers[loop], self._queues[loop]

    async def _answer_batch(self, batch: Sequence[tuple[R, asyncio.Future[A]]]) -> None:
        found: Sequence[A | Exception]
        try:
            found = await asyncio.to_thread(self._answer, [request for request, _ in batch])
        except Exception as error:  # noqa: BLE001 - raised again by those who wait for the answers
            found = [error] * len(batch)
        for (_, answer), value in zip(batch, found, strict=True):
            if answer.done():
                continue
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)
