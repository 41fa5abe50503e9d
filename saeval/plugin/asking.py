"""What explainers that ask a model share: showing windows, putting one question, reading the explanation in the reply."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from pydantic import Field

from saeval import LLMError
from saeval._util import ParseError, Refused
from saeval.plugin.base import Context, Explainer
from saeval.plugin.prompt_text import marked_line, without_thinking
from saeval.records import Example, Examples, Explanation, Message, Prompt, Request

MARKER = "EXPLANATION:"
MOST_STRENGTHS = 8
"""Tokens of a window whose strengths are listed: of a dense latent, the strongest ones."""
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


class Asking(Explainer):
    """Shows a latent's windows in one prompt and reads the answer off the last line that begins with `EXPLANATION:`.

    Subclasses say what the prompt shows. The few-shot turns carry the format, so that base models, which only
    continue text, can answer too.
    """

    llm_role = "explainer"

    examples: int = Field(default=40, ge=1)
    """Windows to show, at most: the first ones the sampler chose."""
    shots: int = Field(default=3, ge=0, le=3)
    """Worked examples before the question."""
    prefill: bool = False
    """Whether to begin the answer (`EXPLANATION:`) for the model. Base models, which only continue text, need it;
    not every provider allows it."""

    @abstractmethod
    def prompt(self) -> tuple[Prompt, str]:
        """Return the prompt (system, three worked examples, the question) and how a base model would begin a fourth."""

    @abstractmethod
    def slots(self, examples: Examples) -> dict[str, str]:
        """Return what fills the prompt's last turn."""

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Ask for an explanation."""
        prompt, stop = self.prompt()
        system, *shots, question = prompt.messages(**self.slots(examples))
        return await ask(context, (system, *shots[: 2 * self.shots], question), stop=stop, prefill=self.prefill)


async def ask(
    context: Context,
    messages: Sequence[Message],
    *,
    stop: str = "",
    prefill: bool = False,
    temperature: float | None = None,
    repeat: int = 0,
) -> Explanation:
    """Ask for an explanation; whatever goes wrong with the call or the reply is a failed one.

    Args:
        context: The context of the latent.
        messages: The conversation, the question last.
        stop: String that ends the answer, if there is one.
        prefill: Whether to begin the answer for the model, and end it with the line.
        temperature: Sampling temperature; the role's own when None.
        repeat: Number of this repetition, where several answers are wanted.
    """
    begun = (Message("assistant", MARKER),) if prefill else ()
    end = "\n" if prefill else stop
    try:
        request = Request((*messages, *begun), temperature=temperature, stop=(end,) if end else (), repeat=repeat)
        reply = await context.llm.complete(request)
    except Refused as error:
        return Explanation.failed(f"refused: {error}")
    except LLMError as error:
        return Explanation.failed(f"call failed: {error}")
    cut = reply.finish_reason == "length"
    try:
        if reply.finish_reason == "refusal":
            raise ParseError("the model declined")
        text = parse_explanation(MARKER + reply.text if prefill else reply.text, cut=cut)
    except ParseError as error:
        limit = "; it was cut off at the role's max_tokens" if cut else ""
        return Explanation.failed(f"{error}{limit}", reply=reply.text)
    return Explanation(text=text, notes={"reply": reply.text, "cut": cut})


def show(windows: Iterable[Example], examples: Examples, threshold: float) -> str:
    """Return activating windows as the prompts show them: whole, marked, with strengths 0–10 (paper §3.2).

    Args:
        windows: The windows.
        examples: What they belong to; strengths are relative to its maximum.
        threshold: Tokens at this share of their window's maximum, or more, are marked and listed.
    """
    return "\n".join(
        _shown(number, window, examples.strengths(window), window.firing(threshold))
        for number, window in enumerate(windows, 1)
    )


def show_plain(windows: Iterable[Example]) -> str:
    """Return windows in which the latent is silent as the prompts show them: whole, with no mark."""
    return "\n".join(
        f"Window {number}: {marked_line(window, [False] * len(window.tokens))}"
        for number, window in enumerate(windows, 1)
    )


def _shown(number: int, window: Example, strengths: list[int], marks: list[bool]) -> str:
    marked = [i for i, mark in enumerate(marks) if mark]
    strongest = sorted(sorted(marked, key=lambda i: -window.activations[i])[:MOST_STRENGTHS])
    pairs = ", ".join(f"({json.dumps(window.tokens[i], ensure_ascii=False)}, {strengths[i]})" for i in strongest)
    return f"Window {number}: {marked_line(window, marks)}\nStrengths: {pairs}"


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
