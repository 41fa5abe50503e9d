"""Writes requests and reads replies in OpenAI's chat format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from saeval.plugin import (
    FinishReason,
    LLMError,
    Refused,
    Reply,
    Request,
    TokenLogprobs,
    Usage,
    finish_reason,
    without_secrets,
)
from saeval_plugins.llms._bounds import MOST_TOKENS, number_within
from saeval_plugins.llms.error_bodies import FILTERED, NO_QUOTA, message_and_code
from saeval_plugins.llms.retry_after import wait_asked_for


def chat_body(model: str, request: Request) -> dict[str, Any]:
    """Return the JSON body of a chat request. The gateway has already filled in the role's settings."""
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
    if request.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": request.schema.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def reply_from_chat(model: str, body: Any, usd: float | None = None, price_source: str | None = None) -> Reply:
    """Read a chat response. Optional fields of an unexpected type are ignored.

    Raises:
        Refused: If the model or a content filter declined.
        LLMError: If the body contains an error, no choice, no text, or an interrupted answer. Retryable (except when
            the token limit was reached), because servers under load send such bodies with status 200.
    """
    choices = object_from(model, body, usd, price_source).get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        billed = _billed(body, usd, price_source)
        raise LLMError(f"{model}: the response has no choices", retryable=True, usage=billed)
    choice = choices[0]
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {"content": message}
    finish, reason = _finish(choice)
    usage = usage_from(body.get("usage"), usd, price_source)
    refusal = _refusal(message)
    why, code = message_and_code(choice.get("error") or None)  # where OpenRouter reports what interrupted an answer
    if refusal or finish == "refusal" or code in FILTERED:
        raise Refused(f"{model} declined: {one_line(refusal or why or reason)}", usage=usage)
    if finish == "other" or why:
        what = one_line(why) if why else f"finish reason {reason}"
        raise LLMError(f"{model}: the answer was interrupted ({what})", retryable=True, usage=usage)
    text, thoughts = _text_parts(message.get("content")), _reasoning(message)
    if not text.strip():
        raise LLMError(
            _empty(model, finish, thoughts), retryable=finish != "length", usage=usage, cut=finish == "length"
        )
    return Reply(
        text,
        usage,
        finish,
        _logprobs(choice.get("logprobs")),
        thoughts,
        _text(body.get("model")),
        _text(body.get("system_fingerprint")),
    )


def _finish(choice: Mapping[str, Any]) -> tuple[FinishReason, object]:
    """Return the meaning of a choice's finish reason, and the reason itself.

    litellm replaces reasons that it does not know by `stop` and keeps the original in a field of its own. OpenRouter
    reports the provider's reason in addition to its own; the one that marks an incomplete answer counts.
    """
    reason, native = choice.get("finish_reason"), choice.get("native_finish_reason")
    if unknown := _mapping_at(choice, "provider_specific_fields").get("native_finish_reason"):
        return finish_reason(unknown), unknown
    if finish_reason(reason) == "stop" and (meaning := finish_reason(native)) in ("length", "refusal"):
        return meaning, native
    return finish_reason(reason), reason


def _refusal(message: Mapping[str, Any]) -> object:
    """Return the refusal text, from any field that servers use for it."""
    parts = message.get("content")
    inside = [p.get("refusal") for p in parts if isinstance(p, Mapping)] if isinstance(parts, list) else []
    of_litellm = _mapping_at(message, "provider_specific_fields").get("refusal")
    return message.get("refusal") or of_litellm or next(filter(None, inside), None)


def _empty(model: str, finish: str, thoughts: str) -> str:
    if finish == "length":
        return (
            f"{model}: the answer is empty (finish reason length): the token limit was reached, perhaps by reasoning; "
            "raise the role's max_tokens_if_cut"
        )
    only = " and contains only reasoning" if thoughts else ""
    return f"{model}: the answer is empty (finish reason {finish}){only}"


def _mapping_at(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key)
    return found if isinstance(found, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _text_parts(content: object) -> str:
    """Return the text of a message's content (a string, a part or a list of parts), without reasoning."""
    content = [content] if isinstance(content, Mapping) else content
    if not isinstance(content, list):
        return _text(content)
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    return "".join(
        _text(p.get("text")) for p in parts if isinstance(p, Mapping) and not _is_reasoning(p) and _is_text(p)
    )


def _is_text(part: Mapping[str, Any]) -> bool:
    return str(part.get("type", "text")).lower() in ("text", "output_text")


def _is_reasoning(part: Mapping[str, Any]) -> bool:
    """Return whether a part of the content is reasoning, by its type or by Gemini's flag."""
    return part.get("thought") is True or part.get("type") in ("thinking", "reasoning")


def _reasoning(message: Mapping[str, Any]) -> str:
    """Return a message's reasoning text, from a separate field or from parts of the content."""
    for field in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(found := message.get(field), str) and found:
            return found
    parts = message.get("content")
    thoughts = [p for p in parts if isinstance(p, Mapping)] if isinstance(parts, list) else []
    found = [p.get("thinking") or p.get("reasoning") or (_is_reasoning(p) and p.get("text")) or "" for p in thoughts]
    return "".join(part if isinstance(part, str) else _text_parts(part) for part in found)


def object_from(model: str, body: Any, usd: float | None = None, price_source: str | None = None) -> Mapping[str, Any]:
    """Check that a response's body is a JSON object without an error, and return it.

    Raises:
        LLMError: If it is not an object, or reports an error. An error counts as if its code were the status if that
            concerns the account or a state that passes; others are retryable.
    """
    if not isinstance(body, Mapping):
        raise LLMError(f"{model}: the response is not a JSON object", retryable=True)
    if error := body.get("error"):
        said, code = message_and_code(body)
        what = f"{model}: the server sent an error in a successful response: {one_line(said)}"
        status = int(number_within(code, 599) or 0) or None  # OpenRouter's codes are statuses
        wait = wait_asked_for({}, f"{said} {error}", status)
        failed = error_from_status(status, what, code, retryable=True, wait=wait, said=said_without(model, said))
        failed.usage = _billed(body, usd, price_source)
        raise failed
    return body


def _billed(body: Mapping[str, Any], usd: float | None, price_source: str | None) -> Usage | None:
    """Return the usage of a response without an answer; None if the server counted nothing."""
    usage = usage_from(body.get("usage"), usd, price_source)
    return usage if usage.input_tokens or usage.output_tokens or usage.usd else None


def usage_from(usage: Any, usd: float | None = None, price_source: str | None = None) -> Usage:
    """Read token counts, and the cost if the server reports one. Missing or invalid counts become 0.

    Cached tokens are read from the field of OpenAI, DeepSeek or Anthropic. If a count is missing, `usd` is dropped,
    because it was computed from incomplete counts.
    """
    usage = usage if isinstance(usage, Mapping) else {}
    details = _mapping_at(usage, "prompt_tokens_details")
    cached = (details.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"), usage.get("cache_read_input_tokens"))
    prompt, generated = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if not (prompt and generated):
        usd = price_source = None
    if usd is None and (stated := _stated_dollars(usage)) is not None:
        usd, price_source = stated, "server"
    return Usage(prompt, generated, min(prompt, next((n for n in map(_count, cached) if n), 0)), usd, price_source)


_MOST_DOLLARS = 1e4
"""Maximum plausible cost of one call."""


def _stated_dollars(usage: Mapping[str, Any]) -> float | None:
    """Return the cost that the server states; None if it states none.

    With the user's own key of a provider (`is_byok`), OpenRouter's cost is its fee, and the provider's comes on top.
    """
    stated = number_within(usage.get("cost"), _MOST_DOLLARS)
    if stated is None or usage.get("is_byok") is not True:
        return stated
    upstream = _mapping_at(usage, "cost_details").get("upstream_inference_cost")
    return stated + (number_within(upstream, _MOST_DOLLARS) or 0.0)


def _count(value: object) -> int:
    return int(number_within(value, MOST_TOKENS) or 0)


class ServerError(LLMError):
    """An error that a server reports.

    Args:
        message: What happened, as in `LLMError`.
        said: The server's own message, without the model's name; empty if it concerns a temporary state.
        options: Further arguments of `LLMError`.
    """

    def __init__(self, message: str, *, said: str = "", **options: Any):
        super().__init__(message, **options)
        self.said = said


def said_without(model: str, message: object) -> str:
    """Return a server's message on one line, without the model's name, which may be any word.

    Args:
        model: The model's name. Servers also name it without the parts before a slash.
        message: The server's message.
    """
    parts = model.split("/")
    names = "|".join(re.escape("/".join(parts[i:])) for i in range(len(parts)))
    return re.sub(rf"(?<!\w)(?:{names})(?!\w)", "", one_line(message), flags=re.IGNORECASE)


_LASTING = {401, 402, 403, 404}
"""Statuses that concern the key, the credit or the model's name, so that every other call fails, too."""
_TRANSIENT = {408, 409, 424, 425, 429, 498, 499}
"""Statuses below 500 after which a retry may succeed."""
_BUSY = {429, 503, 529}
"""Statuses of busy servers: rate limit, overload, model still loading."""
_TEMPORARY = _TRANSIENT | _BUSY | {504, 522, 524}
"""Statuses of a state that passes; the message of such an error is no reason to change requests."""


def is_success(status: int) -> bool:
    """Return whether a status means that the server answered."""
    return 200 <= status < 300


def is_transient(status: int | None) -> bool:
    """Return whether a call that failed with this status may succeed when retried."""
    return status is not None and (status >= 500 or status in _TRANSIENT)


def error_from_status(
    status: int | None, what: str, code: object, *, retryable: bool, wait: float | None = None, said: str = ""
) -> LLMError:
    """Return the error for a response whose status is not a success.

    Args:
        status: The status; None if it is unknown.
        what: What happened, in one sentence.
        code: The body's error code, which identifies content filters.
        retryable: Whether a retry can help.
        wait: Seconds the server asks to wait.
        said: The server's own message, without the model's name.
    """
    if code in FILTERED:
        return Refused(what)
    lasting = status in _LASTING or code == NO_QUOTA  # sent as a rate limit, but waiting does not help
    again = retryable and not lasting
    busy = again and (status in _BUSY or wait is not None)
    said = "" if busy or status in _TEMPORARY else said
    return ServerError(what, said=said, retryable=again, retry_after=wait, lasting=lasting, busy=busy)


def _logprobs(data: Any) -> tuple[TokenLogprobs, ...] | None:
    """Read log-probabilities in OpenAI's chat or legacy completions format; return None for any other."""
    try:
        entries = list(_entries(data))
        return tuple(TokenLogprobs(token, tuple(_alternatives(top))) for token, top in entries) or None
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield each token and its alternatives, which are a mapping or a list."""
    if not data:
        return
    content = data.get("content") if isinstance(data, Mapping) else data
    if content is None and "tokens" in data:
        tops = data.get("top_logprobs") or [()] * len(data["tokens"])
        content = [{"token": t, "top_logprobs": top} for t, top in zip(data["tokens"], tops, strict=True)]
    for entry in content or ():
        if not isinstance(entry["token"], str):
            raise TypeError(f"a token is {type(entry['token']).__name__}")
        yield entry["token"], entry.get("top_logprobs") or ()


def _alternatives(top: Any) -> Iterable[tuple[str, float]]:
    pairs = top.items() if isinstance(top, Mapping) else ((a["token"], a["logprob"]) for a in top)
    return [(str(token), float(logprob)) for token, logprob in pairs if logprob is not None]


def one_line(text: object, most: int = 200) -> str:
    """Shorten a server's text to one line for an error message, and remove keys that it echoes."""
    line = without_secrets(" ".join(str(text).split()))
    return line if len(line) <= most else line[:most] + "…"
