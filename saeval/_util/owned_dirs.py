"""Marks folders that saeval creates, and refuses to write into other folders unless they are empty."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from saeval._util.errors import InputError
from saeval._util.limits import os_reason
from saeval._util.safe_paths import refuse_unencodable
from saeval._util.secrets import names_credential

OWNER_FILE = ".saeval"
"""File that marks a directory as created by saeval."""
_TEXT = "saeval created this directory, and may replace and remove files in it.\n"
_OF_A_RUN = frozenset(("status", "task", "spec_sha"))
"""Keys of `run.json` that identify run directories of versions without the marker file."""


def claim(folder: Path, what: str = "a run") -> None:
    """Prepare a directory for writing: create it if necessary, and mark it.

    Args:
        folder: The directory; it may itself be a link.
        what: What will be written, for the error message.

    Raises:
        InputError: If it contains files of other programs, links, or special files; if it cannot be created; or if its
            name is not UTF-8, or contains a credential, which results and reports would repeat.
    """
    refuse_unencodable(folder)
    if names_credential(str(folder)):
        raise InputError(f"the directory for {what} has a credential of your environment in its name; choose another")
    try:
        if folder.is_file():
            raise InputError(f"{folder}: is a file, not a directory; choose another place for {what}")
        folder.mkdir(parents=True, exist_ok=True)
        if not (is_ours(folder) or is_empty(folder)):
            raise InputError(
                f"{folder}: contains files that saeval did not create, so nothing was written; choose a new directory "
                f"for {what}, such as {folder / 'saeval-run'}"
            )
        refuse_links(folder)
        mark(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({os_reason(error)}); choose another --out") from None


def mark(folder: Path) -> None:
    """Mark a directory as created by saeval.

    Raises:
        OSError: If the marker file cannot be written.
    """
    if not _is_plain(folder / OWNER_FILE):
        (folder / OWNER_FILE).write_text(_TEXT, encoding="utf-8")


def claim_inside(folder: Path, what: str) -> None:
    """Prepare a directory inside a run directory for writing; one of the two must have been created by saeval.

    Raises:
        InputError: As `claim`, and if the directory is a link.
    """
    if folder.is_symlink():
        raise InputError(f"{folder}: is a symbolic link, which does not belong in a run directory; remove it")
    if is_ours(folder.parent):
        refuse_links(folder)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be created ({os_reason(error)})") from None
    else:
        claim(folder, what)


def is_ours(folder: Path) -> bool:
    """Return whether a directory has saeval's marker file, or is a run directory of a version without markers."""
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
    """Return whether a directory is empty."""
    return next(iter(os.scandir(folder)), None) is None


def refuse_links(folder: Path) -> None:
    """Check that a directory contains only directories and plain files, without symbolic and hard links.

    Writing to a link would change a file elsewhere; a pipe would block.

    Raises:
        InputError: If it contains a link or a special file.
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
