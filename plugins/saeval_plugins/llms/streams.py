"""Joins chat responses that arrive as a stream of events into one body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from saeval.plugin import LLMError

_LINE_END = re.compile(r"\r\n|\r|\n")  # those of the format; JSON strings may contain others, such as U+2028


def body_from_stream(model: str, stream: bytes) -> dict[str, Any]:
    """Join a stream of server-sent events into one response body.

    An interrupted stream has no finish reason, so its answer counts as incomplete.

    Raises:
        LLMError: If it is not a valid stream of events; retryable.
    """
    try:
        return _merged(_events(stream.decode(errors="replace")))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise LLMError(f"{model}: the response is not a valid stream of JSON events", retryable=True) from None


def _events(text: str) -> Iterator[Mapping[str, Any]]:
    for line in _LINE_END.split(text):
        field, _, data = line.partition(":")
        if field.strip() == "data" and (data := data.strip()) and data != "[DONE]":
            event = json.loads(data)
            if isinstance(event, Mapping):
                yield event


def _merged(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    text: dict[str, str] = {}
    contents: list[Any] = []
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    logprobs: list[Any] = []
    body: dict[str, Any] = {}
    for event in events:
        body |= {key: value for key, value in event.items() if key != "choices" and value is not None}
        for part in event.get("choices") or ():
            if part.get("index", 0) != 0:
                continue
            for key, value in (part.get("delta") or part.get("message") or {}).items():
                if key == "content":
                    contents += value if isinstance(value, list) else [value]
                    continue
                text[key] = text.get(key, "") + _plain(value) if key != "role" else "assistant"
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
            choice |= {"error": part["error"]} if part.get("error") else {}
            logprobs += (part.get("logprobs") or {}).get("content") or []
    if logprobs:
        choice["logprobs"] = {"content": logprobs}
    return {**body, "choices": [{**choice, "message": {**text, "content": _joined(contents)}}]}


def _joined(contents: list[Any]) -> str | list[Any]:
    """Return the pieces of the content as one text; as a list of parts if any is a part, which may be reasoning."""
    if any(isinstance(piece, Mapping) for piece in contents):
        return contents
    return "".join(piece for piece in contents if isinstance(piece, str))


def _plain(value: object) -> str:
    """Return a piece of text, which may be a string or a list of parts."""
    if isinstance(value, list):
        return "".join(_plain(part.get("text")) for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ""
