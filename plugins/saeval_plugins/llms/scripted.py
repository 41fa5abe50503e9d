"""Answers by rules in the spec, to try out tasks; results are marked synthetic."""

from __future__ import annotations

import re

from saeval.plugin import LLM, Documented, LLMError, Reply, Request, Usage


class ReplyRule(Documented):
    """What to answer to prompts that match."""

    match: re.Pattern[str]
    """Regular expression looked for in the last turn."""
    reply: str
    """The answer."""


class Scripted(LLM):
    """Answers the first rule that matches, else `reply`."""

    name = "scripted"
    synthetic = True
    reproducible = False
    in_process = True

    rules: list[ReplyRule] = []
    """Tried in order."""
    reply: str | None = None
    """Answer when no rule matches; without it, such a call fails."""

    async def complete(self, request: Request) -> Reply:
        """Answer by the rules."""
        prompt = request.messages[-1].content
        for rule in self.rules:
            if rule.match.search(prompt):
                return Reply(rule.reply, Usage(usd=0.0))
        if self.reply is None:
            raise LLMError(f"scripted/{self.model}: no rule matches the prompt {prompt[:60]!r}")
        return Reply(self.reply, Usage(usd=0.0))
