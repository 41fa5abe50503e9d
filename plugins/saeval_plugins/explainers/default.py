"""The default explainer: an LLM reads marked windows with their strengths and says what the marked tokens share."""

from __future__ import annotations

import json
import re

from pydantic import Field

from saeval import Context, Example, Examples, Explainer, Explanation, LLMError, Message, ParseError, Refused, Request
from saeval_plugins.prompts import load, marked_line, without_thinking

PROMPT = load("explainer_default.md")
MARKER = "EXPLANATION:"
LONGEST = 600
"""Characters an explanation may have; a longer one is not an explanation but a rambling reply."""

_MARKER = re.compile(r"^[\s>#*_`\[\"'-]*explanation\]?[*_\]]*\s*:[*_\]]*(.*)$", re.IGNORECASE)
_PAIRS = (
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("_", "_"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("‘", "’"),
)
_DECLINED = re.compile(
    r"(i'?m |i am )?(sorry|unable|not able)\b|i (cannot|can ?not|can't|can’t|won't)\b|as an ai\b", re.IGNORECASE
)
_NOTHING = {"", "n/a", "none", "null", "unknown", "..."}


class Default(Explainer):
    """Shows windows whole, the active tokens marked and listed with strengths 0–10 (paper §3.1 and A.2).

    The few-shot turns carry the format, so that base models, which only continue text, can answer too; a role
    limit of about 40 `max_tokens` keeps them short. The answer is the last line that begins with `EXPLANATION:`.
    """

    name = "default"
    llm_role = "explainer"
    prompts = (PROMPT,)

    examples: int = Field(default=40, ge=1)
    """Windows to show, at most: the first ones the sampler chose."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at this share of their window's maximum, or more, are marked."""
    shots: int = Field(default=3, ge=0, le=3)
    """Worked examples before the question."""
    prefill: bool = False
    """Whether to begin the answer (`EXPLANATION:`) for the model. Base models, which only continue text, need it;
    not every provider allows it."""

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Ask for an explanation of the activating windows."""
        windows = "\n".join(
            self._shown(number, example, examples.strengths(example))
            for number, example in enumerate(examples.activating[: self.examples], 1)
        )
        system, *shots, question = PROMPT.messages(windows=windows)
        begun = (Message("assistant", MARKER),) if self.prefill else ()
        request = Request(
            (system, *shots[: 2 * self.shots], question, *begun),
            # Where a base model would go on with another worked example.
            stop=("\n",) if self.prefill else ("\nWindow 1:",),
        )
        try:
            reply = await context.llm.complete(request)
        except Refused as error:
            return Explanation.failed(f"refused: {error}")
        except LLMError as error:
            return Explanation.failed(f"call failed: {error}")
        cut = reply.finish_reason == "length"
        try:
            if reply.finish_reason == "refusal":
                raise ParseError("the model declined")
            text = parse_explanation(MARKER + reply.text if self.prefill else reply.text, cut=cut)
        except ParseError as error:
            return Explanation.failed(str(error), reply=reply.text)
        return Explanation(text=text, notes={"reply": reply.text, "cut": cut})

    def _shown(self, number: int, example: Example, strengths: list[int]) -> str:
        marks = example.firing(self.threshold)
        pairs = ", ".join(
            f"({json.dumps(token, ensure_ascii=False)}, {strength})"
            for token, strength, mark in zip(example.tokens, strengths, marks, strict=True)
            if mark
        )
        return f"Window {number}: {marked_line(example, marks)}\nStrengths: {pairs}"


def parse_explanation(reply: str, *, cut: bool = False) -> str:
    """Return the explanation in a reply.

    Args:
        reply: The model's text. Reasoning, fences, quotes and emphasis around the answer are left out.
        cut: Whether the reply ended at the token limit; a complete answer before the last, cut one is preferred.

    Raises:
        ParseError: If there is none, it is too long, or the model declined.
    """
    lines = without_thinking(reply).splitlines()
    found = [(i, m[1]) for i, line in enumerate(lines) if (m := _MARKER.match(line))]
    if not found:
        raise ParseError("no line of the reply begins with EXPLANATION:")
    whole = [entry for entry in found if entry[0] < len(lines) - 1] if cut else found
    at, text = (whole or found)[-1]
    if not text.strip():
        text = next((line for line in lines[at + 1 :] if line.strip()), "")
    text = _unwrapped(text.replace("<<", "").replace(">>", ""))
    if text.lower().rstrip(".") in _NOTHING or not any(c.isalnum() for c in text):
        raise ParseError("the explanation is empty")
    if _DECLINED.match(text):
        raise ParseError("the model declined")
    if len(text) > LONGEST:
        raise ParseError(f"the explanation has {len(text)} characters, more than {LONGEST}")
    return text


def _unwrapped(text: str) -> str:
    """Take off quotes and emphasis that stand around the whole text."""
    text = text.strip()
    for left, right in _PAIRS:
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and inner and left not in inner and right not in inner:
            return _unwrapped(inner)
    return text
