"""Runs a task under several seeds and pools the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from saeval._compare import pooled_runs, repeated
from saeval._run.claims import pooled_findings
from saeval._run.run_dir import RunDir, SharedLimit
from saeval.records import RunResult
from saeval.results import CELL_TABLES, open_run, read_table

if TYPE_CHECKING:
    from saeval.task import Task


def with_seed(task: Task, seed: int) -> Task:
    """Return the task with a single seed."""
    resolved = deepcopy(task.resolved)
    options = {**resolved.get("run", {}), "seed": seed}
    options.pop("seeds", None)
    resolved["run"] = options
    return replace(task, resolved=resolved, run=task.run.model_copy(update={"seed": seed, "seeds": 1}))


def run_seeds(
    task: Task, out: Path, *, shared_limit: bool, elsewhere: float, run_one: Callable[..., RunResult]
) -> RunResult:
    """Run a task once per seed, each in a separate directory, and write the pooled results beside them.

    Args:
        task: The task, with `run.seeds` seeds starting at `run.seed`.
        out: Directory for the subdirectories `seed-0`, `seed-1`, …
        shared_limit: Whether the spending limit is for all seeds together; else, it is the spec's limit per seed.
        elsewhere: Dollars that other runs under the same limit have spent.
        run_one: Runs a task in the directory `out`, after other runs spent the dollars `elsewhere`.
    """
    with RunDir(out) as folder:
        results: list[RunResult] = []
        places = {seed: out / f"seed-{seed}" for seed in range(task.run.seed, task.run.seed + task.run.seeds)}
        spending = SharedLimit(places.values() if shared_limit else ())
        for seed, place in places.items():
            others = elsewhere + spending.elsewhere(place)
            results.append(run_one(with_seed(task, seed), out=place, elsewhere=others))
            spending.update(place)
        repeats = _repeats(places.values())
        found = pooled_runs(results, out.name, repeats)
        findings = pooled_findings(task.findings, [result.findings for result in results], results[0].cells, repeats)
        found = found.model_copy(update={"findings": findings})
        folder.clear_results()
        (out / "run.json").unlink(missing_ok=True)  # of an earlier run with a single seed
        folder.write_results(task, found)
    return found


def _repeats(runs: Iterable[Path]) -> dict[str, float]:
    """Return the mean number of seeds that draw a latent, by cell."""
    drawn: dict[str, list[list[int]]] = {}
    for run in runs:
        for cell in open_run(run)[1]:
            table = read_table(cell.folder / "latents.parquet", CELL_TABLES["latents"], others=False)
            drawn.setdefault(cell.name, []).append(table["latent"].to_pylist())
    return {name: repeated(latents) for name, latents in drawn.items()}
