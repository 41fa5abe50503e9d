"""Resolves paths in task specs relative to the spec file, and hashes files."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator

from saeval._util.errors import InputError
from saeval._util.plain_files import refuse_pipes


class Located(str):
    """A string of a task spec with its file and line.

    Attributes:
        file: The spec file; None for a value from the command line.
        line: Its line in the file, from 1.
        path: What a plugin's option made of it, if it is a path, or ends with one; None for other texts.
    """

    file: Path | None
    line: int
    path: Path | str | None = None

    def __new__(cls, text: str, file: Path | None = None, line: int = 0) -> Located:
        """Attach file and line to a text."""
        self = super().__new__(cls, text)
        self.file, self.line = file, line
        return self

    def __deepcopy__(self, _memo: object) -> Located:
        """Return the text itself, so that a spec's text has the path that a cell's option made of it."""
        return self


def _beside_its_spec(value: object) -> object:
    if isinstance(value, Located):
        path = Path(value).expanduser()
        value.path = path = (value.file.parent / path if value.file else path).absolute()
        return path
    return value


def _model_reference(value: object) -> object:
    return str(_beside_its_spec(value)) if isinstance(value, str) and value.startswith(("./", "../", "~")) else value


P = TypeVar("P", Path, str)


def _without_pipes(place: P) -> P:
    """Raise an error for a pipe or device, so that no plugin blocks on reading it."""
    try:
        refuse_pipes(Path(place))
    except InputError as error:
        raise ValueError(str(error)) from None
    return place


SpecPath = Annotated[Path, BeforeValidator(_beside_its_spec), AfterValidator(_without_pipes)]
"""A file or folder named in a spec, without pipes or devices; relative paths are relative to the spec file."""

ModelRef = Annotated[str, BeforeValidator(_model_reference), AfterValidator(_without_pipes)]
"""A model's hub id, `package:` reference, or path; paths that begin with `./` are relative to the spec file."""


def with_home(path: str | Path) -> Path:
    """Return a path with a leading `~` replaced by the home directory, as shells do; as it is if that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; cached as long as its size and modification time do not change."""
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: str, _size: int, _mtime: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
