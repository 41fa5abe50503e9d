"""Imports the names of a package on first use, as listed in its `.pyi` file."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazy_loader


def attach(file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of a package.

    Unlike with `lazy_loader.attach_stub`, names may come from any module of saeval, so that a package can export names
    from others.

    Args:
        file: `__file__` of the package; the stub beside it contains lines `from saeval.x import (a as a)`.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    names: dict[str, list[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.setdefault(node.module.removeprefix("saeval."), []).extend(alias.name for alias in node.names)
    found: tuple[Callable[[str], Any], Callable[[], list[str]], list[str]] = lazy_loader.attach(
        "saeval", submod_attrs=names
    )
    return found
