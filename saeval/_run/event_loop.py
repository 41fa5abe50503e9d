"""Runs a coroutine to completion; Ctrl-C cancels it without breaking the event loop."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

_STUCK = 1.0  # seconds without reaction to Ctrl-C after which the event loop counts as blocked


def run_async(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine; in a separate thread if a loop is already running (notebooks).

    Raises:
        KeyboardInterrupt: If it was cancelled by Ctrl-C.
    """

    async def start() -> None:
        with _cancelled_by_ctrl_c():
            await main()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(start())
        return
    _run_in_thread(main)


def _run_in_thread(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine in a thread of its own; each Ctrl-C, which only the main thread receives, cancels it there.

    Raises:
        KeyboardInterrupt: If it was cancelled by Ctrl-C.
    """
    from concurrent.futures import ThreadPoolExecutor

    interrupted = False
    cancel: Callable[[], object] | None = None

    async def start() -> None:
        nonlocal cancel
        task = asyncio.current_task()
        assert task is not None
        cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        if interrupted:  # before there was anything to cancel
            raise asyncio.CancelledError
        await main()

    def ask(_number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        if cancel is not None:
            with suppress(RuntimeError):  # the loop has just closed
                cancel()

    with _on_ctrl_c(ask), ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(asyncio.run, start()).result()
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise


@contextmanager
def _on_ctrl_c(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Handle Ctrl-C within this context; in other threads than the main one it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[None]:
    """Within this context, each Ctrl-C cancels the task: the first stops it, the second stops waiting for answers.

    asyncio cancels the task only at the first Ctrl-C, and raises KeyboardInterrupt in the event loop at the next. That
    can lose a callback, so that a task is never resumed and the process never ends. Here KeyboardInterrupt is raised
    only in code that blocks the loop.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    asked_at: float | None = None  # when the cancellation was requested; None once it was handled
    interrupted = False

    def hear() -> None:
        nonlocal asked_at
        asked_at = None
        if task is not None:
            task.cancel()

    def ask(_number: int, _frame: object) -> None:
        nonlocal asked_at, interrupted
        interrupted = True
        if asked_at is None:
            asked_at = time.monotonic()
            loop.call_soon_threadsafe(hear)
        elif time.monotonic() - asked_at > _STUCK:
            raise KeyboardInterrupt

    with _on_ctrl_c(ask):
        try:
            yield
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise
