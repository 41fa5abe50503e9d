"""Identifies the exhausted resource behind an error: disk, memory, processes or open files."""

from __future__ import annotations

import errno
import sqlite3

_FILES = (
    "too many files are open in this process or on this machine; allow more with `ulimit -n 4096`, or close other "
    "programs"
)
_ROOM = "the disk or a quota is full; free some space"
_MEMORY = "there is not enough memory; end other programs, allow more (`ulimit -v`), or use a larger machine"
_WORDS = {
    errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM,
    errno.EFBIG: "a file would be larger than this process may write; allow more with `ulimit -f`",
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "this user cannot start more processes or threads; end others, or allow more with `ulimit -u`",
}  # fmt: skip


def shortage(error: BaseException | None) -> str | None:
    """Return which resource was exhausted when an error was raised, and the remedy; None if none was.

    Example:
        >>> shortage(MemoryError()).partition(";")[0]
        'there is not enough memory'
        >>> shortage(FileNotFoundError(2, "No such file"))
    """
    seen = 0
    while error is not None and seen < 10:
        words = _short_of(error)
        if words is not None:
            return words
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def os_reason(error: OSError) -> str:
    """Return why a file cannot be read or written, with a remedy if a resource is exhausted."""
    return shortage(error) or error.strerror or str(error)


def _short_of(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, sqlite3.Error):
        return _ROOM if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL else None
    if isinstance(error, OSError) and error.errno is not None:
        return _WORDS.get(error.errno)
    if isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    ):
        return _MEMORY
    return _WORDS[errno.EAGAIN] if isinstance(error, RuntimeError) and "can't start new thread" in str(error) else None
