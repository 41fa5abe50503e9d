"""Answers by rules in the spec, for trying out tasks; results are marked `synthetic`."""

from __future__ import annotations

import re

from saeval.plugin import LLM, Documented, LLMError, Reply, Request, Usage


class ReplyRule(Documented):
    """The reply to prompts that match a pattern."""

    match: re.Pattern[str]
    """Regular expression to search for in the last turn."""
    reply: str
    """The answer."""


class Scripted(LLM):
    """Answers with the first rule that matches, otherwise with `reply`."""

    name = "scripted"
    synthetic = True
    reproducible = False
    in_process = True

    rules: list[ReplyRule] = []
    """Rules, tried in order."""
    reply: str | None = None
    """Answer if no rule matches; if unset, the call fails."""

    async def complete(self, request: Request) -> Reply:
        """Answer according to the rules."""
        prompt = request.messages[-1].content
        for rule in self.rules:
            if rule.match.search(prompt):
                return Reply(rule.reply, Usage(usd=0.0))
        if self.reply is None:
            raise LLMError(f"scripted/{self.model}: no rule matches the prompt {prompt[:60]!r}")
        return Reply(self.reply, Usage(usd=0.0))
