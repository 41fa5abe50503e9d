"""Makes termination signals stop a command as Ctrl-C does."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType

STOPPED = 130
"""Exit code of a command stopped by a signal."""
_report_unraisable = sys.unraisablehook


def stop_as_on_ctrl_c() -> None:
    """Make SIGTERM, SIGQUIT and SIGHUP act like Ctrl-C; an ignored SIGHUP (`nohup`) stays ignored.

    A shell starts background commands with SIGINT ignored. There, Ctrl-C still does nothing, but the other signals
    stop the command cleanly.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio replaces it only if it is the default
    for name in ("SIGTERM", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, _stop)
    sys.unraisablehook = _raise_again


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that arrived in code that cannot raise, such as the callback of a weak reference."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, _press_again).start()
    else:
        _report_unraisable(unraisable)


def _press_again() -> None:
    if hasattr(signal, "pthread_kill"):  # also wakes a sleeping main thread
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main()


def _is_inside(code: CodeType, frame: FrameType | None) -> bool:
    """Whether a frame belongs to a call of the function with this code."""
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def ignore_signals_at_exit() -> None:
    """Ignore signals while Python exits, because default handlers would kill a process that has finished."""
    atexit.register(_handle_all, signal.SIG_IGN)


def leave_at_once() -> None:
    """Make the next signal exit at once without a message, even if work is unfinished."""
    sys.unraisablehook = lambda _: None  # hides warnings about coroutines that a second Ctrl-C interrupted
    if threading.current_thread() is threading.main_thread():
        _handle_all(_leave)


def _handle_all(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _stop(_number: int, frame: FrameType | None) -> None:
    """Call the current handler of Ctrl-C, which asyncio and the end of a run replace by their own."""
    if _is_inside(_raise_again.__code__, frame):  # cannot raise either
        threading.Timer(0.01, _press_again).start()
        return
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(STOPPED)
