"""The tables of one cell: latents, windows, judgements and explanations, as Parquet and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from saeval.files import write_atomic
from saeval.report.tables import arrow_table, write_table

Row = Mapping[str, Any]

_LATENTS = {
    "latent": "int64", "firings": "int64", "windows": "int64", "density": "double",
    "max_activation": "double", "token_share": "double", "position_dependence": "double", "explanation_words": "int32",
    "explanation_status": "string",
}  # fmt: skip
_DIRECTIONS = {"neighbours": "list<int64>", "cosines": "list<float>", "promoted": "list<string>"}
_EXAMPLES = {
    "latent": "int64", "role": "string", "active": "bool", "decile": "int8", "context": "int64", "start": "int32",
    "document": "int32", "tokens": "list<string>", "token_ids": "list<int32>", "activations": "list<float>",
}  # fmt: skip
_JUDGEMENTS = {
    "latent": "int64", "scorer": "string", "variant": "string", "example": "string", "active": "bool",
    "predicted": "bool", "probability": "double", "decile": "int8", "status": "string", "reason": "string",
}  # fmt: skip
_SCORES = {
    "latent": "int64", "scorer": "string", "variant": "string", "metric": "string", "value": "double",
    "status": "string", "reason": "string",
}  # fmt: skip
_CALLS = {
    "latent": "int64", "step": "string", "variant": "string", "call": "int32", "prompt": "string", "reply": "string",
    "status": "string",
}  # fmt: skip
_ROWS = 2000  # calls that are in memory at a time


def write_latents(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a latent; what is known of directions, and `score.<label>.<metric>`, follow the fixed columns."""
    scores = dict.fromkeys((key for row in rows for key in row if key.startswith("score.")), "double")
    known = {name: kind for name, kind in _DIRECTIONS.items() if any(name in row for row in rows)}
    write_table(path, rows, {**_LATENTS, **known, **scores})


def write_examples(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a window that explained or scored a latent, with tokens and activations."""
    write_table(path, rows, _EXAMPLES)


def write_judgements(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a judged window: truth, answer, probability, or why there is no answer."""
    write_table(path, rows, _JUDGEMENTS)


def write_scores(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a latent, scorer, explanation and metric; one without metric where there is no score."""
    write_table(path, rows, _SCORES)


def write_calls(path: Path, rows: Iterable[Row]) -> None:
    """Write one row a prompt, in the order of latents; what prompts share takes room once in some two thousand."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, sink = arrow_table([], _CALLS).schema, pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=["step", "variant", "status"]) as file:
        left = iter(rows)
        while some := list(islice(left, _ROWS)):
            file.write_table(arrow_table(some, _CALLS))
    write_atomic(path, sink.getvalue().to_pybytes())


def write_explanations(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON line an explanation."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
