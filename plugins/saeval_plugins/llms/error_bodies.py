"""Reads message and code of the errors that servers send, in the formats of OpenAI, Gemini, OpenRouter and others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FILTERED = ("content_filter", "content_policy_violation")
"""Codes of errors that mean that a filter declined the prompt."""
NO_QUOTA = "insufficient_quota"
"""Code of an account without credit, which servers send as a rate limit."""


def error_data(body: bytes) -> Any:
    """Return an error's body as parsed JSON, which may begin with a byte order mark; its text if it is not JSON."""
    text = body.decode("utf-8-sig", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def message_and_code(data: object) -> tuple[object, object]:
    """Return message and code of an error.

    They are under `error` or at the top level; Gemini puts the whole into a list. OpenRouter's own message says little
    ("Provider returned error"), so the provider's message follows it. An error about a prompt that OpenRouter's
    moderation flagged gets the code of a filter, because the status is that of a missing permission.

    Args:
        data: The body, parsed as JSON, or its text.
    """
    message, code, error = _plain(data)
    metadata = error.get("metadata")
    if not isinstance(metadata, Mapping):
        return message, code
    if metadata.get("flagged_input") or metadata.get("reasons"):
        return message, FILTERED[0]
    if not (raw := metadata.get("raw")):
        return message, code
    said, inner, _ = _plain(error_data(raw.encode(errors="replace")) if isinstance(raw, str) else raw)
    return f"{message}: {said}", inner if inner in FILTERED else code


def _plain(data: object) -> tuple[object, object, Mapping[str, Any]]:
    """Return message, code, and the object that contains them, which is empty if the error is only text."""
    if isinstance(data, list) and data:
        data = data[0]
    error = (data.get("error") or data) if isinstance(data, Mapping) else data
    if not isinstance(error, Mapping):
        return error, None, {}
    code = NO_QUOTA if error.get("type") == NO_QUOTA else error.get("code")
    message = error.get("message")
    return (json.dumps(error) if message is None else message), code, error
