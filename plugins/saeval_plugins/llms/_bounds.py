"""Limits the size and nesting of replies, refuses redirects, and keeps raw responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from saeval.plugin import LLMError, without_secrets

MOST_BYTES = 1 << 25
"""Maximum bytes of a reply after decompression, ten times what echoed log-probabilities of a long prompt need."""

MOST_TOKENS = 1e8
"""Maximum plausible token count of one call. Larger numbers are errors and would exhaust the spending limit."""


_ENDPOINT = "/chat/completions"  # is added to `api_base`


@dataclass
class RawResponse:
    """A server's response to a call through httpx.

    Attributes:
        model: The called model.
        status: Status of the last response that was read.
        body: Its parsed JSON; None if it is not JSON or was streamed.
    """

    model: str
    status: int = 0
    body: Any = None


_current: ContextVar[RawResponse | None] = ContextVar("asking", default=None)


async def read_bounded(model: str, parts: AsyncIterator[bytes]) -> bytes:
    """Return a response body, read in parts.

    Raises:
        LLMError: If it is longer than `MOST_BYTES`; retryable.
    """
    body = bytearray()
    async for part in parts:
        body += part
        if len(body) > MOST_BYTES:
            raise LLMError(f"{model}: the reply exceeds {MOST_BYTES >> 20} MB and was discarded", retryable=True)
    return bytes(body)


def parse_reply(model: str, body: bytes) -> Any:
    """Parse a response body as JSON.

    Raises:
        LLMError: If it is incomplete or invalid JSON, or nested too deeply; retryable.
    """
    try:
        return json.loads(body)
    except ValueError:
        begins = without_secrets(" ".join(body[:200].decode(errors="replace").split()))[:60]
        raise LLMError(f"{model}: the response is not valid JSON; it begins with {begins!r}", retryable=True) from None
    except RecursionError:
        raise LLMError(f"{model}: the response is nested too deeply", retryable=True) from None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def with_sane_usage(body: bytes) -> bytes:
    """Return a body whose token counts are valid integers: client libraries fail on others, which become 0."""
    data = _json(body)
    usage = data.get("usage") if isinstance(data, dict) else None
    if usage is None or (sane := _sane(usage)) == usage:
        return body
    return json.dumps({**data, "usage": sane}).encode()


def _sane(usage: object) -> dict[str, Any] | None:
    """Return usage with all counts, including nested details, as integers; None if it is not a mapping."""
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
    """Return a count as an integer, 0 if it is invalid; None stays None, which client libraries accept."""
    if value is None:
        return None
    return int(number_within(value, MOST_TOKENS) or 0)


def number_within(value: object, most: float) -> float | None:
    """Return a value, which may be a number as text, as a number between 0 and `most`; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


def not_followed(model: str, address: str, place: str) -> LLMError:
    """Return the error for a redirect. Redirects are not followed: prompts and key go to one server only."""
    remedy = "to use that address, set api_base"
    if "://" not in place:
        remedy = "correct api_base"
    elif place.endswith(_ENDPOINT):
        remedy = f"set api_base: {place.removesuffix(_ENDPOINT)}"
    what = f"{address} redirects to {place or 'no address'}, and redirects are not followed"
    return LLMError(f"{model}: {what}; {remedy}", lasting=True)


@contextmanager
def bounded_httpx(model: str) -> Iterator[RawResponse]:
    """Apply the same limits to calls that client libraries make through httpx within this block.

    Yields the raw response, because libraries drop or replace fields that they do not expect.

    Redirects are refused because libraries send keys in custom headers, which httpx would forward to another host.
    """
    _patch_httpx()
    raw = RawResponse(model)
    token = _current.set(raw)
    try:
        yield raw
    finally:
        _current.reset(token)


def _patch_httpx() -> None:
    """Patch httpx once. The limits are active within `bounded_httpx` only, because model downloads need redirects."""
    import httpx

    if getattr(httpx.Response.aread, "bounded", False):
        return
    redirect, read = httpx.AsyncClient._build_redirect_request, httpx.Response.aread

    def build_redirect_request(self: Any, request: Any, response: Any) -> Any:
        if raw := _current.get():
            raise not_followed(raw.model, str(request.url.host), response.headers.get("location", "")[:200])
        return redirect(self, request, response)

    async def aread(self: Any) -> bytes:
        if (raw := _current.get()) is None or hasattr(self, "_content"):
            return await read(self)
        self._content = with_sane_usage(await read_bounded(raw.model, self.aiter_bytes()))
        raw.status, raw.body = self.status_code, _json(self._content)
        return bytes(self._content)

    aread.bounded = True  # type: ignore[attr-defined]
    httpx.AsyncClient._build_redirect_request = build_redirect_request  # type: ignore[method-assign]
    httpx.Response.aread = aread  # type: ignore[method-assign]
