"""Puts what a server sent into the response that litellm makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeval_plugins.llms._bounds import Heard

_REASONS = ("stop_reason", "stopReason", "finish_reason", "finishReason", "done_reason", "completionReason")
"""How providers with a format of their own name the finish reason."""
_INSIDE = ("choices", "candidates", "results", "generations", "outputs")
"""Where such formats put a list of answers that each have a reason."""


def unread_chat(heard: Heard) -> Any:
    """Return a chat response, or an error with status 200, that litellm could not read; else None."""
    body = heard.body
    if heard.status == 200 and isinstance(body, Mapping) and (isinstance(body.get("choices"), list) or "error" in body):
        return body
    return None


def as_sent(heard: Heard, body: dict[str, Any]) -> dict[str, Any]:
    """Return litellm's response with the choices that the server sent, or with its finish reason.

    litellm gives `stop` for a reason that is missing or that it does not know.

    Args:
        heard: What the server sent.
        body: The response, in OpenAI's format.
    """
    sent = heard.body
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
