"""Timeouts, retries with backoff, and reports of long waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass

from saeval._util import LLMError, counted, derive_rng
from saeval.llm.concurrency import Limiter
from saeval.plugin.base import LLM

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds between attempts
_LONGEST_ASKED = 600.0  # longest retry delay (seconds) accepted from a server once patience is used up
_TOLD = 5.0  # seconds; longer waits are reported to the user
_SILENCE = 30.0  # seconds without any answer after which that is reported
_TURNS = 2  # a call may wait for this multiple of the calls in flight, since servers need not keep their order
_REMEMBERED = 4096  # number of answers whose times are kept

log = logging.getLogger("saeval")


class Timeout:
    """Cancels calls that take too long, not counting the time in a server's queue.

    A server with one slot answers calls one after another, so the last call in its queue waits for all others. While
    other calls are answered, a call may wait for its turn: its timeout restarts with each answer, up to twice the
    number of calls that were in flight when it started.

    Args:
        seconds: How long a call may take; None for no limit.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._in_flight = 0
        self._answers: deque[float] = deque(maxlen=_REMEMBERED)
        self._count = 0

    def answered(self) -> None:
        """Record that a call was answered now."""
        self._count += 1
        self._answers.append(asyncio.get_running_loop().time())

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run a call.

        Raises:
            TimeoutError: If it takes too long.
        """
        return nullcontext() if self._seconds is None else self._limited()

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self._in_flight += 1
        begun, before, turns = loop.time(), self._count, _TURNS * self._in_flight
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            deadline = self._deadline(begun, before, turns)
            if deadline <= loop.time():
                limit.reschedule(loop.time())
            else:
                timer = loop.call_at(deadline, look)

        try:
            async with asyncio.timeout(None) as limit:
                look()
                yield
        finally:
            self._in_flight -= 1
            if timer is not None:
                timer.cancel()

    def _deadline(self, begun: float, before: int, turns: int) -> float:
        """Return when a call times out, given the answers to other calls so far."""
        assert self._seconds is not None
        counted = min(self._count - before, turns)
        later = self._count - before - counted
        if counted == 0 or later >= len(self._answers):
            return begun + self._seconds
        return self._answers[-1 - later] + self._seconds


@dataclass
class Attempts:
    """Decides whether and when to retry a failed call.

    Faults count against `retries`. A busy server that answers with a retry delay does not count: it is retried until
    `patience` is used up. Patience counts from the first failed attempt, without the time in saeval's own queues.

    Attributes:
        key: Key of the request; seeds the jitter, so waits differ between requests but not between runs.
        retries: Maximum attempts after the first.
        patience: Seconds to wait for a server that answers with a retry delay.
        made: Number of attempts so far.
        faults: Number of failed attempts that count against `retries`.
        failed: When the first attempt failed, moved forward by the time in saeval's own queues since; None before that.
    """

    key: str
    retries: int
    patience: float
    made: int = 0
    faults: int = 0
    failed: float | None = None

    def queued(self) -> AbstractContextManager[None]:
        """Exclude the time in this context, in which the call waits for others, from the patience."""
        return nullcontext() if self.failed is None else self._excluded(self.failed)

    @contextmanager
    def _excluded(self, failed: float) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.failed = failed + time.monotonic() - began

    def wait_after(self, error: LLMError) -> float | None:
        """Return the seconds to wait before the next attempt; None if the call is not retried."""
        if not error.retryable:
            return None
        now = time.monotonic()
        if self.failed is None:
            self.failed = now
        left = self.patience - (now - self.failed)
        asked = error.retry_after
        if asked is not None and asked > max(left, _LONGEST_ASKED):
            return None
        seconds = self._seconds(asked)
        if not (error.busy and seconds <= left):
            self.faults += 1
        return seconds if self.faults <= self.retries else None

    def _seconds(self, asked: float | None) -> float:
        """Return the delay that the server asks for, else an exponential backoff; both with jitter."""
        jitter = float(derive_rng(0, "wait", self.key, self.made).random())
        if asked is not None and _asks_for_time(asked):
            return asked + jitter * _FIRST_WAIT
        return float(min(_FIRST_WAIT * 2 ** min(self.made - 1, 32), _LONGEST_WAIT) * (0.5 + jitter / 2))


def _asks_for_time(asked: float | None) -> bool:
    """Whether a server asks for a delay; one of nearly 0, or until a date in the past, counts as none."""
    return asked is not None and asked >= _FIRST_WAIT


class Waits:
    """Reports long waits to the user: for a server that asks for a delay, or for one that does not answer."""

    def __init__(self, role: str, llm: LLM, limiter: Limiter, tell: Callable[[str], None]):
        self._role, self._llm, self._limiter, self._tell = role, llm, limiter, tell
        self._told_until = 0.0
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def report(self, seconds: float, error: LLMError) -> None:
        """Report that a call is retried after a delay; overlapping waits are reported once."""
        now = time.monotonic()
        if seconds >= _TOLD and now >= self._told_until:
            self._told_until = now + seconds
            who = "the server asked for it" if _asks_for_time(error.retry_after) else "then retrying"
            self._say(f"waiting {seconds:.0f} s, {who} ({error})")

    def _say(self, text: str) -> None:
        log.info("%s: %s", self._role, text)
        self._tell(f"{self._role}: {text}")

    def begin(self) -> None:
        """Record the start of a call, and start to watch for silence."""
        if self._timer is None:
            self._heard = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(_SILENCE, self._listen)

    def heard(self) -> None:
        """Record that an answer arrived."""
        self._heard = time.monotonic()

    def _listen(self) -> None:
        """Report if no answer arrived for a while; check again later as long as calls are in flight."""
        self._timer = None
        if self._limiter.in_flight:
            silent = time.monotonic() - self._heard
            if told := silent >= _SILENCE:
                why = self._llm.waiting_for()
                calls = counted(self._limiter.in_flight, "call")
                self._say(f"no answer for {silent:.0f} s, {calls} in flight{why and ': '}{why}")
            delay = silent if told else _SILENCE - silent
            self._timer = asyncio.get_running_loop().call_later(delay, self._listen)

    def end(self) -> None:
        """Stop watching for silence."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
