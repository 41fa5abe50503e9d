"""Reports how often the intervals of single seeds cover the mean of the others, and reruns.

    saeval run paper/sampling-small --seeds 20 --limit 25 --out runs/sampling
    python -m benchmarks.coverage runs/sampling

The mean of the other seeds is the best estimate of the true mean that does not contain the seed itself. It errs, too,
so an interval that covers the true mean in 95 % of runs covers it a little less often: 94 % with 20 seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import saeval
from saeval._util import markdown_table
from saeval.records import MAIN, ScoreRow

HEADS = (
    "cell",
    "score",
    "seeds",
    "latents",
    "sd of seeds",
    "mean standard error",
    "95 % covers the others' mean",
    "95 % covers a rerun",
    "rerun 95 % covers a rerun",
)


def rows_by_cell(folder: Path) -> dict[tuple[str, str], list[ScoreRow]]:
    """Return the rows of the cells' own explanations, one per seed, by cell and score."""
    found: dict[tuple[str, str], list[ScoreRow]] = {}
    for place in sorted(folder.glob("seed-*")):
        for cell in saeval.read(place).cells:
            for row in cell.scores:
                if row.variant == MAIN and row.value is not None and row.ci95 and row.prediction95:
                    found.setdefault((cell.cell, f"{row.scorer}.{row.metric}"), []).append(row)
    return found


def inside(intervals: list[tuple[float, float]], values: np.ndarray) -> np.ndarray:
    """Return which values each interval covers.  [intervals, values]"""
    low, high = np.array(intervals).T
    covers: np.ndarray = (low[:, None] <= values) & (values <= high[:, None])
    return covers


def lines(folder: Path) -> Iterator[list[str]]:
    """Yield a line of the table per cell and score."""
    for (cell, score), rows in rows_by_cell(folder).items():
        n, values = len(rows), np.array([row.value for row in rows], dtype=np.float64)
        others = (values.sum() - values) / (n - 1)
        intervals = [row.ci95 for row in rows if row.ci95]
        reruns = [row.prediction95 for row in rows if row.prediction95]
        errors = [(high - low) / (2 * 1.96) for low, high in intervals]
        apart = ~np.eye(n, dtype=bool)
        covered = int(inside(intervals, others).diagonal().sum())
        yield [
            cell,
            score,
            str(n),
            str(rows[0].n),
            f"{values.std(ddof=1):.4f}",
            f"{np.mean(errors):.4f}",
            f"{covered} of {n}",
            f"{inside(intervals, values)[apart].mean():.2f}",
            f"{inside(reruns, values)[apart].mean():.2f}",
        ]


if __name__ == "__main__":
    print(markdown_table(HEADS, [line for folder in sys.argv[1:] for line in lines(Path(folder))]))
