"""Parses lists of yes and no in replies, with the probability of each answer."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypeVar

from saeval._util import CutOff, ParseError
from saeval.plugin.prompt_text import one_line
from saeval.records import LanguageModel, Reply, Request, whole_answer

T = TypeVar("T")


async def ask_twice(llm: LanguageModel, request: Request, read: Callable[[Reply], T], again: int = 1) -> T:
    """Ask, and ask once more, as another repeat, when the reply cannot be read.

    A reply that was cut off is not asked for again: the gateway has done so already, with more room.

    Args:
        llm: The model.
        request: What to ask.
        read: Returns the answer in a reply, or raises `ParseError`.
        again: What the second asking adds to the request's `repeat`.

    Raises:
        ParseError: If the second reply cannot be read either.
        LLMError: If a call failed or was refused.
    """
    try:
        return read(await llm.complete(request))
    except CutOff:
        llm.discard(request)
        raise
    except ParseError:
        repeated = replace(request, repeat=request.repeat + again)
    try:
        return read(await llm.complete(repeated))
    except ParseError:
        for unread in (request, repeated):
            llm.discard(unread)
        raise


class Answer(NamedTuple):
    """One item of a judge's list, and its position in the reply."""

    value: bool
    at: int


_LIST = re.compile(r"\[([^\[\]]*)\]")
_LABEL = r"(?:(?:so|thus|therefore|hence|the|my|final|answers?|is|are|list|json|output|result)\b[\s:]*)*"
_BEFORE = re.compile(rf"[\s>*_`#({{-]*(?:[\"']\w+[\"']\s*:)?{_LABEL}[\s*_`:]*", re.IGNORECASE)
_AFTER = re.compile(r"[\s*_`.)}]*")
_ITEM = re.compile(r"""\s*(["']?)(0|1|true|false)\1\s*""", re.IGNORECASE)
_VALUE = re.compile(r"""\s*["']?(-?\d+(\.\d*)?|true|false)["']?\s*""", re.IGNORECASE)


def parse_list(reply: Reply | str, k: int) -> list[Answer]:
    """Read a judge's list of k answers: 0/1 or true/false, bare or quoted, on one line or several.

    Prose, fences, reasoning and brackets of other content around it are passed over. So is a single number in
    brackets within prose (`window [1]`, a reference): a list of one answer has its line for itself. When in doubt,
    there is no answer.

    Args:
        reply: The reply; a text counts as whole.
        k: Answers asked for.

    Raises:
        ParseError: If the reply is not whole, or there is no list, or one of another length or with other values, or
            lists that differ.
    """
    return list(_listed(whole_answer(reply), k))


@lru_cache(maxsize=256)  # most replies are bare lists, of which there are few: 32 with five answers
def _listed(text: str, k: int) -> tuple[Answer, ...]:
    bodies = [(m[1], m.start(1)) for m in _LIST.finditer(text)] or [(text, 0)]
    lists: list[list[Answer]] = []
    for body, start in bodies:
        pieces = _pieces(body)
        if not all(_VALUE.fullmatch(piece) for piece in pieces):
            continue
        if len(pieces) == 1 and (k > 1 or not _has_its_line(text, start - 1, start + len(body) + 1)):
            continue
        answers, at = [], start
        for piece in pieces:
            match = _ITEM.fullmatch(piece)
            if match is None:
                raise ParseError(f"the list [{one_line(body)[:60]}] holds other values than 0 and 1")
            answers.append(Answer(match[2].lower() in {"1", "true"}, at + match.start(2)))
            at += len(piece) + 1
        lists.append(answers)
    if not lists:
        raise ParseError(f"no list of {k} answers in the reply {shortened(text)!r}")
    if wrong := [len(answers) for answers in lists if len(answers) != k]:
        raise ParseError(f"a list of {wrong[0]} answers for {k} windows")
    values = [[answer.value for answer in answers] for answers in lists]
    if any(other != values[0] for other in values):
        raise ParseError(f"several lists that differ in the reply {shortened(text)!r}")
    return tuple(lists[-1])


def _has_its_line(text: str, start: int, end: int) -> bool:
    """Whether a bracketed part of a text is alone on its line, labels and markup aside."""
    before = text[text.rfind("\n", 0, max(start, 0)) + 1 : max(start, 0)]
    after = text[end:].partition("\n")[0]
    return bool(_BEFORE.fullmatch(before) and _AFTER.fullmatch(after))


def shortened(text: str) -> str:
    """Return the end of a reply for an error message, since answers come last."""
    line = one_line(text)
    return line if len(line) <= 80 else "…" + line[-80:]


def _pieces(body: str) -> list[str]:
    pieces = body.split(",")
    return pieces[:-1] if len(pieces) > 1 and not pieces[-1].strip() else pieces  # a trailing comma


def answer_probabilities(reply: Reply, answers: Sequence[Answer]) -> list[float | None]:
    """Return p(1) / (p(0) + p(1)) at each answer's token; None if the reply has no suitable log-probabilities."""
    if not reply.logprobs:
        return [None] * len(answers)
    tokens = [entry.token for entry in reply.logprobs]
    starts = list(accumulate(map(len, tokens), initial=0))
    shift = "".join(tokens).rfind(whole_answer(reply))  # the reasoning before may hold the same text as a draft
    found: list[float | None] = []
    for answer in answers:
        index = bisect_right(starts, answer.at + shift) - 1
        token, within = tokens[index], answer.at + shift - starts[index]
        if shift < 0 or token[within] not in "01":
            found.append(None)
            continue
        top = reply.logprobs[index].top
        zero, one = (_mass(top, token[:within] + digit + token[within + 1 :]) for digit in "01")
        found.append(one / (zero + one) if zero + one > 0 else None)
    return found


def _mass(alternatives: Iterable[tuple[str, float]], token: str) -> float:
    """Return the probability of a token, whatever space is around it."""
    return sum(math.exp(logprob) for text, logprob in alternatives if text.strip() == token.strip())
