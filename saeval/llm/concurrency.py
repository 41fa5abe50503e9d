"""Fixed and adaptive limits on concurrent calls."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

_FIRST, _MOST = 8, 256  # calls in flight where none are said
_ROUND = 32  # answers at least by which a rate is known
_STEADY = 1.25  # by how much another limit is tried once the doubling is over
_LONGEST_HOLD = 16  # rounds between two trials


class Limiter:
    """Lets a bounded number of calls through, first come, first served.

    Belongs to no event loop until it is used, and to a new one after that loop is gone.

    Args:
        limit: Most calls in flight.

    Attributes:
        limit: The same.
        in_flight: Calls under way.
        epoch: Changes with the limit.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.in_flight = 0
        self.epoch = 0
        self._waiting: deque[asyncio.Future[int]] = deque()

    async def enter(self) -> int:
        """Wait for a place; return the epoch, which `leave` asks for."""
        if self.in_flight < self.limit:
            self.in_flight += 1
            return self.epoch
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the place was given to a cancelled call
                self.leave(place.result(), None)
            raise

    def leave(self, epoch: int, refused: bool | None) -> None:
        """Give the place to the next.

        Args:
            epoch: What `enter` returned.
            refused: Whether the call failed in a way that may come from too many of them; None where nothing is known.
        """
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(self.epoch)


class AdaptiveLimiter(Limiter):
    """Adapts the limit to the server: as many concurrent calls as it accepts and as make it faster.

    While calls wait, it tries other limits: twice as high at first; after the first trial that was in vain a quarter
    higher and a quarter lower in turn, with longer and longer pauses. A higher limit is kept if answers a second grow
    by half at least of what it grew by, a lower one if they shrink by less: servers that only put calls in line give no
    more of them. If a server refuses calls in a trial, the trial is over. If it does at other times, the limit falls by
    a third, and is doubled when calls are answered again, up to where it was: it may have been a passing fault. Only
    calls that began under the present limit count, so what comes of those before is not counted twice.

    Args:
        clock: Seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__(_FIRST)
        self._clock = clock
        self._factor = 2.0  # of the next trial
        self._before: tuple[int, float] | None = None  # limit, and answers a second, before the trial under way
        self._hold, self._patience = 0, 2  # rounds until the next trial, and after the next one that is in vain
        self._known = 0  # a limit that was good until calls were refused
        self._begin()

    def _begin(self) -> None:
        """Begin to observe under a new limit."""
        self.epoch += 1
        self._older = self.in_flight  # calls under way that began under another one
        self._observe()

    def _observe(self) -> None:
        self._answered = self._refused = 0
        self._count, self._since = 0, self._clock()

    def leave(self, epoch: int, refused: bool | None) -> None:
        """Give the place to the next, and learn from how the call ended."""
        busy = bool(self._waiting)
        super().leave(epoch, refused)
        if epoch != self.epoch:
            self._older -= 1
        elif refused is not None:
            self._answered += not refused
            self._refused += refused
            if self._refused > 2 + self._answered / 10:  # some calls fail at any server
                self._back_off()
                return
        if not busy or self._older > self.limit // 10:
            self._count, self._since = 0, self._clock()  # the rate is not the server's, or not of this limit
        elif refused is False:
            self._count += 1
            # Calls that begin together end together, so a rate is one of whole rounds.
            rounds = 1 if self.limit < self._known else math.ceil(_ROUND / self.limit)
            if self._count >= self.limit * rounds:
                self._learn(self._count / max(self._clock() - self._since, 1e-9))

    def _learn(self, rate: float) -> None:
        """Judge a trial that is under way, or begin one when it is time."""
        if self.limit < self._known:
            self._try(min(self._known, 2 * self.limit), 0.0)
            return
        self._known = 0
        if self._before is not None:
            was, rate_before = self._before
            if rate < rate_before * (1 + (self.limit / was - 1) / 2):
                self._in_vain()
            else:
                self._factor, self._patience = min(2.0, max(self._factor, self._factor**2)), 2
                self._try_next(rate)
        elif self._hold > 0:
            self._hold -= 1
            self._observe()
        else:
            self._try_next(rate)

    def _try_next(self, rate: float) -> None:
        if self.limit == (_MOST if self._factor > 1 else 1):
            self._turn()
        further = self.limit + 1 if self._factor > 1 else self.limit - 1
        limits = further, int(self.limit * self._factor)
        self._try(min(_MOST, max(limits)) if self._factor > 1 else min(limits), rate)

    def _try(self, limit: int, rate: float) -> None:
        self._before = self.limit, rate
        self._change(limit)

    def _turn(self) -> None:
        self._factor = 1 / _STEADY if self._factor > 1 else _STEADY

    def _in_vain(self) -> None:
        """Go back to the limit before the trial, and wait for longer."""
        assert self._before is not None
        (was, _), self._before = self._before, None
        self._turn()
        self._hold, self._patience = self._patience, min(_LONGEST_HOLD, 2 * self._patience)
        self._change(was)

    def _back_off(self) -> None:
        if self._before is not None and self._before[0] < self.limit:
            self._known = 0
            self._in_vain()
        else:
            self._known = max(self._known, self.limit)
            self._before = None
            self._change(max(1, int(min(self.limit, self.in_flight + 1) * 2 / 3)))

    def _change(self, limit: int) -> None:
        self.limit = limit
        self._begin()
        self._admit()
