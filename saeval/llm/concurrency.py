"""Fixed and adaptive limits on concurrent calls."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

_FIRST, _MOST = 8, 256  # initial and highest adaptive limit
_ROUND = 32  # least number of answers from which a rate is measured
_STEADY = 1.25  # factor between limits in trials after the first doubling
_LONGEST_HOLD = 16  # rounds between two trials at most


class Limiter:
    """Lets a bounded number of calls through, first come, first served.

    Not bound to an event loop until first used; can be used again in a new loop.

    Args:
        limit: Maximum number of calls in flight.

    Attributes:
        limit: The same.
        in_flight: Number of calls in flight.
        epoch: Counter that increases when the limit changes.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.in_flight = 0
        self.epoch = 0
        self._waiting: deque[asyncio.Future[int]] = deque()

    async def enter(self) -> int:
        """Wait for a slot; return the epoch, which `leave` requires."""
        if self.in_flight < self.limit:
            self.in_flight += 1
            return self.epoch
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the slot went to a cancelled call
                self.leave(place.result(), None)
            raise

    def leave(self, epoch: int, refused: bool | None) -> None:
        """Release the slot to the next call.

        Args:
            epoch: What `enter` returned.
            refused: Whether the call failed in a way that too many calls may cause; None if that is not known.
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
    """Adapts the limit to the server: raises it while that increases throughput and the server accepts the calls.

    While calls wait, it tries other limits: first it doubles the limit; after the first trial without success it tries
    25% more and 20% less in turn, with longer and longer pauses. A higher limit is kept if the throughput grows by at
    least half as much as the limit (in percent), a lower one if it shrinks by less than half as much: a server that
    only queues calls does not answer more of them. If the server refuses calls during a trial, the trial ends. If it
    refuses calls at other times, the limit falls by a third, and doubles when calls are answered again, up to the
    earlier limit, since the fault may have been temporary. Only calls that started under the present limit count.

    Args:
        clock: Returns the time in seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__(_FIRST)
        self._clock = clock
        self._factor = 2.0  # of the next trial
        self._before: tuple[int, float] | None = None  # limit and answers per second before the present trial
        self._hold, self._patience = 0, 2  # rounds until the next trial, and after the next unsuccessful trial
        self._known = 0  # the limit that worked until calls were refused
        self._begin()

    def _begin(self) -> None:
        """Start to measure under a new limit."""
        self.epoch += 1
        self._older = self.in_flight  # calls in flight that started under another limit
        self._observe()

    def _observe(self) -> None:
        self._answered = self._refused = 0
        self._count, self._since = 0, self._clock()

    def leave(self, epoch: int, refused: bool | None) -> None:
        """Release the slot to the next call, and adapt the limit to the outcome of this one."""
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
            self._count, self._since = 0, self._clock()  # the rate does not measure the server under this limit
        elif refused is False:
            self._count += 1
            # Calls that start together end together, so the rate is measured over whole rounds.
            rounds = 1 if self.limit < self._known else math.ceil(_ROUND / self.limit)
            if self._count >= self.limit * rounds:
                self._learn(self._count / max(self._clock() - self._since, 1e-9))

    def _learn(self, rate: float) -> None:
        """Judge the present trial, or start one when it is due."""
        if self.limit < self._known:
            self._try(min(self._known, 2 * self.limit), 0.0)
            return
        self._known = 0
        if self._before is not None:
            was, rate_before = self._before
            if rate < rate_before * (1 + (self.limit / was - 1) / 2):
                self._revert()
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

    def _revert(self) -> None:
        """Return to the limit before the trial, and wait longer until the next trial."""
        assert self._before is not None
        (was, _), self._before = self._before, None
        self._turn()
        self._hold, self._patience = self._patience, min(_LONGEST_HOLD, 2 * self._patience)
        self._change(was)

    def _back_off(self) -> None:
        if self._before is not None and self._before[0] < self.limit:
            self._known = 0
            self._revert()
        else:
            self._known = max(self._known, self.limit)
            self._before = None
            self._change(max(1, int(min(self.limit, self.in_flight + 1) * 2 / 3)))

    def _change(self, limit: int) -> None:
        self.limit = limit
        self._begin()
        self._admit()
