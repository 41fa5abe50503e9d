"""Hashes plugins' source files, because results depend on code that can change without its version."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import lru_cache
from importlib.metadata import Distribution
from pathlib import Path

SOURCES = (".py", ".txt", ".md", ".j2")
"""Endings of files that a plugin's results depend on."""


def installed_from_folder(distribution: Distribution) -> bool:
    """Return whether a package was installed from a local folder, editable or copied."""
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(origin, dict) and "dir_info" in origin


def code_hash(cls: type, *, whole: bool) -> str | None:
    """Return a hash of the source files that a class comes with; None if they cannot be found.

    Args:
        cls: The class.
        whole: Whether to take all of its top-level package; else the folder of its module alone.
    """
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if not file:
        return None
    depth = cls.__module__.count(".") - (Path(file).name != "__init__.py")
    if depth < 0:  # a module by itself
        return _hashed((Path(file),))
    folder = Path(file).parent
    return _folder_hash(folder.parents[depth - 1] if whole and depth else folder)


@lru_cache(maxsize=64)  # a process sees the code that it has imported
def _folder_hash(folder: Path) -> str:
    return _hashed(tuple(sorted(f for f in folder.rglob("*") if f.suffix in SOURCES and f.is_file())))


def _hashed(files: tuple[Path, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
