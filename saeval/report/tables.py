"""The leaderboard as a tidy table, one row a cell, scorer, explanation and metric: CSV and Parquet."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from saeval.files import write_atomic
from saeval.results import RunResult


def tidy(run: RunResult) -> list[dict[str, Any]]:
    """Return the rows; all have the same columns."""
    rows: list[dict[str, Any]] = []
    for cell in run.cells:
        shared = {
            "run_id": run.run_id, "task": run.task, "task_version": run.task_version, "spec_sha": run.spec_sha,
            "synthetic": run.synthetic, "partial": run.partial, "cell": cell.cell, "baseline": cell.baseline,
            **{f"axis.{k}": v for k, v in cell.axes.items()},
            **{f"measure.{k}": v for k, v in cell.measures.items()},
            **{f"count.{k}": v for k, v in cell.counts.items()},
        }  # fmt: skip
        for row in cell.scores:
            fields = row.model_dump(mode="json", exclude={"ci95", "floor", "range"})
            low, high = row.ci95 or (None, None)
            floors = {f"floor.{k}": v for k, v in row.floor.items()}
            rows.append({**shared, **fields, "ci_low": low, "ci_high": high, **floors})
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def write_csv(run: RunResult, path: Path) -> None:
    """Write the table as CSV. Text that a spreadsheet would take for a formula gets a `'` before it."""
    rows = tidy(run)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else ["run_id"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _inert(v) for k, v in row.items()} for row in rows)
    write_atomic(path, out.getvalue())


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_parquet(run: RunResult, path: Path) -> None:
    """Write the table as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist(tidy(run)), temporary, compression="zstd")
    temporary.replace(path)
