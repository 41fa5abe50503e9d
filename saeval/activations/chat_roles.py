"""Finds the tokens of a conversation that are in turns of given roles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saeval._util import InputError
from saeval.activations.row_texts import Template

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Span = tuple[int, int]
"""Start and end (exclusive) of a span, in characters."""
_BEGIN, _END = "\ufdd0", "\ufdd1"  # noncharacters, which text does not contain (Unicode 23.7)
_TURN = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")


class RoleMarks:
    """Finds the turns of given roles in a text that a chat template renders, with marker characters around each turn.

    A template may trim, move or drop the content of a turn: the markers move with it, and a turn that lacks a marker is
    not found.

    Args:
        roles: The roles to find.

    Attributes:
        seen: Roles of the conversations rendered so far.
    """

    def __init__(self, roles: Collection[str]):
        self._roles = frozenset(roles)
        self.seen: set[str] = set()

    def marking(self, template: Template) -> Template:
        """Return a template that puts markers around the content of the roles' turns."""

        def write(turns: Sequence[Mapping[str, str]]) -> str:
            self.seen |= {turn["role"] for turn in turns}
            return _paired(template([self._marked(turn) for turn in turns]))

        return write

    def _marked(self, turn: Mapping[str, str]) -> dict[str, str]:
        content = _unmarked(turn["content"])
        inner = content.strip()
        if turn["role"] not in self._roles or not inner:
            return {**turn, "content": content}
        # Inside the outer white space, since a template may trim that.
        before, _, after = content.partition(inner)
        return {**turn, "content": f"{before}{_BEGIN}{inner}{_END}{after}"}

    def found(self, text: str) -> tuple[str, list[Span]]:
        """Return a text without markers, and the spans between them."""
        plain, spans, length = [], [], 0
        for number, piece in enumerate(text.split(_BEGIN)):
            said, end, rest = piece.partition(_END)
            if number and end:
                spans.append((length, length + len(said)))
            plain.append(said + _unmarked(rest))
            length += len(plain[-1])
        return "".join(plain), spans

    @staticmethod
    def carried(pieces: Iterable[str]) -> Iterator[str]:
        """Yield the pieces of one text with markers around each part of a turn that was cut."""
        inside = False
        for piece in pieces:
            marked = _BEGIN + piece if inside else piece
            inside = marked.rfind(_BEGIN) > marked.rfind(_END)
            yield marked + _END if inside else marked

    def none_found(self) -> InputError:
        """Return the error for a corpus without any turn of the roles."""
        seen = ", ".join(sorted(self.seen)) or "no conversation"
        roles = ", ".join(sorted(self._roles))
        return InputError(f"corpus.roles: no text of {roles} was found; the corpus has: {seen}")


def _paired(text: str) -> str:
    """Remove the markers that lack the other one of their pair, so that they are not carried into the next turn."""
    pieces = _TURN.split(text)
    pieces[::2] = map(_unmarked, pieces[::2])
    pieces[1::2] = [f"{_BEGIN}{turn}{_END}" for turn in pieces[1::2]]
    return "".join(pieces)


def _unmarked(text: str) -> str:
    return text.replace(_BEGIN, "").replace(_END, "")


def tokens_within(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], NDArray[np.bool_]]:
    """Return a text's token ids, and a mask of those that overlap one of the spans.

    Raises:
        InputError: If the tokenizer does not return the character offsets of tokens.
    """
    import numpy as np

    if not getattr(tokenizer, "is_fast", False):
        raise InputError("corpus.roles: the model's tokenizer does not give token positions (it is not a fast one)")
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    starts, ends = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    within = np.zeros(len(starts), dtype=np.bool_)
    for first, behind in spans:
        within |= (starts < behind) & (ends > first)
    return list(found["input_ids"]), within
