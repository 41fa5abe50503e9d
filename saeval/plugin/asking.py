"""Shared by explainers that ask a model: shows windows, asks, and parses the explanation."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence

from pydantic import Field

from saeval._util import LLMError, ParseError, Refused
from saeval.plugin.answers import ask_twice, shortened
from saeval.plugin.base import Context, Explainer
from saeval.plugin.prompt_text import marked_line
from saeval.records import Example, Examples, Explanation, Message, Prompt, Reply, Request, whole_answer

MARKER = "EXPLANATION:"
MOST_STRENGTHS = 8
"""Tokens of a window whose strengths are listed: of a dense latent, the strongest ones."""
LONGEST = 600
"""Maximum characters of an explanation; a longer one is not an explanation but a rambling reply."""

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
_NEXT_PART = re.compile(
    r"\s*(?:```|---|\w+(?: \w+){0,2}:(?:\s|$))"
)  # a fence, a rule, or a line with a label of its own
_ITEM = re.compile(r"\s*(?:[-*•–]|\(?\w{1,3}[.)])\s")
_AGAIN = 500  # what the second asking adds to `repeat`: more than explainers make candidates, less than judges repeat


class Asking(Explainer):
    """Shows a latent's windows in one prompt and reads the answer off the last line that begins with `EXPLANATION:`.

    Subclasses say what the prompt shows. The few-shot turns carry the format, so that base models, which only
    continue text, can answer too.
    """

    llm_role = "explainer"

    examples: int = Field(default=40, ge=1)
    """Maximum windows to show: the first ones the sampler chose."""
    shots: int = Field(default=3, ge=0, le=3)
    """Worked examples before the question."""
    prefill: bool = False
    """Whether to prefill the answer (`EXPLANATION:`). Base models, which only continue text, need it; not every
    provider allows it."""

    @abstractmethod
    def prompt(self) -> Prompt:
        """Return the prompt: system, three worked examples, the question."""

    @abstractmethod
    def slots(self, examples: Examples) -> dict[str, str]:
        """Return what fills the prompt's last turn."""

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Ask for an explanation."""
        system, *shots, question = self.prompt().messages(**self.slots(examples))
        return await ask(context, (system, *shots[: 2 * self.shots], question), prefill=self.prefill)


async def ask(
    context: Context,
    messages: Sequence[Message],
    *,
    prefill: bool = False,
    temperature: float | None = None,
    repeat: int = 0,
) -> Explanation:
    """Ask for an explanation, and once more if the reply holds none; whatever goes wrong is a failed one.

    No string stops a model that is free to think: servers look for it in the thinking, too.

    Args:
        context: The context of the latent.
        messages: The conversation, the question last.
        prefill: Whether to begin the answer for the model, and end it with the line.
        temperature: Sampling temperature; the role's own when None.
        repeat: Number of this repetition, where several answers are wanted.
    """
    begun = (Message("assistant", MARKER),) if prefill else ()
    request = Request((*messages, *begun), temperature=temperature, stop=("\n",) if prefill else (), repeat=repeat)
    shots = [] if prefill else [message.content for message in messages if message.role == "assistant"]
    worked = [_written(shot.splitlines()[-1]) for shot in shots]
    replies: list[Reply] = []

    def read(reply: Reply) -> str:
        replies.append(reply)
        return parse_explanation(reply, begun=prefill, worked=worked)

    try:
        text = await ask_twice(context.llm, request, read, again=_AGAIN)
    except Refused as error:
        return Explanation.failed(f"refused: {error}")
    except LLMError as error:
        return Explanation.failed(f"call failed: {error}")
    except ParseError as error:
        return Explanation.failed(str(error), reply=replies[-1].text)
    return Explanation(text=text, notes={"reply": replies[-1].text})


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
    strongest: dict[int, int] = {}  # by the token that shows them, the strongest of a character's marked tokens
    for i, at in enumerate(window.shown_at()):
        if marks[i]:
            strongest[at] = max(strongest.get(at, i), i, key=lambda k: window.activations[k])
    listed = sorted(sorted(strongest, key=lambda at: -window.activations[strongest[at]])[:MOST_STRENGTHS])
    texts = {at: json.dumps(window.tokens[at], ensure_ascii=False) for at in listed}
    pairs = ", ".join(f"({texts[at]}, {strengths[strongest[at]]})" for at in listed)
    return f"Window {number}: {marked_line(window, marks)}\nStrengths: {pairs}"


def parse_explanation(reply: Reply | str, *, begun: bool = False, worked: Collection[str] = ()) -> str:
    """Return the explanation in a reply.

    It is what follows the last `EXPLANATION:` at the beginning of a line, with the lines that continue it, as one
    line. Reasoning, fences, quotes and emphasis around it are taken off.

    Args:
        reply: The reply; a text counts as whole.
        begun: Whether the marker was written for the model; one that repeats it is read alike.
        worked: Explanations of the prompt's own examples, which a model restates while it thinks.

    Raises:
        ParseError: If the reply is not whole, holds no explanation, one that is too long or breaks off, or an example
            of the prompt, or if the model declined.
    """
    answer = whole_answer(reply)
    lines = (MARKER + answer if begun else answer).splitlines()
    found = [(i, m[1]) for i, line in enumerate(lines) if (m := _MARKER.match(line))]
    if not found:
        raise ParseError(f"no line of the reply {shortened(answer)!r} begins with EXPLANATION:")
    at, first = found[-1]
    text = _written(" ".join(_lines(first, lines[at + 1 :])))
    if text.lower().rstrip(".") in _NOTHING or not any(c.isalnum() for c in text):
        raise ParseError("the explanation is empty")
    if _DECLINED.match(text):
        raise ParseError("the model declined")
    if len(text) > LONGEST:
        raise ParseError(f"the explanation has {len(text)} characters, more than {LONGEST}")
    if text.endswith(":"):
        raise ParseError(f"the explanation {shortened(text)!r} breaks off")
    if text in worked or _written(first) in worked:
        raise ParseError(f"the reply restates the prompt's example {shortened(text)!r}")
    return text


def _lines(first: str, others: Sequence[str]) -> list[str]:
    """Return the lines of an explanation, up to a blank line (unless a list follows) or another part."""
    taken, blank = [first.strip()], False
    for line in others:
        if not line.strip():
            blank = True
            continue
        announced = not taken[-1] or taken[-1].endswith(":")
        listed = _ITEM.match(line) and _ITEM.match(taken[-1])
        if blank and not (announced or listed):
            break
        if _NEXT_PART.match(line) and not (announced and taken[-1]):
            break
        taken.append(line.strip())
        blank = False
    return [line for line in taken if line]


def _written(text: str) -> str:
    """Return an explanation without marker, marks of windows, quotes and emphasis."""
    while match := _MARKER.match(text):
        text = match[1]
    return _unwrapped(text.replace("<<", "").replace(">>", ""))


def _unwrapped(text: str) -> str:
    """Take off quotes and emphasis around the whole text."""
    text = text.strip()
    for left, right in _PAIRS:
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and inner and left not in inner and right not in inner:
            return _unwrapped(inner)
    return text
