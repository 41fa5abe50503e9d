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
    file = run / "run.json"
    locked = is_locked(run / LOCK)  # before reading, since a run writes its last status before it releases the lock
    state = read_json(file)
    if not isinstance(state, dict):
        raise InputError(f"{file}: is damaged; give a run directory")
    if state.get("status") == "running" and locked is False:
        return {**state, "status": "interrupted", "reason": _KILLED}
    return state
