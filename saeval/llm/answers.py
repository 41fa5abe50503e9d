"""Serialises requests to canonical JSON for hashing, and parses answers from the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from saeval._util import clean, clean_text, may_hold_values, without_values
from saeval.records import FillReply, LogprobReply, Reply, TokenLogprobs

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


def encodable(value: V) -> tuple[V, str]:
    """Return a request or reply with text that UTF-8 can encode, and its JSON."""
    text = json_text(value)
    if clean_text(text) is text:
        return value, text
    cleaned = clean(value)
    return cleaned, json_text(cleaned)


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


def digest(text: str) -> str:
    """Return the hash of a request's text, used as the cache key."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
