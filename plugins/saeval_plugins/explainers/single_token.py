"""The single-token explainer: an LLM reads only the strongest token of each window."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from saeval.plugin import Asking, Example, Examples, Prompt, marked_line
from saeval_plugins.prompts import load

PROMPT = load("explainer_single_token.md")


class SingleToken(Asking):
    """Shows only the strongest token of each window, with its strength 0–10 (paper §3.2).

    Prompts are short. By default they show no neighbouring tokens, so latents that depend on context are explained
    poorly.
    """

    name = "single_token"
    prompts = (PROMPT,)

    context: int = Field(default=0, ge=0)
    """Tokens to show before the strongest one."""

    def prompt(self) -> Prompt:
        """Return the prompt."""
        return PROMPT

    def slots(self, examples: Examples) -> dict[str, str]:
        """Show the strongest tokens."""
        return {
            "tokens": "\n".join(
                self._shown(number, window, examples.strengths(window))
                for number, window in enumerate(examples.activating[: self.examples], 1)
            )
        }

    def _shown(self, number: int, window: Example, strengths: list[int]) -> str:
        strongest = int(window.activations.argmax())
        at = window.shown_at()[strongest]
        tokens = window.tokens[max(0, at - self.context) : at + 1]
        marks = [False] * (len(tokens) - 1) + [True]
        return f"Token {number}: {marked_line(replace(window, tokens=tokens), marks)} (strength {strengths[strongest]})"
