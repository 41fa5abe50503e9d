"""Signals that stop a command as Ctrl-C does, wherever it was started."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOPPED = 130
"""Exit code of a command that was told to stop."""


def stop_as_on_ctrl_c() -> None:
    """Let SIGTERM, SIGQUIT and SIGHUP do what Ctrl-C does; a SIGHUP that is ignored (`nohup`) stays so.

    A shell starts what runs in its background with SIGINT ignored. There, Ctrl-C for others still does nothing, but
    the other signals stop the command as cleanly as anywhere.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)  # for asyncio, which takes its place while it runs
    for name in ("SIGTERM", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, _stop)


def leave_at_once() -> None:
    """From here on, end without a word when told to stop again."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _leave)


def _stop(_number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does at this moment: asyncio and the end of a run have handlers of their own."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(STOPPED)
