"""Tells whether a process holds a file's lock."""

from __future__ import annotations

import os
from pathlib import Path


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds the exclusive lock (`flock`) of a file; None if the system cannot tell.

    Only reads the file. It takes a shared lock for an instant, so a process that acquires the lock should try for
    longer than that.
    """
    try:
        import fcntl

        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks
        return None
    finally:
        os.close(file)  # releases the lock
    return False
