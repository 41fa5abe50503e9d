"""Puts windows and replies on one line, so that corpus text cannot imitate the prompt's structure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from saeval.records import Example, Prompt, with_marks

_ESCAPED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_BREAKS = {c: _ESCAPED.get(chr(c), " ") for c in [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029]}
_LONE_SPACE = re.compile(r"<<( +)>>")


def escaped(text: str) -> str:
    r"""Return text with line breaks written as `\n` and other control characters as spaces, and nothing stripped."""
    return text if text.isprintable() else text.translate(_BREAKS)


def few_shot(prompt: Prompt) -> tuple[str, Prompt]:
    """Return the worked examples of a prompt for base models, and its last paragraph, which is to be continued."""
    examples, _, paragraph = prompt.text.rstrip("\n").rpartition("\n\n")
    return examples + "\n\n", Prompt(prompt.name, paragraph)


def one_line(text: str) -> str:
    r"""Return text with line breaks written as `\n` and other control characters as spaces."""
    return escaped(text).strip()


def marked_line(example: Example, marks: Sequence[bool]) -> str:
    """Return the window on one line, runs of marked tokens between `<<` and `>>`.

    Where the text itself holds `<<` or `>>`, it is shown with ‹‹ or ››, so that all marks are ours. Marked spaces with
    nothing else between the marks are shown as ␣.
    """
    text = example.text
    tokens = example.tokens
    if "<<" in text or ">>" in text:
        shown = text.replace("<<", "‹‹").replace(">>", "››")
        ends = [*accumulate(map(len, tokens))]
        tokens = tuple(shown[end - len(token) : end] for token, end in zip(tokens, ends, strict=True))
    return one_line(_LONE_SPACE.sub(_visible, with_marks(tokens, marks)))


def _visible(marked: re.Match[str]) -> str:
    return f"<<{'␣' * len(marked[1])}>>"
