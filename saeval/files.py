"""Write files so that they are either whole or not there."""

from __future__ import annotations

import os
import tempfile
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
