"""Tables that are whole or not there: the leaderboard as a tidy table, one row a cell, scorer, explanation and metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.files import write_atomic
from saeval.report import safe_text
from saeval.results import RunResult

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = {
    "run_id": "string", "task": "string", "task_version": "string", "spec_sha": "string", "synthetic": "bool", "partial": "bool",
    "cell": "string", "baseline": "string", "subject": "string", "corpus": "string", "axis.": "string", "measure.": "double", "count.": "int64",
    "scorer": "string", "variant": "string", "plugin": "string", "metric": "string", "higher_is_better": "bool",
    "value": "double", "median": "double", "ci_low": "double", "ci_high": "double", "method": "string",
    "n": "int64", "tried": "int64", "failed": "int64", "skipped": "int64", "unparsed": "int64", "coverage": "double",
    "floor.": "double", "lift": "double", "judge": "string", "explanation_words": "double", "usd": "double",
}  # fmt: skip
"""Columns and Arrow types, in order; a name that ends in a dot stands for one column a key."""


def tidy(*runs: RunResult) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the columns with their Arrow types, and the rows; a row lacks the columns it has no value for."""
    rows: list[dict[str, Any]] = []
    for run, cell in ((r, c) for r in runs for c in r.cells):
        shared = {
            "run_id": run.run_id, "task": run.task, "task_version": run.task_version, "spec_sha": run.spec_sha,
            "synthetic": run.synthetic, "partial": run.partial,
            "cell": cell.cell, "baseline": cell.baseline, "subject": cell.subject, "corpus": cell.corpus or None,
            **{f"axis.{k}": v for k, v in cell.axes.items()},
            **{f"measure.{k}": v for k, v in cell.measures.items()},
            **{f"count.{k}": v for k, v in cell.counts.items()},
        }  # fmt: skip
        for row in cell.scores:
            low, high = row.ci95 or (None, None)
            floors = {f"floor.{k}": v for k, v in row.floor.items()}
            rows.append(
                {
                    **shared,
                    **row.model_dump(exclude={"ci95", "floor", "range"}),
                    "ci_low": low,
                    "ci_high": high,
                    **floors,
                }
            )
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {
        key: kind
        for name, kind in _COLUMNS.items()
        for key in ([k for k in keys if k.startswith(name)] if name.endswith(".") else [name])
    }
    return columns, rows


def write_csv(run: RunResult, path: Path) -> None:
    """Write the leaderboard as CSV."""
    write_atomic(path, csv_text(run))


def csv_text(*runs: RunResult) -> str:
    """Return leaderboards as CSV. Text that a spreadsheet would take for a formula gets a `'` before it."""
    columns, rows = tidy(*runs)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _inert(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = safe_text(value)
    return f"'{text}" if value.startswith("\t") or text.startswith(("=", "+", "-", "@")) else text


def write_parquet(run: RunResult, path: Path) -> None:
    """Write the leaderboard as Parquet."""
    columns, rows = tidy(run)
    write_table(path, rows, columns)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows as Parquet (zstd), with these columns and Arrow types; `list<…>` for a list. No rows are fine.

    Raises:
        InputError: If the place cannot be written to.
    """
    write_atomic(path, table_bytes(rows, columns))


def table_bytes(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bytes:
    """Return the Parquet file that `write_table` writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(arrow_table(rows, columns), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def arrow_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    """Return rows as an Arrow table with these columns and types."""
    import pyarrow as pa

    def arrow(kind: str) -> Any:
        return pa.list_(arrow(kind[5:-1])) if kind.startswith("list<") else pa.type_for_alias(kind)

    schema = pa.schema([(name, arrow(kind)) for name, kind in columns.items()])
    return pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in columns}, schema=schema)
