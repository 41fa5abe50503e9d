"""Refuses to write into folders that are neither empty nor saeval's own."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from saeval._util.errors import InputError
from saeval._util.limits import os_reason
from saeval._util.secrets import names_credential

OWNER_FILE = ".saeval"
"""File that marks a directory as saeval's own."""
_TEXT = "saeval made this directory, and may replace and remove files in it.\n"
_OF_A_RUN = frozenset(("status", "task", "spec_sha"))
"""Keys of `run.json`, by which run directories of versions without a marker are known."""


def claim(folder: Path, what: str = "a run") -> None:
    """Take a directory to write into: make it where it is not there, and mark it.

    Args:
        folder: The directory; it may itself be reached by a link.
        what: What is to be written there, for the refusal.

    Raises:
        InputError: If it holds files that are not saeval's, links, or anything but plain files, or cannot be made; or
            if its name has a credential in it, which results and reports would repeat.
    """
    if names_credential(str(folder)):
        raise InputError(f"the directory for {what} has a credential of your environment in its name; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (is_ours(folder) or is_empty(folder)):
            raise InputError(
                f"{folder}: holds files that are not saeval's, so nothing was written; choose a new directory for "
                f"{what}, such as {folder / 'saeval-run'}"
            )
        refuse_strange(folder)
        mark(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({os_reason(error)}); choose another --out") from None


def mark(folder: Path) -> None:
    """Mark a directory that was made by saeval as its own.

    Raises:
        OSError: If that cannot be written.
    """
    if not _is_plain(folder / OWNER_FILE):
        (folder / OWNER_FILE).write_text(_TEXT, encoding="utf-8")


def claim_inside(folder: Path, what: str) -> None:
    """Take a directory inside a run directory; it must be saeval's own, or the directory around it.

    Raises:
        InputError: As `claim`; and if the directory is a link, which could lead anywhere.
    """
    if folder.is_symlink():
        raise InputError(f"{folder}: is a symbolic link, which does not belong in a run directory; remove it")
    if is_ours(folder.parent):
        refuse_strange(folder)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({os_reason(error)})") from None
    else:
        claim(folder, what)


def is_ours(folder: Path) -> bool:
    """Return whether a directory carries saeval's mark, or is a run directory of a version without one."""
    if _is_plain(folder / OWNER_FILE):
        return True
    if not _is_plain(folder / "run.json"):
        return False
    try:
        head = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(head, dict) and head.keys() >= _OF_A_RUN


def is_empty(folder: Path) -> bool:
    """Return whether nothing is in a directory."""
    return next(iter(os.scandir(folder)), None) is None


def refuse_strange(folder: Path) -> None:
    """Check that a directory contains only directories and plain files, none of them shared with another place.

    Writing to a link, or to a file that has another name elsewhere, would change what is there; a pipe would hang.

    Raises:
        InputError: If there is; it says which.
    """
    for entry in _walk(folder):
        facts = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            continue
        kind = "is a symbolic link" if stat.S_ISLNK(facts.st_mode) else "is not a plain file"
        if stat.S_ISREG(facts.st_mode):
            kind = "is a hard link" if facts.st_nlink > 1 else ""
        if kind:
            advice = "copy the directory without links" if kind == "is a hard link" else "remove it"
            raise InputError(f"{entry.path}: {kind}, which does not belong in a run directory; {advice}")


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _is_plain(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except OSError:
        return False
