"""Adapts requests to servers that differ from OpenAI's, as their errors show: no system turn, streaming only."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("saeval")

_SIGNS = {
    "no system turn": r"system (?:role|message|prompt|turn|instruction)s?\b.{0,40}(?:\bnot\b|n't|unsupported)"
    r"|only user and assistant roles|roles must alternate|developer instruction is not enabled"
    r"|(?:unsupported|invalid|unknown).{0,30}\bsystem\b",
    "streams only": r"only.{0,30}\bstream|stream.{0,30}must be (?:set to )?true|non-?stream\w*.{0,30}not ",
    "max_completion_tokens": r"max_tokens.{0,80}max_completion_tokens",
}
"""Error texts that reveal each deviation."""


@dataclass
class ServerQuirks:
    """Deviations of one server.

    Attributes:
        found: Names of its deviations.
    """

    found: frozenset[str] = field(default_factory=frozenset)

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a chat request as the server takes it."""
        made = dict(body)
        if "no system turn" in self.found:
            made["messages"] = _without_system(body["messages"])
        if "streams only" in self.found:
            made |= {"stream": True, "stream_options": {"include_usage": True}}
        if "max_completion_tokens" in self.found:
            made["max_completion_tokens"] = made.pop("max_tokens")
        return made

    def learn(self, error: str, used: frozenset[str]) -> bool:
        """Learn from an error; return whether the request is worth sending again in another way.

        Args:
            error: What the server said.
            used: What was known when the request was sent.
        """
        wanted = {way for way, sign in _SIGNS.items() if re.search(sign, error, re.IGNORECASE)}
        for way in sorted(wanted - self.found):
            log.info("the server's way is from now on: %s (it said: %s)", way, error)
        self.found |= wanted
        return bool(wanted - used)


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a conversation with the system turn moved to the start of the first user turn."""
    if not messages or messages[0]["role"] != "system" or len(messages) < 2:
        return messages
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
