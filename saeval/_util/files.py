"""Writes files and lines atomically, and reads JSON with the place of its errors."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeval._util.encodable import clean, has_halves
from saeval._util.errors import InputError
from saeval._util.limits import os_reason
from saeval._util.plain_files import refuse_pipe


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file beside `path`, which takes its place, flushed to disk, when all went well, and is gone when not.

    Raises:
        InputError: If the place cannot be written to.
    """
    try:
        temporary = _new_beside(path)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({os_reason(error)})") from error


def _new_beside(path: Path) -> Path:
    """Make an empty file of a name of its own, with the permissions that the umask leaves."""
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}"
    os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file atomically; on failure, the old file remains.

    Raises:
        InputError: If the place cannot be written to.
    """
    with replacing(path) as file:
        file.write_bytes(data.encode(errors="replace") if isinstance(data, str) else data)


def parse_json(text: str) -> Any:
    """Parse JSON; half of a surrogate pair, which it can spell and UTF-8 cannot, becomes U+FFFD."""
    value = json.loads(text)
    return clean(value) if has_halves(text) else value


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: If it is not there, not whole, or not JSON.
    """
    refuse_pipe(file)
    try:
        return parse_json(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({os_reason(error)})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: is not JSON ({error.msg}, column {error.colno})") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: is not UTF-8 text") from None
    except RecursionError:
        raise InputError(f"{file}: is nested too deeply") from None


def read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a `.jsonl` or `.jsonl.gz` file, each with its place.

    Raises:
        InputError: If it is not there, not whole, or a line is not JSON.
    """
    import gzip
    import zlib

    where = str(file)
    refuse_pipe(file)
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{file}:{number}"
                if line.strip():
                    yield where, parse_json(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON ({error.msg}, column {error.colno})") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{file}: is an incomplete gzip file; download it again") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({os_reason(error)})") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply") from None


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

    def append(self, line: str) -> int:
        """Add a line, and return where in the file it begins.

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
                return size
            except OSError as error:
                raise InputError(
                    f"{self.path}: cannot be written ({os_reason(error)}); completed work is saved; rerun the same "
                    f"command to resume"
                ) from None

    def line_at(self, offset: int, length: int) -> bytes:
        """Return the line that begins there and has so many bytes, without its end."""
        with self._lock:
            handle = self._open()
            os.lseek(handle, offset, os.SEEK_SET)  # appending is done at the end all the same
            return os.read(handle, length)

    def _open(self) -> int:
        if self._handle is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            refuse_pipe(self.path)
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


def text_checksum(text: str) -> str:
    """Return eight hexadecimal digits that change when a text is damaged."""
    return f"{zlib.crc32(text.encode()):08x}"
