"""Leases on questions, so that processes sharing a cache ask each question once."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
from pathlib import Path

_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.5  # seconds between two checks of a lease of another process
_HELD = (errno.EACCES, errno.EAGAIN)

log = logging.getLogger("saeval")


class Leases:
    """Leases on questions by key: locks on bytes of a file, which the kernel drops with their process.

    Where a system or a disk has no such locks, every question is free, and each process asks for itself.

    Args:
        path: The file; nothing is ever written into it.
    """

    def __init__(self, path: Path):
        self._held: set[str] = set()
        self._file = _open(path)

    def take(self, key: str) -> bool:
        """Take a lease, unless somebody else has it; tell whether it is ours now."""
        if key in self._held:
            return False
        if self._file is not None and not _lock(self._file, key):
            return False
        self._held.add(key)
        return True

    def release(self, key: str) -> None:
        """Give a lease back, if it is ours."""
        if key in self._held:
            self._held.remove(key)
            if self._file is not None:
                _unlock(self._file, key)

    async def wait(self, key: str, seconds: float) -> bool:
        """Wait until nobody has a lease, or for so long; tell whether it was released."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + seconds, _FIRST_LOOK
        while loop.time() < until:
            await asyncio.sleep(pause)
            if self.take(key):
                self.release(key)
                return True
            pause = min(pause * 1.5, _LONGEST_LOOK)
        return False

    def close(self) -> None:
        """Give all leases back."""
        self._held.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open(path: Path) -> int | None:
    try:
        import fcntl

        if hasattr(fcntl, "F_OFD_SETLK"):  # locks of the descriptor: others of a process vanish with any close
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except (ImportError, OSError) as error:
        log.info("%s: no leases (%s), so processes that share the cache may ask a question twice", path, error)
    return None


def _lock(file: int, key: str) -> bool:
    import fcntl

    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK, key))
    except OSError as error:
        return error.errno not in _HELD  # a disk without locks lends none
    return True


def _unlock(file: int, key: str) -> None:
    import fcntl
    from contextlib import suppress

    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK, key))


def _range(kind: int, key: str) -> bytes:
    """Return the `struct flock` of a key's byte."""
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, int(key[:15], 16), 1, 0)
