"""Wraps standard output and error so that closed pipes, full devices and narrow encodings never stop a command."""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path
from typing import TextIO

_PATIENCE = 5.0  # seconds to wait for a reader if the pipe is non-blocking


class _Steady(io.RawIOBase):
    """A raw stream to a descriptor that never fails: it drops data once no reader is left."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._gone = False

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal that is still open."""
        try:
            return not self._gone and os.isatty(self._descriptor)
        except OSError:
            return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: object) -> int:
        """Write all of the data, or drop it."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        done = 0
        while done < len(view) and not self._gone:
            try:
                done += os.write(self._descriptor, view[done:])
            except BlockingIOError:
                self._gone = not select.select([], [self._descriptor], [], _PATIENCE)[1]
            except OSError:
                self._gone = True
        return len(view)


def steady_streams() -> None:
    """Protect the process's output and error; streams that a test or a notebook installed are not changed."""
    _open_all()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nothing())
        elif stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _steady(stream))


def _nothing() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _open_all() -> None:
    """Open the null device for standard descriptors that are closed.

    Otherwise the next opened file would get such a number, and libraries that use descriptor 2 would write into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _steady(stream: TextIO) -> TextIO:
    """Return a stream to the same descriptor that never raises and escapes characters that its encoding lacks."""
    try:
        raw = _Steady(stream.fileno())
    except (OSError, ValueError):
        return stream  # it has no descriptor
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )
