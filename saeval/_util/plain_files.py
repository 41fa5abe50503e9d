"""Refuses pipes, devices and sockets among the files that users name, because reading one might never end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from saeval._util.errors import InputError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
_DEEPEST, _MOST = 1, 20_000  # folders below the one that is named, and entries in them, that are checked


def refuse_pipe(file: Path) -> None:
    """Check that reading a file comes to an end.

    Args:
        file: The file; one that is not there, or a folder, passes.

    Raises:
        InputError: If it is a pipe, a device or a socket.
    """
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):  # a name that no disk can hold is of no file
        return
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise InputError(f"{file}: is {kind}, not a plain file; copy its content into a file, and use that")


def refuse_pipes(place: Path) -> None:
    """Check a file, or the files in a folder and in its folders, as `refuse_pipe` does.

    Raises:
        InputError: If one is a pipe, a device or a socket.
    """
    refuse_pipe(place)
    for file in islice(_files(place, _DEEPEST), _MOST):
        if not file.is_socket():  # which nobody can open as a file
            refuse_pipe(file)


def _files(folder: Path, deeper: int) -> Iterator[Path]:
    """Yield what is in a folder besides plain files, without opening them."""
    try:
        entries = list(os.scandir(folder))
    except (OSError, ValueError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), deeper - 1) if deeper else ()
        elif not entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
