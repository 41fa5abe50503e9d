"""Write files so that they are either whole or not there, and lines likewise."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

from saeval.errors import InputError


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file beside its place, flush it to disk, and move it there.

    Raises:
        InputError: If the place cannot be written to.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


class LineFile:
    """A file that grows by whole lines, one process and any number of threads at a time.

    A line is in the file, for good, when `append` returns, whatever becomes of the process; a line that a kill or a
    full disk cut short is ended or taken back, so that it spoils no other.

    Args:
        path: The file; made with the first line. A symbolic link is refused, wherever it leads.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._handle: int | None = None

    def append(self, line: str) -> None:
        """Add a line.

        Raises:
            InputError: If there is no room, or the file cannot be written to; nothing is added then.
        """
        data = line.encode() + b"\n"
        with self._lock:
            try:
                handle = self._open()
                size = os.fstat(handle).st_size
                try:
                    while data:
                        data = data[os.write(handle, data) :]
                except OSError:
                    os.ftruncate(handle, size)
                    raise
            except OSError as error:
                raise InputError(
                    f"{self.path}: cannot be written ({error.strerror or error}); nothing is lost: mend it, or make room, "
                    "and run the same command again"
                ) from None

    def _open(self) -> int:
        if self._handle is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self._handle = os.open(self.path, flags, 0o666)
            if size := os.fstat(self._handle).st_size:
                os.lseek(self._handle, size - 1, os.SEEK_SET)
                if os.read(self._handle, 1) != b"\n":
                    os.write(self._handle, b"\n")
        return self._handle

    def close(self) -> None:
        """Close the file; another line opens it again."""
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
