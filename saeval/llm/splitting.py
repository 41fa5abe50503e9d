"""Splits scoring requests into one request per prompt, for servers that answer each prompt separately."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import reduce
from operator import add
from typing import Any, TypeVar

from saeval.records import FillReply, FillRequest, LogprobReply, LogprobRequest

A = TypeVar("A")
R = TypeVar("R", LogprobReply, FillReply)


def split_request(request: LogprobRequest | FillRequest) -> list[Any]:
    """Return one request per prompt and continuation, or one per text with gaps.

    Example:
        >>> [part.prompts + part.continuations for part in split_request(LogprobRequest(("a", "b"), (" c",)))]
        [('a', ' c'), ('b', ' c')]
    """
    if isinstance(request, FillRequest):
        return [FillRequest((text,), request.filler, request.choices, request.prefix) for text in request.texts]
    return [
        LogprobRequest((prompt,), (continuation,), request.prefix)
        for prompt in request.prompts
        for continuation in request.continuations
    ]


def join_replies(request: LogprobRequest | FillRequest, replies: Sequence[R]) -> R:
    """Return the reply to a request from the replies to its parts, of which there is at least one."""
    usage = reduce(add, (reply.usage for reply in replies))
    kind: Any = type(replies[0])
    if isinstance(request, FillRequest):
        return kind(tuple(reply.logprobs[0] for reply in replies), usage)  # type: ignore[no-any-return]
    scored = [reply.logprobs[0][0] for reply in replies]
    width = len(request.continuations)
    rows = tuple(tuple(scored[start : start + width]) for start in range(0, len(scored), width))
    return kind(rows, usage)  # type: ignore[no-any-return]


async def all_or_none(calls: Sequence[Coroutine[Any, Any, A]]) -> list[A]:
    """Return the results of all calls; if one fails, cancel the others and raise its error."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
