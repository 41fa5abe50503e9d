"""Finds run directories, and summarises each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeval._util import InputError, counted, read_json, refuse_pipe
from saeval.records import MAIN, RunResult, later_state, read_result, run_state, split_ranking

RUNS = Path("saeval-runs")
"""Default folder of runs, without `--out`."""


@dataclass(frozen=True)
class RunHead:
    """One run in a list of runs.

    Attributes:
        name: Name of the run directory.
        path: The directory.
        date: Time of the last write, `2026-01-31 17:05`; empty if unknown.
        status: `done`, `partial`, `running`, `collected`, `failed`, `gave up`, `interrupted`,
            `stopped at the cost limit`, `unreadable`.
        task: Name of the task.
        models: The models that the results come from.
        n: Number of latents that the headline is a mean of.
        headline: The ranking column and the best contestant's value.
        reason: Why the run failed or was interrupted, or cannot be read.
    """

    name: str
    path: Path
    date: str = ""
    status: str = "unreadable"
    task: str = ""
    models: tuple[str, ...] = ()
    n: int = 0
    headline: str = ""
    reason: str = ""


def run_dirs(place: Path) -> list[Path]:
    """Return the run directories at a place: itself, or those in it, by name.

    Raises:
        InputError: If it is neither a run directory nor a folder of them.
    """
    if not place.exists():
        raise InputError(f"{place}: no such folder")
    refuse_pipe(place)
    if place.is_file() or _is_run(place):
        return [place]
    found = [child for child in sorted(place.iterdir()) if child.is_dir() and _is_run(child)]
    if not found:
        raise InputError(f"{place}: no run.json or results.json there, and no run directory in it")
    return found


def finished_runs(place: Path) -> list[Path]:
    """Return the run directories at a place that have results; a run directory itself is returned unchecked.

    Raises:
        InputError: If there are none.
    """
    found = run_dirs(place)
    if found == [place]:
        return found
    finished = [run for run in found if (run / "results.json").exists()]
    if not finished:
        raise InputError(
            f"{place}: none of its {counted(len(found), 'run')} has results yet; see `saeval list runs {place}`"
        )
    return finished


def made_elsewhere(run: Path) -> bool:
    """Return whether a directory contains the results of a run that was imported or fetched, not made there."""
    if not (run / "results.json").is_file() or any(run.glob("seed-*/run.json")):  # pooled seeds have no run.json
        return False
    head = run / "run.json"
    if not head.is_file():
        return True
    try:
        state = read_json(head)
    except InputError:  # damaged, but a run made here has one
        return False
    return isinstance(state, dict) and state.get("status") == "imported"


def refuse_without_calls(run: Path) -> None:
    """Check that a run was made in this directory.

    Raises:
        InputError: If it was imported or pulled.
    """
    if made_elsewhere(run):
        raise InputError(f"{run}: imported and pulled runs have no calls; give the directory where the run was made")


def last_run(place: Path = RUNS) -> Path:
    """Return the most recently written run.

    Raises:
        InputError: If there is none.
    """
    if not place.exists():
        raise InputError(f"{place}: no run there yet; name a run directory, or begin with `saeval run quickstart`")
    return max(run_dirs(place), key=_written)


def list_runs(place: Path = RUNS) -> list[RunHead]:
    """Return a summary of each run at a place, latest first."""
    runs = run_dirs(place) if place.exists() and (_is_run(place) or any(place.iterdir())) else []
    return [_head(run) for run in sorted(runs, key=_written, reverse=True)]


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / "results.json").is_file()


def _written(run: Path) -> float:
    files = [run / name for name in ("run.json", "results.json")] if run.is_dir() else [run]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _head(run: Path) -> RunHead:
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(_written(run)))
    try:
        state = _state(run)
        result = read_result(run) if (run / "results.json").exists() else None
    except (InputError, OSError, ValueError) as error:
        return RunHead(run.name, run, date, reason=str(error))
    if result is not None and (later := later_state(run, result)):
        state, result = later, None
    status = str(state.get("status", "done"))
    reason = str(state.get("reason", ""))
    if result is None:
        return RunHead(run.name, run, date, status, str(state.get("task", "")), reason=reason)
    if status == "done" and result.partial:
        status = "partial"
    n, headline = _headline(result)
    models = tuple(dict.fromkeys(ledger.model for ledger in result.ledger if not ledger.earlier))
    return RunHead(run.name, run, date, status, result.task, models, n, headline, reason)


def _state(run: Path) -> dict[str, Any]:
    """Return the state of a run; empty if it has none, as pooled seeds."""
    return run_state(run) if (run / "run.json").exists() else {}


def _headline(result: RunResult) -> tuple[int, str]:
    """Return the best contestant's number of latents in the ranking column, and the column with its value."""
    column, ranking = split_ranking(result.rank_by)
    rows = [(cell, row) for cell in result.cells if cell.baseline is None for row in cell.scores]
    ranked = [
        (cell, row)
        for cell, row in rows
        if row.variant == MAIN and f"{row.scorer}.{row.metric}" == column and row.value is not None
    ]
    if not ranked:
        return 0, ""
    sign = 1 if ranked[0][1].higher_is_better else -1
    by_lift = ranking != "raw" and all(row.lift is not None for _, row in ranked)  # as on boards
    cell, best = max(ranked, key=lambda pair: (pair[1].lift if by_lift else sign * (pair[1].value or 0.0)) or 0.0)
    return best.n, f"{column} {best.value:.3f} ({cell.cell})"


def lines(runs: list[RunHead], width: int) -> Iterator[str]:
    """Yield a list of runs as lines of text that fit a width: two lines each, and a third if a run failed."""
    for run in runs:
        yield _fit(f"{run.date}  {run.status:<8}  {run.name}", width)
        n = f"n {run.n}" if run.n else ""
        about = "  ".join(filter(None, (run.headline, n, ", ".join(run.models))))
        if about:
            yield _fit(f"    {about}", width)
        if run.reason:
            yield _fit(f"    {' '.join(run.reason.split())}", width)


def _fit(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
