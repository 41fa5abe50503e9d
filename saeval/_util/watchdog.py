"""Detects plugins that hang or exit, work that stalls, and memory that runs out."""

from __future__ import annotations

import asyncio
import inspect
import math
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from saeval._util.errors import InputError, SaevalError

T = TypeVar("T")

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


class Hung(Exception):
    """Raised if a plugin neither finishes nor asks a model within the time that a run waits."""


class PluginExit(SaevalError):
    """Raised if a plugin exits or cancels itself; only its own work fails then, not the run."""


class NotAsync(PluginExit):
    """Raised if a plugin's method returns something that cannot be awaited, as it will in each call."""


class Patience:
    """Timer for hanging plugins; restarts at every sign of progress, and pauses while a model is being asked.

    All latents in flight share one timer, because they may wait for each other: if one makes progress, the others do
    not hang.

    Args:
        seconds: How long a run waits without progress.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._last = time.monotonic()
        self._asking = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Pause the timer within this context, while a model is being asked."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            self.moved()

    def moved(self) -> None:
        """Restart the timer, since something started or finished."""
        self._last = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until the work in flight counts as hung."""
        return self.seconds if self._asking else self._last + self.seconds - time.monotonic()

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Wait for a plugin's work as long as there is progress.

        Raises:
            Hung: If there was no progress; the work is cancelled.
        """
        if math.isinf(self.seconds):
            return await work
        task = asyncio.ensure_future(work)
        self.moved()  # there may have been no work for a while
        try:
            while not task.done():
                if (left := self.left) <= 0:
                    raise Hung(f"it neither finished nor asked a model for {self.seconds:g} s and was cancelled")
                await asyncio.wait({task}, timeout=left)
            return task.result()
        finally:
            task.cancel()  # not awaited, since hanging work may ignore the cancellation
            task.add_done_callback(mark_seen)  # it may have ended while its awaiter was cancelled
            self.moved()


def being_cancelled() -> bool:
    """Return whether the current task is cancelled from outside, unlike code in it that raises `CancelledError`."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def contained(method: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Call a plugin's method and wait for it.

    Raises:
        NotAsync: If the method is not async.
        PluginExit: If it raised `SystemExit`, a panic of another language, or `CancelledError` without being cancelled.
    """
    try:
        call = method(*arguments)
        if not inspect.isawaitable(call):
            name = getattr(method, "__name__", "method")
            raise NotAsync(f"the plugin's `{name}` is not async; write `async def {name}`")
        return await call
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except asyncio.CancelledError:
        if being_cancelled():
            raise
        what = "was cancelled by itself, or awaited a task of its own that was cancelled"
        raise PluginExit(f"the plugin {what}") from None
    except BaseException as error:
        raise PluginExit(f"the plugin raised {type(error).__name__} ({error})") from error


def mark_seen(task: asyncio.Future[Any]) -> None:
    """Prevent asyncio from reporting the exception of a task that is no longer awaited."""
    if not task.cancelled():
        task.exception()


@contextmanager
def interrupt_if_blocked(seconds: float) -> Iterator[None]:
    """Within this context, raise `Hung` in code that blocks the running event loop for too long.

    Works in the main thread on Unix, where a signal can interrupt the code; elsewhere it does nothing.

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
            turned = time.monotonic()  # the next blocking code gets the full time
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
def watch_standstill(standstill: float, moved: Callable[[], float], tell: Callable[[float], None]) -> Iterator[None]:
    """Within this context, report repeatedly if there is no progress for a while, without interrupting anything.

    For work that cannot be distinguished from a hang, such as loading a model for an hour.

    Args:
        standstill: Seconds without progress before each report.
        moved: Returns the time of the last progress, by the monotonic clock.
        tell: Called with the seconds since then, from another thread.
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
    """Return the share of memory that is available to this process, 0 to 1; None if unknown."""
    return min((left / total for left, total in _memories()), default=None)


def check_memory(what: str, size: int) -> None:
    """Check that there is enough memory to read something.

    Args:
        what: Its name, for the error message.
        size: Bytes that it takes.

    Raises:
        InputError: If less memory is available, as far as known.
    """
    left = min((left for left, _ in _memories()), default=math.inf)
    if size > left:
        raise InputError(
            f"{what}: takes {size / 2**30:,.1f} GiB of memory, but {left / 2**30:,.1f} GiB are free; use a larger "
            f"machine, or check that it is the right file"
        )


def _memories() -> Iterator[tuple[float, float]]:
    """Yield available and total bytes of memory, for the machine and for the container."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        lines = _MEMORY.read_text().splitlines()
        values = {name: 1024 * float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        yield values["MemAvailable"], values["MemTotal"]
    with suppress(OSError, ValueError, KeyError):  # no limit reads "max"
        limit = float((_GROUP / "memory.max").read_text())
        used = float((_GROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        caches = float(facts["inactive_file"]) + float(facts["active_file"])  # file caches, which can be released
        if limit:
            yield limit - used + caches, limit
