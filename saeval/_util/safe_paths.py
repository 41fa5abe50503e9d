"""Creates folders atomically, and converts external names to safe file names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeval._util.errors import InputError, first_line
from saeval._util.limits import os_reason


def refuse_unencodable(path: Path) -> Path:
    """Return a path after checking that it is UTF-8, without which libraries cannot open files in it.

    Raises:
        InputError: If it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise InputError(f"{shown}: its name is not UTF-8; rename it, choose another, or set a UTF-8 locale") from None
    return path


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `out` on success, and deleted on failure.

    Raises:
        InputError: If it already exists, cannot be written, or its name is not UTF-8.
    """
    refuse_unencodable(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already exists and would be overwritten; choose another path")
    out = out.absolute()
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
            if out.exists():
                out.rmdir()
            folder.rename(out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({os_reason(error)})") from None


@contextmanager
def report_bad_values(what: Path) -> Iterator[None]:
    """Within this context, turn errors on unexpected values in files into an `InputError`, with the cause attached.

    Raises:
        InputError: If a value has an unexpected type.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, NotImplementedError) as error:
        line = first_line(error, "")
        raise InputError(f"{what}: contains a value of an unexpected type ({line:.120})") from error


def file_name(text: str) -> str:
    """Convert a text to a safe file name: no separators or control characters, not hidden, not too long."""
    name = re.sub(r"[/\\]", "--", text)
    name = re.sub(r'[\x00-\x1f\x7f:*?"<>|]', "_", name)
    name = re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), name)
    return name.encode()[:150].decode(errors="ignore").strip() or "unnamed"


def unique(name: str, taken: set[str]) -> str:
    """Return the name, with a number appended if it is taken, and add it to `taken`."""
    chosen, n = name, 2
    while chosen in taken:
        chosen, n = f"{name}-{n}", n + 1
    taken.add(chosen)
    return chosen


def latent_number(value: Any, where: str) -> int:
    """Return the index of a latent from an integer or a string of digits.

    Raises:
        InputError: If it is not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"[0-9]{1,18}", str(value)):
        raise InputError(f"{where}: a latent should be a whole number, not {str(value)!r:.60}")
    return int(value)
