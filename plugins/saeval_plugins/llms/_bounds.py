"""Limits the size and nesting of replies, refuses redirects, and keeps what servers sent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from saeval.plugin import LLMError, without_secrets

MOST_BYTES = 1 << 25
"""Bytes of a reply after decompression; echoed log-probabilities of a long prompt take a tenth of it."""

MOST_TOKENS = 1e8
"""Tokens that no call takes; a larger number is no count, and would end a run at its spending limit."""


@dataclass
class Heard:
    """What a server answered a call through httpx.

    Attributes:
        model: The model that is asked.
        status: Status of the last response that was read.
        body: Its JSON; None where it is none, or came as a stream.
    """

    model: str
    status: int = 0
    body: Any = None


_asking: ContextVar[Heard | None] = ContextVar("asking", default=None)


async def read_bounded(model: str, parts: AsyncIterator[bytes]) -> bytes:
    """Return a body, read part by part.

    Raises:
        LLMError: If it is longer than any reply; retryable.
    """
    body = bytearray()
    async for part in parts:
        body += part
        if len(body) > MOST_BYTES:
            raise LLMError(f"{model}: the reply is longer than {MOST_BYTES >> 20} MB, and was not read", retryable=True)
    return bytes(body)


def parse_reply(model: str, body: bytes) -> Any:
    """Return the JSON of a body.

    Raises:
        LLMError: If it is not whole JSON, or is nested too deeply; retryable.
    """
    try:
        return json.loads(body)
    except ValueError:
        begins = without_secrets(" ".join(body[:200].decode(errors="replace").split()))[:60]
        raise LLMError(f"{model}: the response is not whole JSON, but {begins!r}", retryable=True) from None
    except RecursionError:
        raise LLMError(f"{model}: the response is nested too deeply", retryable=True) from None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def with_sane_usage(body: bytes) -> bytes:
    """Return a body whose token counts are whole numbers, 0 for what is none; libraries lose the answer over others."""
    data = _json(body)
    usage = data.get("usage") if isinstance(data, dict) else None
    if usage is None or (sane := _sane(usage)) == usage:
        return body
    return json.dumps({**data, "usage": sane}).encode()


def _sane(usage: object) -> dict[str, Any] | None:
    """Return counts, also within details, as whole numbers; None for what is no mapping."""
    if not isinstance(usage, dict):
        return None
    sane = {}
    for name, value in usage.items():
        if name.endswith("_tokens"):
            sane[name] = _whole_number(value)
        elif name.endswith("_details"):
            sane[name] = _sane(value)
        else:
            sane[name] = value
    return sane


def _whole_number(value: object) -> int | None:
    """Return a count; 0 for what is none, but None, which libraries know."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return 0
    return int(value)


def not_followed(model: str, address: str, place: str) -> LLMError:
    """Return the error for a redirect, which is not followed, since prompts and key go to one server only."""
    return LLMError(
        f"{model}: {address} redirects to {place}, which is not followed; if that is meant, set api_base to it",
        lasting=True,
    )


@contextmanager
def bounded_httpx(model: str) -> Iterator[Heard]:
    """Hold calls through httpx in this block, which libraries of providers make, to the same bounds.

    Yields what the server answers, since libraries lose what they do not expect, or put something else in its place.

    Libraries send keys in headers of their own, which httpx passes on to another host when it follows a redirect.
    """
    _bind()
    heard = Heard(model)
    token = _asking.set(heard)
    try:
        yield heard
    finally:
        _asking.reset(token)


def _bind() -> None:
    """Teach httpx the bounds, once; they hold in `bounded_httpx` only, since downloads of models need redirects."""
    import httpx

    if getattr(httpx.Response.aread, "bounded", False):
        return
    redirect, read = httpx.AsyncClient._build_redirect_request, httpx.Response.aread

    def build_redirect_request(self: Any, request: Any, response: Any) -> Any:
        if heard := _asking.get():
            raise not_followed(heard.model, str(request.url.host), response.headers.get("location", "")[:200])
        return redirect(self, request, response)

    async def aread(self: Any) -> bytes:
        if (heard := _asking.get()) is None or hasattr(self, "_content"):
            return await read(self)
        self._content = with_sane_usage(await read_bounded(heard.model, self.aiter_bytes()))
        heard.status, heard.body = self.status_code, _json(self._content)
        return bytes(self._content)

    aread.bounded = True  # type: ignore[attr-defined]
    httpx.AsyncClient._build_redirect_request = build_redirect_request  # type: ignore[method-assign]
    httpx.Response.aread = aread  # type: ignore[method-assign]
