"""Rejects pipes, devices and sockets among the files that users name, because reading them may never end."""

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
_DEEPEST, _MOST = 1, 20_000  # levels of subfolders, and number of entries, that are checked


def refuse_pipe(file: Path) -> None:
    """Check that a file is not a pipe, a device or a socket.

    Args:
        file: The file; missing files and folders pass.

    Raises:
        InputError: If it is a pipe, a device or a socket.
    """
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):  # the name is not valid on any disk, so there is no such file
        return
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise InputError(f"{file}: is {kind}, not a plain file; copy its content into a file, and use that")


def refuse_pipes(place: Path) -> None:
    """Apply `refuse_pipe` to a file, or to the files in a folder and its subfolders.

    Raises:
        InputError: If one is a pipe, a device or a socket.
    """
    refuse_pipe(place)
    for file in islice(_files(place, _DEEPEST), _MOST):
        if not file.is_socket():  # sockets cannot be opened as files
            refuse_pipe(file)


def _files(folder: Path, deeper: int) -> Iterator[Path]:
    """Yield the entries in a folder that are neither plain files nor folders, without opening them."""
    try:
        entries = list(os.scandir(folder))
    except (OSError, ValueError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), deeper - 1) if deeper else ()
        elif not entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
