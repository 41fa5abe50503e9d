"""Reads a number from 0 to 10 from a model's reply: the written number, or the expected value over alternatives."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from saeval.plugin import ParseError, Reply, one_line, whole_answer

_MARKUP, _BRACKETS = r"[\s*_`\"'$]*", r"[\s*_`\"'$()\[\]{}]*"
_LABEL = r"(?:the )?(?:answer|number|level|value|(?:activation )?strength|activation)(?: is)?"
_VALUE = r"(10(?:\.0+)?|[0-9](?:\.[0-9]+)?)"
_WHOLE = re.compile(  # a reply that consists only of the number
    rf"(?:```[a-z]+\n)?{_BRACKETS}(?:{_LABEL}{_BRACKETS}[:=]?{_BRACKETS})?{_VALUE}{_BRACKETS}"
    rf"(?:(?:/|out of) ?10{_BRACKETS})?\.?{_BRACKETS}",
    re.IGNORECASE | re.ASCII,
)
_PARAGRAPH = re.compile(  # one of several paragraphs, so it must not look like a list item
    rf"(?:```[a-z]+\n)?{_MARKUP}(?:{_LABEL}{_MARKUP}[:=]?{_MARKUP})?{_VALUE}{_MARKUP}", re.IGNORECASE | re.ASCII
)
_LEVEL = re.compile(r"\s*(10|[0-9])\s*", re.ASCII)


def strength(reply: Reply) -> float:
    """Return the number in a reply or, given alternatives to its token, the expected value over them.

    The expected value is over whole numbers that are single tokens. If the tokenizer splits "10" into two tokens, its
    probability is counted for 1, unless 10 is the answer.

    Raises:
        ParseError: If the reply is incomplete, has no number, or is ambiguous.
    """
    written, at = find_number(reply)
    expected = _expected(reply, written, at)
    return float(written) if expected is None else expected


def find_number(reply: Reply | str) -> tuple[str, int]:
    """Find the number from 0 to 10 that is the whole reply, apart from markup and a word such as `Strength:`.

    It may also be the first or last paragraph if no other one has a digit. An ambiguous reply has no number.

    Returns:
        The number as written, and its position in the answer.

    Raises:
        ParseError: If there is none, or the reply is incomplete.
    """
    text = whole_answer(reply)
    paragraphs = list(_paragraphs(text))
    pattern = _WHOLE if len(paragraphs) == 1 else _PARAGRAPH
    found = [(m, at) for at, paragraph in paragraphs if (m := pattern.fullmatch(paragraph))]
    digits = [at for at, paragraph in paragraphs if any(map(str.isnumeric, paragraph))]
    if len(found) != 1 or len(digits) != 1 or found[0][1] not in (paragraphs[0][0], paragraphs[-1][0]):
        raise ParseError(f"no single number from 0 to 10 in the reply {one_line(text)[:60]!r}")
    match, at = found[0]
    return match[1], at + match.start(1)


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield the position and text of each paragraph (consecutive non-blank lines), stripped."""
    begin: int | None = None
    at = 0
    for line in [*text.split("\n"), ""]:
        if line.strip():
            begin = at if begin is None else begin
        elif begin is not None:
            run = text[begin:at]
            yield begin + len(run) - len(run.lstrip()), run.strip()
            begin = None
        at += len(line) + 1


def _expected(reply: Reply, written: str, at: int) -> float | None:
    """Return the expected value over the alternatives to the written number; None if there are no probabilities."""
    tokens = [entry.token for entry in reply.logprobs or ()]
    starts = list(accumulate(map(len, tokens), initial=0))
    shift = "".join(tokens).rfind(whole_answer(reply))
    index = bisect_right(starts, at + shift) - 1
    if shift < 0 or not reply.logprobs or tokens[index].strip() != written:
        return None
    weights = [
        (int(m[1]), math.exp(value)) for text, value in reply.logprobs[index].top if (m := _LEVEL.fullmatch(text))
    ]
    total = sum(weight for _, weight in weights)
    return sum(level * weight for level, weight in weights) / total if total > 0 else None
