"""Serialises requests to canonical JSON for hashing, and parses answers from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from saeval._util import LLMError, NotAsync, PluginExit, clean, contained, may_hold_values, without_values
from saeval.records import FillReply, LogprobReply, Message, Reply, Request, TokenLogprobs, Usage

V = TypeVar("V")


def _content(value: object) -> dict[str, Any]:
    """Return the fields of a dataclass, without a `schema` of None, so that requests keep their older cache keys."""
    found = vars(value)
    if found.get("schema", ...) is None:
        return {name: held for name, held in found.items() if name != "schema"}
    return found


_CANONICAL = json.JSONEncoder(default=_content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def json_text(value: object) -> str:
    """Return canonical JSON (equal content gives equal text, dataclasses included); `content_hash` hashes it."""
    return _CANONICAL.encode(value)


def keyed(request: V, asker: str) -> tuple[V, str, str]:
    """Return a request with text that UTF-8 can encode, the key of its answer, and the hash of the request alone.

    Args:
        request: The request.
        asker: JSON of everything else that its answer depends on, each item followed by a comma.
    """
    try:
        return request, *_hashes(request, asker)
    except UnicodeEncodeError:
        cleaned = clean(request)
        return cleaned, *_hashes(cleaned, asker)


def _hashes(request: object, asker: str) -> tuple[str, str]:
    """Return the hashes of the request's JSON with and without the asker."""
    if isinstance(request, Request):
        text = json_text({**_content(request), "messages": request.messages[-1:]})
        start, mark, end = text.partition('"messages":[')
        begun = _begun(asker, start + mark, tuple(request.messages[:-1]))
    else:
        begun, end = _begun(asker, "", ()), json_text(request)
    key, asked = begun[0].copy(), begun[1].copy()
    rest = f"{end}]".encode()
    key.update(rest)
    asked.update(rest)
    return key.hexdigest(), asked.hexdigest()


@lru_cache(maxsize=64)  # all turns but the last are the same in most requests of a step
def _begun(asker: str, before: str, turns: tuple[Message, ...]) -> tuple[hashlib.blake2b, hashlib.blake2b]:
    text = before + "".join(f"{json_text(turn)}," for turn in turns)
    return _hash(f"[{asker}{text}"), _hash(f"[{text}")


def _hash(text: str) -> hashlib.blake2b:
    return hashlib.blake2b(text.encode(), digest_size=16)


async def asked(model: str, ask: Callable[[Any], Awaitable[V]], request: Any, shape: type[V]) -> V:
    """Ask a plugin, and return its answer if it is one.

    Args:
        model: The model as the spec names it, which begins with the plugin's name.
        ask: The plugin's method.
        request: The request.
        shape: Class of the answer.

    Raises:
        LLMError: If the method is not async, or returned something else.
    """
    try:
        answer = await contained(ask, request)
    except PluginExit as error:
        raise LLMError(f"{model}: {error}", lasting=isinstance(error, NotAsync)) from error
    is_answer = isinstance(answer, shape)  # in a variable, since mypy would narrow the type
    if not is_answer:
        returned = f"returned {type(answer).__name__} instead of {shape.__name__}"
        raise LLMError(f"{model}: the plugin {returned}", lasting=True)
    usage: object = getattr(answer, "usage", None)
    if not isinstance(usage, Usage):
        returned = f"returned {shape.__name__} with a usage of type {type(usage).__name__} instead of Usage"
        raise LLMError(f"{model}: the plugin {returned}", lasting=True)
    return answer


def writable(reply: Reply) -> Reply:
    """Return a reply with text that UTF-8 can encode, and with credentials that the server echoed removed."""
    reply = clean(reply)
    others = (text for t in reply.logprobs or () for text in (t.token, *(other for other, _ in t.top)))
    if not may_hold_values((reply.text, *others)):
        return reply
    tokens = reply.logprobs and tuple(
        TokenLogprobs(without_values(t.token), tuple((without_values(other), p) for other, p in t.top))
        for t in reply.logprobs
    )
    return replace(reply, text=without_values(reply.text), logprobs=tokens)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def restored(kept: object, kind: Any, request: Any) -> Any | None:
    """Parse a cached answer; return None if its type or shape does not match the request (e.g. an older version's)."""
    try:
        answer = _adapter(kind).validate_python(kept)
    except ValidationError:
        return None
    return answer if _fits(answer, request) else None


def _fits(answer: Reply | LogprobReply | FillReply, request: Any) -> bool:
    if isinstance(answer, Reply):
        return bool(answer.text.strip())
    if isinstance(answer, LogprobReply):
        shape = [len(request.continuations)] * len(request.prompts)
        return [len(row) for row in answer.logprobs] == shape
    gaps = [[len(request.choices)] * len(parts) for parts in request.texts]
    return [[len(gap) for gap in row] for row in answer.logprobs] == gaps
