"""Finds the files of task specs, by name or path, and of their includes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from saeval._util import InputError, SpecError, did_you_mean, refuse_pipe, without_keys

if TYPE_CHECKING:
    from saeval.plugin.registry import Registry
    from saeval.task.spec.models import GroupSpec

_GROUP = re.compile(rb"\bgroup\b[\"']?\s*:")


def shipped_tasks(registry: Registry) -> Iterator[tuple[str, Path]]:
    """Return (name, file) of every task in installed packages; names of built-in tasks have no namespace."""
    return ((name, file) for name, file in _shipped_files(registry) if _is_spec(file))


def _shipped_files(registry: Registry) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of possible tasks, including data files beside specs."""
    for namespace, folder in registry.task_dirs():
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder).with_suffix("").as_posix()
            if not name.startswith("presets/"):
                yield name if namespace == "saeval" else f"{namespace}/{name}", file


def _is_spec(file: Path) -> bool:
    """Return whether a file is a spec and not a data file, without parsing it."""
    return any(line.startswith("saeval:") for line in file.read_text(encoding="utf-8", errors="replace").splitlines())


def find_spec(reference: str, registry: Registry) -> Path:
    """Return the spec file of a task, from its name or path.

    Raises:
        SpecError: If there is no such file or task.
    """
    path = Path(reference).expanduser()
    _refuse_pipe(path)
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        if _is_file(path):
            return path.absolute()
        raise SpecError([f"{reference}: no such file"])
    for name, file in _shipped_files(registry):
        if name == reference and _is_spec(file):
            return file
    tasks = [name for name, _ in shipped_tasks(registry)]
    raise SpecError(
        [f"no task {without_keys(reference)!r}{did_you_mean(reference, tasks)} (`saeval list tasks` shows all)"]
    )


def find_group(reference: str, registry: Registry) -> GroupSpec | None:
    """Return a group from its name or path, with its tasks as names or absolute paths; None if it is a task.

    Raises:
        SpecError: If there is no such file or task, or the group is malformed.
    """
    from pydantic import ValidationError

    from saeval.task.spec.document import read_document
    from saeval.task.spec.models import GroupSpec
    from saeval.task.spec.validation import explain_error

    file = find_spec(reference, registry)
    if not _GROUP.search(file.read_bytes()):  # most specs are tasks, and parsing YAML takes a tenth of a second
        return None
    document = read_document(file, lambda name, beside: find_include(name, beside, registry))
    if "group" not in document.data:
        return None
    try:
        group = GroupSpec.model_validate(document.data)
    except ValidationError as error:
        raise SpecError([explain_error(e, document.where, GroupSpec) for e in error.errors()]) from None
    members = [str(file.parent / m) if m.endswith((".yaml", ".yml")) else str(m) for m in group.tasks]
    if twice := [m for m in dict.fromkeys(members) if members.count(m) > 1]:
        raise SpecError([f"{document.where(('tasks',))}: {twice[0]} is listed twice"])
    return group.model_copy(update={"tasks": members})


def find_include(reference: str, from_file: Path, registry: Registry) -> Path:
    """Return the file that a spec includes: `saeval://NAME.yaml` of a package, or a path beside the spec.

    Raises:
        SpecError: If there is none.
    """
    if reference.startswith("saeval://"):
        wanted = reference.removeprefix("saeval://")
        for _, folder in registry.task_dirs():
            found = folder / wanted
            if _is_file(found) and found.resolve().is_relative_to(folder.resolve()):
                return found.resolve()
        raise SpecError([f"{from_file.name}: include: no {reference!r} in any installed package"])
    path = from_file.parent / reference
    _refuse_pipe(path)
    if not _is_file(path):
        raise SpecError([f"{from_file.name}: include: no file {reference!r} beside it"])
    return path.absolute()


def _refuse_pipe(path: Path) -> None:
    try:
        refuse_pipe(path)
    except InputError as error:
        raise SpecError([str(error)]) from None


def _is_file(path: Path) -> bool:
    """Return whether a file exists; False for names that no file system allows."""
    try:
        return path.is_file()
    except OSError:
        return False
