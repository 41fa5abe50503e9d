"""Restores the server's own choices and finish reason in a response that litellm has converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saeval_plugins.llms.openai_chat import is_success

if TYPE_CHECKING:
    from saeval_plugins.llms._bounds import RawResponse

_REASONS = ("stop_reason", "stopReason", "finish_reason", "finishReason", "done_reason", "completionReason")
"""Names of the finish reason in the formats of other providers."""
_INSIDE = ("choices", "candidates", "results", "generations", "outputs")
"""Keys under which such formats keep a list of answers, each with its finish reason."""


def unread_chat(raw: RawResponse) -> Any:
    """Return the body of a successful response (a chat or an error) that litellm failed to parse, or None."""
    body = raw.body
    if (
        is_success(raw.status)
        and isinstance(body, Mapping)
        and (isinstance(body.get("choices"), list) or "error" in body)
    ):
        return body
    return None


def as_sent(raw: RawResponse, body: dict[str, Any]) -> dict[str, Any]:
    """Return litellm's response with the server's own choices, or at least with its finish reason.

    litellm reports `stop` when the finish reason is missing or unknown to it.

    Args:
        raw: The server's response.
        body: litellm's conversion of it to OpenAI's format.
    """
    sent = raw.body
    if not isinstance(sent, Mapping):
        return body
    choices = sent.get("choices")
    if isinstance(choices, list) and all(isinstance(choice, Mapping) and "message" in choice for choice in choices):
        return {**body, "choices": choices}
    answers = next((sent[name] for name in _INSIDE if isinstance(sent.get(name), list) and sent[name]), [sent])
    answer = answers[0] if isinstance(answers[0], Mapping) else {}
    named = [name for name in _REASONS if name in answer]
    if not (named or answer is not sent) or not body.get("choices"):
        return body
    choice = {**body["choices"][0], "finish_reason": answer[named[0]] if named else None}
    choice.pop("provider_specific_fields", None)  # which repeats the reason
    return {**body, "choices": [choice, *body["choices"][1:]]}
