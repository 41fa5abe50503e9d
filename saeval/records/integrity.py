"""Whether results that are read are those that a run wrote."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from saeval._util import InputError, changed_files
from saeval.records.scores import RunResult, ScoreRow

_ROUNDING = 1e-6
_NAMED = 3  # changed files that a warning names

log = logging.getLogger("saeval")


def refuse_impossible(file: Path, result: RunResult) -> None:
    """See that every value lies in its own interval and range.

    Raises:
        InputError: If one does not, which no run writes.
    """
    for cell in result.cells:
        for row in cell.scores:
            for what in _outside(row):
                raise InputError(
                    f"{file}: {row.scorer}.{row.metric} of {cell.cell} is {row.value:g}, outside its own {what}; the "
                    "file was changed, so fetch it again, or resume the run"
                )


def with_changes(folder: Path, result: RunResult) -> RunResult:
    """Return results with a warning about files that were changed after the run wrote them, which is logged, too."""
    changed = changed_files(folder)
    if not changed:
        return result
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    names = ", ".join(changed[:_NAMED]) + more
    warning = f"{folder.name}: changed after the run wrote it: {names}; the numbers may not be the run's."
    log.warning("%s", warning)
    return result.model_copy(update={"warnings": [*result.warnings, warning]})


def _outside(row: ScoreRow) -> Iterator[str]:
    """Yield what a row's value is outside of."""
    if row.value is None:
        return
    room = _ROUNDING * max(1.0, abs(row.value))
    for what, bounds in (("interval", row.ci95), ("range", row.range)):
        low, high = bounds or (None, None)
        if (low is not None and row.value < low - room) or (high is not None and row.value > high + room):
            yield what
