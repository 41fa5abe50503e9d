"""Prompts and replies kept with each result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from saeval._util import LEFT_OUT, clean_text, may_hold_values, packed_calls, unpacked_calls, without_values
from saeval.records import FillReply, FillRequest, LogprobReply, LogprobRequest, Reply, Request

_MOST = 64
"""Maximum prompts kept per step and latent; a simulator that is asked token by token has hundreds."""


class PromptReply(NamedTuple):
    """One prompt and its reply.

    Attributes:
        prompt: The full prompt; each turn follows its `[role]`.
        reply: The raw reply, or why there is none.
        status: `ok`; `failed` if there is no reply; `left out` for the entry that counts the prompts not kept.
    """

    prompt: str
    reply: str
    status: Literal["ok", "failed", "left out"] = "ok"


def prompt_replies(
    request: Request | LogprobRequest | FillRequest, reply: Reply | LogprobReply | FillReply | str
) -> list[PromptReply]:
    """Return the prompts of a request with their replies; pass a string as `reply` to say why there is none."""
    prompts = _prompts(request)
    if isinstance(reply, str):
        return [PromptReply(prompt, reply, "failed") for prompt in prompts]
    return [PromptReply(prompt, text) for prompt, text in zip(prompts, _replies(request, reply), strict=False)]


def _prompts(request: Request | LogprobRequest | FillRequest) -> list[str]:
    if isinstance(request, Request):
        return ["\n\n".join(f"[{m.role}]\n{m.content}" for m in request.messages)]
    if isinstance(request, LogprobRequest):
        return [request.prefix + prompt for prompt in request.prompts]
    return [request.prefix + "".join(part + request.filler for part in parts) for parts in request.texts]


def _replies(request: Request | LogprobRequest | FillRequest, reply: Reply | LogprobReply | FillReply) -> list[str]:
    """Return replies as text: the reply, log-probabilities summed over tokens, or the likeliest choice per gap."""
    if isinstance(reply, Reply):
        return [f"[reasoning]\n{reply.reasoning}\n\n[answer]\n{reply.text}" if reply.reasoning else reply.text]
    if isinstance(request, LogprobRequest) and isinstance(reply, LogprobReply):
        return [
            "\n".join(
                f"ln p({c!r}) = {sum(values):.3f}" for c, values in zip(request.continuations, scored, strict=True)
            )
            for scored in reply.logprobs
        ]
    choices = request.choices if isinstance(request, FillRequest) else ()
    return [
        "likeliest: " + " ".join(choices[max(range(len(gap)), key=gap.__getitem__)] for gap in gaps)
        for gaps in reply.logprobs
    ]


def pack(asked: Sequence[PromptReply], windows: Sequence[Sequence[str]] = (), templates: Sequence[str] = ()) -> str:
    """Compress prompts and replies to a short text (JSON, zlib, base64).

    Text that prompts share is stored once. Windows and templates are not stored but referenced, since the reader has
    them.

    Args:
        asked: The prompts and replies.
        windows: Texts of the latent's windows, which occur in prompts, by group.
        templates: Texts of the prompts' templates.
    """
    if not asked:
        return ""
    kept = [*asked[:_MOST]]
    if more := len(asked) - _MOST:
        kept += [PromptReply("", f"{more} more prompts are not kept", LEFT_OUT)] if more > 0 else []
    return packed_calls(_without_credentials(kept), windows, templates)


def unpack(packed: str, windows: Sequence[Sequence[str]] = (), templates: Sequence[str] = ()) -> list[PromptReply]:
    """Return the prompts and replies from the output of `pack`; a single entry with a message if it is unreadable.

    Args:
        packed: The output of `pack`.
        windows: The same windows that `pack` got.
        templates: The same templates that `pack` got.
    """
    if not packed:
        return []
    try:
        return [_entry(*entry) for entry in unpacked_calls(packed, windows, templates)]
    except (ValueError, TypeError, AttributeError):
        return [PromptReply("", "the stored prompts and replies cannot be read", LEFT_OUT)]


def _without_credentials(kept: list[PromptReply]) -> list[PromptReply]:
    if not may_hold_values(text for entry in kept for text in (entry.prompt, entry.reply)):
        return kept
    text = json.dumps(kept, ensure_ascii=False)
    clean = without_values(text)
    if clean == text:
        return kept
    try:
        return [PromptReply(*entry) for entry in json.loads(clean)]
    except ValueError:  # removing a credential broke the JSON
        return [PromptReply("", clean, LEFT_OUT)]


def _entry(prompt: str, reply: str, status: Any) -> PromptReply:
    return PromptReply(clean_text(prompt), clean_text(reply), status)
