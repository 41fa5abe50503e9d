"""Checks that results were not changed after the run wrote them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeval._util import CHECKSUMS, InputError, changed_files
from saeval.records.results import RunResult
from saeval.records.rows import ScoreRow
from saeval.records.running import run_state

_ROUNDING = 1e-6
_NAMED = 3  # changed files that a warning names

log = logging.getLogger("saeval")


def refuse_impossible(file: Path, result: RunResult) -> None:
    """Check that every value lies in its own interval and range.

    Raises:
        InputError: If a value does not, which no run writes.
    """
    for cell in result.cells:
        for row in cell.scores:
            for what in _outside(row):
                raise InputError(
                    f"{file}: {row.scorer}.{row.metric} of {cell.cell} is {row.value:g}, outside its own {what}; the "
                    "file was changed, so fetch it again, or resume the run"
                )


def with_changes(folder: Path, result: RunResult) -> RunResult:
    """Return results with logged warnings if files changed after the run, or may have, or the task did."""
    found = [warning for warning in (_change(folder), _other_task(folder, result)) if warning]
    for warning in found:
        log.warning("%s", warning)
    return result.model_copy(update={"warnings": [*result.warnings, *found]}) if found else result


def later_state(folder: Path, result: RunResult) -> dict[str, Any]:
    """Return the state of a later session that ran another spec in a folder, without results yet; empty if none did."""
    first = (folder / f"seed-{seed}" for seed in result.seeds[:1])  # it begins first, and pooled results name its spec
    heads = map(_head, (folder, *first))
    return next((head for head in heads if head.get("spec_sha", result.spec_sha) != result.spec_sha), {})


def _other_task(folder: Path, result: RunResult) -> str:
    """Return a warning if a later session ran another spec here and has no results yet; empty if not."""
    if not (later := later_state(folder, result)):
        return ""
    status = later.get("status")
    rerun = "" if status == "running" else " Rerun its command to get them."
    return (
        f"{folder.absolute().name}: these results are of an earlier spec; a run of a changed one has no results yet "
        f"(status: {status}).{rerun}"
    )


def _change(folder: Path) -> str:
    """Return a warning if files changed or have no checksums; empty if not, or while the run is still writing."""
    if not (folder / CHECKSUMS).is_file():
        unknown = f"{folder.absolute().name}: has no {CHECKSUMS}, so changes to its files cannot be detected."
        return "" if _is_running(folder) else unknown
    changed = changed_files(folder)
    if not changed:
        return ""
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    names = ", ".join(changed[:_NAMED]) + more
    return f"{folder.absolute().name}: changed after the run wrote it: {names}; the numbers may not be the run's."


def _is_running(folder: Path) -> bool:
    return _head(folder).get("status") == "running"


def _head(folder: Path) -> dict[str, Any]:
    """Return the contents of `run.json`; empty if it is missing or unreadable."""
    try:
        return run_state(folder)
    except InputError:
        return {}


def _outside(row: ScoreRow) -> Iterator[str]:
    """Yield `interval` or `range` if the row's value lies outside of it."""
    if row.value is None:
        return
    room = _ROUNDING * max(1.0, abs(row.value))
    for what, bounds in (("interval", row.ci95), ("range", row.range)):
        low, high = bounds or (None, None)
        if (low is not None and row.value < low - room) or (high is not None and row.value > high + room):
            yield what
