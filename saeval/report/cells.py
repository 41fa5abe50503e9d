"""The tables of one cell: latents, windows, judgements and explanations, as Parquet and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saeval.files import write_atomic

Row = Mapping[str, Any]


def write_latents(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a latent; columns `score.<label>.<metric>` follow the fixed ones."""
    import pyarrow as pa

    fixed = {
        "latent": pa.int64(), "firings": pa.int64(), "windows": pa.int64(), "density": pa.float64(),
        "max_activation": pa.float64(), "explanation_status": pa.string(),
    }  # fmt: skip
    scores = dict.fromkeys((key for row in rows for key in row if key.startswith("score.")), pa.float64())
    _write(path, rows, {**fixed, **scores})


def write_examples(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a window that explained or scored a latent, with tokens and activations."""
    import pyarrow as pa

    _write(
        path, rows,
        {
            "latent": pa.int64(), "role": pa.string(), "active": pa.bool_(), "decile": pa.int8(), "context": pa.int64(),
            "start": pa.int32(), "document": pa.int32(), "tokens": pa.list_(pa.string()),
            "token_ids": pa.list_(pa.int32()), "activations": pa.list_(pa.float32()),
        },
    )  # fmt: skip


def write_judgements(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a judged window: truth, answer, probability, or why there is no answer."""
    import pyarrow as pa

    _write(
        path, rows,
        {
            "latent": pa.int64(), "scorer": pa.string(), "variant": pa.string(), "example": pa.string(),
            "active": pa.bool_(), "predicted": pa.bool_(), "probability": pa.float64(), "decile": pa.int8(),
            "status": pa.string(), "reason": pa.string(),
        },
    )  # fmt: skip


def write_explanations(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON line an explanation."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, rows: Sequence[Row], columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(list(columns.items()))
    table = pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in columns}, schema=schema)
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)
