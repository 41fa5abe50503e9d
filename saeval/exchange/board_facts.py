"""Collects the facts shown beside a score, as text for formats without fields for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval._util import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from saeval.records import ScoreRow
    from saeval.results import RunCell


def beside(row: ScoreRow) -> dict[str, str]:
    """Return lift, floors, coverage, judge and verdict by name; unknown ones are omitted."""
    facts: dict[str, object] = {
        "lift": row.lift,
        "lift_ci95": row.lift_ci95,
        "floor_of_lift": row.against and row.against.variant,
        **{f"floor.{name}": value for name, value in row.floor.items()},
        "latents_scored": row.n,
        "latents_tried": row.tried,
        "latents_failed": row.failed,
    }
    if row.windows:
        facts |= {"windows_asked": row.windows, "windows_answered": row.answered}
    if row.judge is not None:
        facts |= {"judge": row.judge, "judge_check": row.verdict or "not checked"}
    return {name: _text(value) for name, value in facts.items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value[0]:.4g} to {value[1]:.4g}" if isinstance(value, tuple) else str(value)


def ended(cell: RunCell) -> float | None:
    """Return when the cell's run was last written, in seconds since 1970; None if unknown."""
    return run_ended(cell.folder.parent.parent)


def run_ended(folder: Path) -> float | None:
    """Return when a run directory was last written, in seconds since 1970; None if unknown."""
    file = folder / "run.json"
    state = read_json(file) if file.is_file() else None
    moment = state.get("updated") if isinstance(state, dict) else None
    return float(moment) if isinstance(moment, int | float) else None
