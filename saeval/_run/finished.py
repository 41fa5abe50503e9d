"""Detects a finished and unchanged run, so that a rerun does nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

import saeval
from saeval._run import judge_checks
from saeval._run.aggregate import packages
from saeval._util import InputError, content_hash, read_json, write_atomic
from saeval.report import Run, read
from saeval.task import plain

if TYPE_CHECKING:
    from saeval.task import StepPart, Task

_PLACE = Path("logs") / "finished"
_ASIDE = ("run.json", "logs")  # files that change in every session


def keep(folder: Path, task: Task, limit: int | None) -> None:
    """Record that a run has finished, with hashes of its inputs and of the state of its files.

    Raises:
        InputError: If the disk is full.
    """
    write_atomic(folder / _PLACE, f'["{_inputs(task, limit)}", "{_files(folder)}"]\n')


def forget(folder: Path) -> None:
    """Delete the record of `keep`; call it before changing anything in the run."""
    (folder / _PLACE).unlink(missing_ok=True)


def find(folder: Path, task: Task, limit: int | None) -> Run | None:
    """Return the results of a run if it is finished, and neither its inputs nor its files have changed; else None."""
    try:
        kept = read_json(folder / _PLACE)
        if kept == [_inputs(task, limit), _files(folder)]:
            return read(folder)
    except (InputError, OSError):
        pass
    return None


def _inputs(task: Task, limit: int | None) -> str:
    """Return a hash of everything that results and reports depend on."""
    cells: list[JsonValue] = []
    for cell in task.cells:
        steps: list[tuple[str, StepPart[Any]]] = [*cell.explainers.items(), *cell.scorers.items()]
        parts: list[JsonValue] = [[label, step.part.identity] for label, step in steps]
        cells.append([cell.name, cell.source.identity, cell.sampler.identity, parts])
    roles: list[JsonValue] = []
    for name, role in task.roles.items():
        check = judge_checks.find(role)
        roles.append([name, role.identity, None if check is None else check.model_dump(mode="json")])
    return content_hash(plain(task.resolved), cells, roles, limit, saeval.__version__, packages())


def _files(folder: Path) -> str:
    """Return a hash of the names, sizes and modification times of a run's files."""
    found: list[list[str | int]] = []
    left = [entry for entry in os.scandir(folder) if entry.name not in _ASIDE]
    while left:
        entry = left.pop()
        if entry.is_dir(follow_symlinks=False):
            left += os.scandir(entry)
        else:
            state = entry.stat(follow_symlinks=False)
            found.append([entry.path[len(str(folder)) :], state.st_size, state.st_mtime_ns])
    found.sort(key=str)
    return content_hash(found)
