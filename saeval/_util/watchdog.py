"""Detects plugins that hang, work that stalls, and memory that runs out."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from saeval._util.errors import InputError

T = TypeVar("T")

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


class Hung(Exception):
    """A plugin neither finished nor asked a model anything for as long as a run waits."""


class Patience:
    """Tells how long a run still waits: counted from when anything last moved, and not while a model is being asked.

    One for all latents in flight, because they may wait for each other: where one moves, the others are not hung.

    Args:
        seconds: How long a run waits.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._last = time.monotonic()
        self._asking = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask a model: however long its answer takes, no plugin hangs."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            self.moved()

    def moved(self) -> None:
        """Something finished or began."""
        self._last = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until what is in flight counts as hung."""
        return self.seconds if self._asking else self._last + self.seconds - time.monotonic()

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Wait for a plugin's work, as long as anything moves.

        Raises:
            Hung: If nothing did; the work is cancelled.
        """
        if math.isinf(self.seconds):
            return await work
        task = asyncio.ensure_future(work)
        self.moved()  # there may have been nothing to do for long
        try:
            while not task.done():
                if (left := self.left) <= 0:
                    raise Hung(f"it neither finished nor asked a model for {self.seconds:g} s and was cancelled")
                await asyncio.wait({task}, timeout=left)
            return task.result()
        finally:
            task.cancel()  # not waited for: what hangs may ignore it
            task.add_done_callback(mark_seen)  # it may have ended while its waiter was cancelled
            self.moved()


def mark_seen(task: asyncio.Future[Any]) -> None:
    """Keep asyncio from reporting the error of a task that has ended and that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


@contextmanager
def interrupting(seconds: float) -> Iterator[None]:
    """Raise `Hung` in the code that keeps the running event loop from turning for so long.

    Works in the main thread of Unix, where a signal can interrupt what blocks; elsewhere it does nothing.

    Args:
        seconds: How long the loop may be blocked.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    interval = seconds / 4
    turned = time.monotonic()
    timer: asyncio.TimerHandle | None = None

    def turn() -> None:
        nonlocal turned, timer
        turned = time.monotonic()
        timer = loop.call_later(interval, turn)

    def check(*_: object) -> None:
        nonlocal turned
        if (stood := time.monotonic() - turned) >= seconds:
            turned = time.monotonic()  # the next one who blocks has as long
            raise Hung(f"it blocked the whole run for {stood:.0f} s and was interrupted")

    turn()
    before = signal.signal(signal.SIGALRM, check)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if timer is not None:
            timer.cancel()


@contextmanager
def noticing(standstill: float, moved: Callable[[], float], tell: Callable[[float], None]) -> Iterator[None]:
    """Tell when nothing has moved for so long, and again after as long; nothing is interrupted.

    For work that nobody can tell from a hang, since it may load a model for an hour and then go on.

    Args:
        standstill: How long, in seconds.
        moved: Returns when anything moved last, by the monotonic clock.
        tell: Is called with the seconds since, from another thread.
    """
    over = threading.Event()

    def watch() -> None:
        told = 0.0
        while not over.wait(min(standstill / 4, 30.0)):
            now, last = time.monotonic(), moved()
            if now - max(last, told) >= standstill:
                told = now
                tell(now - last)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def memory_left() -> float | None:
    """Return the share of memory that is left to this process, 0 to 1; None if the system does not tell."""
    return min((left / total for left, total in _memories()), default=None)


def check_memory(what: str, size: int) -> None:
    """Check that there is memory for something before it is read.

    Args:
        what: What needs it, for the refusal.
        size: Bytes that it takes.

    Raises:
        InputError: If less is left, as far as the system tells.
    """
    left = min((left for left, _ in _memories()), default=math.inf)
    if size > left:
        raise InputError(
            f"{what}: takes {size / 2**30:,.1f} GiB of memory, and {left / 2**30:,.1f} GiB are free; use a larger "
            f"machine, or check that it is the right file"
        )


def _memories() -> Iterator[tuple[float, float]]:
    """Yield the bytes that are left, and those there are at all: of the machine, and of the container."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        lines = _MEMORY.read_text().splitlines()
        values = {name: 1024 * float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        yield values["MemAvailable"], values["MemTotal"]
    with suppress(OSError, ValueError, KeyError):  # no limit reads "max"
        limit = float((_GROUP / "memory.max").read_text())
        used = float((_GROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        caches = float(facts["inactive_file"]) + float(facts["active_file"])  # of files, which can be released
        if limit:
            yield limit - used + caches, limit
