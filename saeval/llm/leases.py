"""Leases on questions, so that processes sharing a cache ask each question once."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # Windows has no such locks
    import fcntl

_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.5  # seconds between two checks of a lease of another process
_HELD = (errno.EACCES, errno.EAGAIN)

log = logging.getLogger("saeval")


class Leases:
    """Leases on questions by key: locks on single bytes of a file, which the kernel releases if the process ends.

    If the system or the disk does not support such locks, every lease is granted, and each process asks for itself.

    Args:
        path: The lock file; it stays empty.
    """

    def __init__(self, path: Path):
        self._held: set[str] = set()
        self._file = _open(path)

    def take(self, key: str) -> bool:
        """Try to take a lease; return whether this call obtained it."""
        if key in self._held:
            return False
        if self._file is not None and not _lock(self._file, key):
            return False
        self._held.add(key)
        return True

    def release(self, key: str) -> None:
        """Release a lease, if this object holds it."""
        if key in self._held:
            self._held.remove(key)
            if self._file is not None:
                _unlock(self._file, key)

    async def wait(self, key: str, seconds: float) -> bool:
        """Wait until a lease is released, at most the given seconds; return whether it was released."""
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
        """Release all leases."""
        self._held.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open(path: Path) -> int | None:
    try:
        import fcntl

        if hasattr(fcntl, "F_OFD_SETLK"):  # per descriptor; other locks end at any close
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except (ImportError, OSError) as error:
        log.info("%s: no file locks (%s); processes that share the cache may ask a question twice", path, error)
    return None


def _lock(file: int, key: str) -> bool:
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK, key))
    except OSError as error:
        return error.errno not in _HELD  # a disk without locks: every lease is granted
    return True


def _unlock(file: int, key: str) -> None:
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK, key))


def _range(kind: int, key: str) -> bytes:
    """Return the `struct flock` of a key's byte."""
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, int(key[:15], 16), 1, 0)
