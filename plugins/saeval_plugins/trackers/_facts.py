"""Collects what trackers log about a run: numbers, settings, files and a stable name."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from saeval.plugin import InputError, RunProgress, RunResult, content_hash

_FILES = ("results.json", "spec.yaml", "report/report.md", "report/leaderboard.csv")


def installed(module: str, package: str) -> None:
    """Check that a tracker's package is installed.

    Raises:
        InputError: If it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{module} is not installed; run `pip install {package}`")


def key(result: RunResult | RunProgress, folder: Path) -> str:
    """Return the tracker's name for a run directory, so that a resumed run replaces its earlier log."""
    return f"{result.task}-{content_hash(str(folder.resolve()), result.spec_sha)[:10]}"


def settings(result: RunResult) -> dict[str, str | int | bool]:
    """Return the run's settings."""
    return {
        "task": result.task,
        "task_version": result.task_version,
        "spec_sha": result.spec_sha,
        "seed": result.seed,
        "saeval_version": result.saeval_version,
        "synthetic": result.synthetic,
        "recorded": result.recorded,
        "reproducible": result.reproducible,
    }


def numbers(result: RunResult) -> dict[str, float]:
    """Return the leaderboard's numbers by `cell/scorer.metric`, with intervals, n, measures and cost."""
    found = {"partial": float(result.partial)}
    for cell in result.cells:
        found |= {f"{cell.cell}/{name}": float(value) for name, value in cell.measures.items()}
        for row in cell.scores:
            variant = "" if row.variant == "explanation" else f"{row.variant}/"
            name = f"{cell.cell}/{variant}{row.scorer}.{row.metric}"
            low, high = row.ci95 or (None, None)
            beside = {"low": low, "high": high, "n": row.n, "coverage": row.coverage, "lift": row.lift}
            values = {name: row.value, **{f"{name}.{fact}": value for fact, value in beside.items()}}
            found |= {name: float(value) for name, value in values.items() if value is not None}
    costs = [line.usd for line in result.ledger]
    if all(cost is not None for cost in costs):  # an unknown price does not count as zero
        found["usd"] = sum(cost for cost in costs if cost is not None)
    return found


def files(folder: Path) -> Iterator[Path]:
    """Yield the files of the run directory to upload, which are small."""
    yield from (folder / name for name in _FILES if (folder / name).is_file())
