"""Resolves paths in task specs relative to the file that names them, and hashes files."""

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
        file: The spec file, or None for a value given on the command line.
        line: Its line there, from 1.
    """

    file: Path | None
    line: int

    def __new__(cls, text: str, file: Path | None = None, line: int = 0) -> Located:
        """Attach a place to a text."""
        self = super().__new__(cls, text)
        self.file, self.line = file, line
        return self


def _beside_its_spec(value: object) -> object:
    if isinstance(value, Located):
        path = Path(value).expanduser()
        return (value.file.parent / path if value.file else path).absolute()
    return value


def _model_reference(value: object) -> object:
    return str(_beside_its_spec(value)) if isinstance(value, str) and value.startswith(("./", "../", "~")) else value


P = TypeVar("P", Path, str)


def _without_pipes(place: P) -> P:
    """Refuse a pipe or device here, so that no plugin waits for one."""
    try:
        refuse_pipes(Path(place))
    except InputError as error:
        raise ValueError(str(error)) from None
    return place


SpecPath = Annotated[Path, BeforeValidator(_beside_its_spec), AfterValidator(_without_pipes)]
"""A file or folder named in a spec, without pipes or devices; a relative one is looked for beside the spec file."""

ModelRef = Annotated[str, BeforeValidator(_model_reference), AfterValidator(_without_pipes)]
"""A model's hub id, `package:` reference, or path; a path that begins with `./` is looked for beside the spec file."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content; a file seen before is read again only when its size or time changed."""
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: str, _size: int, _mtime: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
