"""Reads the state of a run (`run.json`), and whether its process still lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saeval._util import InputError, is_locked, read_json

LOCK = Path("logs", "lock")
"""The file in a run directory that a run locks while it lives."""

_KILLED = "its process ended before it could say why; rerun the same command to resume"


def run_state(run: Path) -> dict[str, Any]:
    """Return the content of a run's `run.json`; a `running` run whose process has ended is `interrupted`.

    If the system cannot tell whether the process lives (no lock file, a disk without locks), the status is as written.

    Raises:
        InputError: If the file is missing or damaged.
    """
    state = _read(run)
    if state.get("status") != "running" or is_locked(run / LOCK) is not False:
        return state
    state = _read(run)  # a run writes its last status before it releases the lock
    if state.get("status") != "running" or is_locked(run / LOCK):  # it ended or began meanwhile
        return state
    return {**state, "status": "interrupted", "reason": _KILLED}


def _read(run: Path) -> dict[str, Any]:
    state = read_json(run / "run.json")
    if not isinstance(state, dict):
        raise InputError(f"{run / 'run.json'}: is damaged; give a run directory")
    return state
