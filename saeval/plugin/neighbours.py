"""Finds, hashes and imports the modules beside a single-file plugin."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

from saeval.plugin.source_code import SOURCES

_imported_for: dict[str, tuple[Path, str | None]] = {}
"""For each top-level module that was imported for a plugin: the plugin's folder, and the hash of all its neighbours."""


def neighbours(path: Path) -> dict[str, list[Path]]:
    """Return the modules beside a file that it imports, directly or through each other: their files by module name.

    Modules of the standard library, of saeval, and those that are already imported from elsewhere are none.

    Args:
        path: The file.
    """
    found: dict[str, list[Path]] = {}
    unread = [path]
    while unread:
        for name in _imports(unread.pop()) - found.keys():
            files = [] if _is_elsewhere(name, path.parent) else _files(path.parent, name)
            if files and files != [path]:
                found[name] = files
                unread += [file for file in files if file.suffix == ".py"]
    return found


def neighbours_hash(path: Path) -> str | None:
    """Return a hash of the files beside a single-file plugin that it imports; None if it imports none."""
    files = sorted({file for files in neighbours(path).values() for file in files})
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest() if files else None


@contextmanager
def importable_neighbours(path: Path) -> Iterator[None]:
    """Within this context, a file can import the modules beside it.

    Modules of equal names that were imported for a plugin in another folder, or before one of the files was edited, are
    imported again.

    Args:
        path: The file.
    """
    mark = path.parent, neighbours_hash(path)
    for name in neighbours(path):
        if _imported_for.setdefault(name, mark) != mark:
            _forget(name)
            _imported_for[name] = mark
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imports(file: Path) -> set[str]:
    """Return the top-level modules that a file imports by absolute names; none if it cannot be parsed."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _is_elsewhere(name: str, folder: Path) -> bool:
    """Return whether a module with this name is used instead of one in the folder."""
    if name in sys.stdlib_module_names or name in ("saeval", "saeval_plugins"):
        return True
    if name not in sys.modules or name in _imported_for:
        return False
    places = [getattr(sys.modules[name], "__file__", None), *getattr(sys.modules[name], "__path__", ())]
    return not any(folder in Path(place).resolve().parents for place in places if place)


def _files(folder: Path, name: str) -> list[Path]:
    """Return the source files of a module or package in a folder."""
    package, module = folder / name, folder / f"{name}.py"
    if not (package / "__init__.py").is_file():
        if module.is_file():
            return [module]
        installed = PathFinder.find_spec(name)
        if not package.is_dir() or (installed is not None and installed.loader is not None):
            return []  # a folder without __init__.py yields to an installed package
    return [file for file in package.rglob("*") if file.suffix in SOURCES and file.is_file()]


def _forget(name: str) -> None:
    for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[loaded]
