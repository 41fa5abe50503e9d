"""Decides whether a truncated answer is asked for again with a higher token limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_AT_ONCE = 2  # questions that try the higher limit at a time, until it has helped once
_HOPELESS = 3  # give up after this many truncated answers in a row at the higher limit, if it never helped
_UNLUCKY = 20  # the same, if it helped before

log = logging.getLogger("saeval")


class TruncationPolicy:
    """Tracks whether a role needs more tokens than `max_tokens`.

    Args:
        role: Role of the spec.
        tokens: Its `max_tokens`.
        most: Its `max_tokens_if_cut`.
        tell: Called with messages to the user.

    Attributes:
        needed: Whether the higher limit completed an answer that was cut off before; then every question gets it.
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

    @property
    def is_settled(self) -> bool:
        """Whether to ask with `max_tokens`: False while questions try the higher limit and no answer is complete yet,
        since others would be cut off, too."""
        return not self._trying or self._any_whole or self._given_up

    async def settled(self) -> None:
        """Wait until `is_settled`."""
        while not self.is_settled:
            await self._changed.wait()

    async def turn(self, question: object) -> bool:
        """Wait until the higher limit has helped or this question may try it; return whether to ask again."""
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
        """Record whether an answer was complete, and whether it had the higher limit."""
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
            f"{self._role}: {self._cuts} answers in a row were cut off even at {self._most:,} tokens, so the limit is "
            f"{self._tokens:,} from now on; choose another model, or raise max_tokens_if_cut"
        )
        log.warning("%s", text)
        self._tell(text)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
