"""OpenAI's chat format, as litellm and compatible servers speak it: requests out, replies in."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from saeval.plugin import FinishReason, LLMError, Refused, Reply, Request, TokenLogprobs, Usage, without_secrets


def chat_body(model: str, request: Request) -> dict[str, Any]:
    """Return the JSON body of a chat request; the gateway has filled in what roles decide."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    return body


def reply_from_chat(model: str, body: Any, usd: float | None = None, price_source: str | None = None) -> Reply:
    """Read a chat response.

    Raises:
        Refused: If the model or a content filter declined.
        LLMError: If the body holds an error, no choice, or no text. Retryable: servers under load send such bodies
            with status 200. Refusals and empty answers say what they took.
    """
    choices = object_from(model, body).get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise LLMError(f"{model}: the response has no choices", retryable=True)
    choice = choices[0]
    message = choice.get("message") or {}
    reason = choice.get("finish_reason")
    usage = usage_from(body.get("usage"), usd, price_source)
    refusal = message.get("refusal") or (message.get("provider_specific_fields") or {}).get(
        "refusal"
    )  # litellm's place
    if refusal or reason == "content_filter":
        raise Refused(f"{model} declined: {one_line(refusal or 'content filter')}", usage=usage)
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        what = f"{model}: the answer is empty (finish reason {reason})"
        raise LLMError(what, retryable=reason != "length", usage=usage)
    finish: FinishReason = reason if reason in ("stop", "length") else "other"
    return Reply(text, usage, finish, _logprobs(choice.get("logprobs")))


def object_from(model: str, body: Any) -> Mapping[str, Any]:
    """Return a response's body.

    Raises:
        LLMError: If it is no JSON object, or one that holds an error.
    """
    if not isinstance(body, Mapping):
        raise LLMError(f"{model}: the response is not a JSON object", retryable=True)
    if error := body.get("error"):
        text = error.get("message", error) if isinstance(error, Mapping) else error
        raise LLMError(f"{model}: the server sent an error with status 200: {one_line(text)}", retryable=True)
    return body


def usage_from(usage: Any, usd: float | None = None, price_source: str | None = None) -> Usage:
    """Read token counts; what is missing counts as 0. Cached ones stand in OpenAI's, DeepSeek's or Anthropic's place."""
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    cached = cached or usage.get("prompt_cache_hit_tokens") or usage.get("cache_read_input_tokens")
    return Usage(
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        int(cached or 0),
        usd,
        price_source,
    )


_LASTING = {401, 402, 403, 404}
"""Statuses that are not about the question, but about key, credit, or the model's name."""


def error_from_status(
    status: int | None, what: str, code: object, *, retryable: bool, retry_after: str | None
) -> LLMError:
    """Return the error that a response with another status than 200 means.

    Args:
        status: The status; None when it is not known.
        what: What happened, in one sentence.
        code: The body's error code; content filters are known by it.
        retryable: Whether trying again can help.
        retry_after: The header of that name: seconds, or a date.
    """
    if code in ("content_filter", "content_policy_violation"):
        return Refused(what)
    lasting = status in _LASTING or code == "insufficient_quota"  # which comes as a rate limit, but no wait helps
    return LLMError(what, retryable=retryable and not lasting, retry_after=_seconds(retry_after), lasting=lasting)


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds to wait; None where the header is missing or makes no sense."""
    try:
        seconds = float(retry_after or "nan")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after or "").timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _logprobs(data: Any) -> tuple[TokenLogprobs, ...] | None:
    content = data.get("content") if isinstance(data, Mapping) else None
    if not content:
        return None
    return tuple(
        TokenLogprobs(t["token"], tuple((a["token"], float(a["logprob"])) for a in t.get("top_logprobs") or ()))
        for t in content
    )


def one_line(text: object, most: int = 200) -> str:
    """Shorten a server's words to a line fit for an error message, without the keys that servers echo."""
    line = without_secrets(" ".join(str(text).split()))
    return line if len(line) <= most else line[:most] + "…"
