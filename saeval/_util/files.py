"""Writes files and lines atomically; reads JSON, with file and line in error messages."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeval._util.encodable import clean, may_have_surrogates
from saeval._util.errors import InputError
from saeval._util.limits import os_reason
from saeval._util.plain_files import refuse_pipe


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` (flushed to disk) on success, and is deleted on failure.

    A pipe or device, such as `/dev/stdout`, is not replaced, but written to.

    Raises:
        InputError: If the file cannot be written.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder, path.name)
                temporary.touch()
                yield temporary
                with path.open("wb") as pipe:
                    pipe.write(temporary.read_bytes())
            return
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
    """Create an empty file with a unique name and the permissions of the umask."""
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}"
    os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file atomically; on failure, the old file remains.

    Raises:
        InputError: If the file cannot be written.
    """
    with replacing(path) as file:
        file.write_bytes(data.encode(errors="replace") if isinstance(data, str) else data)


def parse_json(text: str) -> Any:
    """Parse JSON; unpaired surrogates, which JSON can escape but UTF-8 cannot encode, become U+FFFD.

    Raises:
        json.JSONDecodeError: If it is malformed, nested too deeply, or has a number that Python does not read.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", text, 0) from None
    except ValueError:
        raise json.JSONDecodeError("it has a number with too many digits", text, 0) from None
    return clean(value) if may_have_surrogates(text) else value


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: If it is missing, incomplete, or not JSON.
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


def read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a `.jsonl` or `.jsonl.gz` file, each with its place (`file:line`).

    Raises:
        InputError: If it is missing, incomplete, or a line is not JSON.
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


class LineFile:
    """An append-only file of lines, for one process and any number of threads at a time.

    When `append` returns, the line survives the death of the process. A line truncated by a kill gets a line break, and
    one truncated by a full disk is removed, so that other lines stay intact.

    Args:
        path: The file; created with the first line. Symbolic links raise an error.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._handle: int | None = None

    def append(self, line: str) -> int:
        """Append a line, and return its offset in the file.

        Raises:
            InputError: If the disk is full, or the file cannot be written to; nothing is added then.
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
        """Return `length` bytes at an offset: a line without its line break."""
        with self._lock:
            handle = self._open()
            os.lseek(handle, offset, os.SEEK_SET)  # does not affect appending, because of O_APPEND
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
        """Close the file; `append` opens it again."""
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None


def text_checksum(text: str) -> str:
    """Return the CRC-32 of a text as eight hexadecimal digits, to detect damage."""
    return f"{zlib.crc32(text.encode()):08x}"
