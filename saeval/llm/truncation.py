"""Decides whether a truncated answer is asked for again with more room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_AT_ONCE = 2  # questions that are given more room at a time, until it has helped once
_HOPELESS = 3  # answers in a row that were cut with all the room, where none was ever whole with it
_UNLUCKY = 20  # likewise, where one was

log = logging.getLogger("saeval")


class TruncationPolicy:
    """What is known of a role's need for more tokens than `max_tokens`.

    Args:
        role: Role of the spec.
        tokens: Its `max_tokens`.
        most: Its `max_tokens_if_cut`.
        tell: Where a user is told.

    Attributes:
        needed: Whether an answer was whole only with more room, so that every question gets it at once.
    """

    def __init__(self, role: str, tokens: int, most: int, tell: Callable[[str], None]):
        self._role, self._tokens, self._most, self._tell = role, tokens, most, tell
        self.needed = False
        self._helped = False
        self._any_whole = False
        self._cuts = 0
        self._trying: set[int] = set()
        self._changed = asyncio.Event()

    @property
    def _given_up(self) -> bool:
        return self._cuts >= (_UNLUCKY if self._helped else _HOPELESS)

    async def settled(self) -> None:
        """Wait while it is tried whether more room helps, if no answer was whole yet: others would be cut, too."""
        while self._trying and not (self._any_whole or self._given_up):
            await self._changed.wait()

    async def turn(self, question: object) -> bool:
        """Wait until it is known whether room helps, or it is this question's turn to try; return whether to ask."""
        while not (self._helped or self._given_up or len(self._trying) < _AT_ONCE):
            await self._changed.wait()
        if self._given_up:
            return False
        self._trying.add(id(question))
        return True

    def leave(self, question: object) -> None:
        """End a question's turn."""
        self._trying.discard(id(question))
        self._wake()

    def note(self, *, whole: bool, raised: bool) -> None:
        """Note whether an answer was whole, and whether it had all the room."""
        self._any_whole |= whole
        if not raised:
            return
        self._helped |= whole
        self.needed |= whole
        before = self._given_up
        self._cuts = 0 if whole else self._cuts + 1
        if self._given_up and not before:
            self._say_so()
        self._wake()

    def _say_so(self) -> None:
        self.needed = False
        text = (
            f"{self._role}: {self._cuts} answers in a row were cut off even at {self._most:,} tokens, so it gets "
            f"{self._tokens:,} from now on; take another model, or raise max_tokens_if_cut"
        )
        log.warning("%s", text)
        self._tell(text)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
