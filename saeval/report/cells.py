"""The tables of one cell: latents, windows, judgements and explanations, as Parquet and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saeval.files import write_atomic
from saeval.report.tables import write_table

Row = Mapping[str, Any]

_LATENTS = {
    "latent": "int64", "firings": "int64", "windows": "int64", "density": "double",
    "max_activation": "double", "explanation_status": "string",
}  # fmt: skip
_EXAMPLES = {
    "latent": "int64", "role": "string", "active": "bool", "decile": "int8", "context": "int64", "start": "int32",
    "document": "int32", "tokens": "list<string>", "token_ids": "list<int32>", "activations": "list<float>",
}  # fmt: skip
_JUDGEMENTS = {
    "latent": "int64", "scorer": "string", "variant": "string", "example": "string", "active": "bool",
    "predicted": "bool", "probability": "double", "decile": "int8", "status": "string", "reason": "string",
}  # fmt: skip


def write_latents(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a latent; columns `score.<label>.<metric>` follow the fixed ones."""
    scores = dict.fromkeys((key for row in rows for key in row if key.startswith("score.")), "double")
    write_table(path, rows, {**_LATENTS, **scores})


def write_examples(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a window that explained or scored a latent, with tokens and activations."""
    write_table(path, rows, _EXAMPLES)


def write_judgements(path: Path, rows: Sequence[Row]) -> None:
    """Write one row a judged window: truth, answer, probability, or why there is no answer."""
    write_table(path, rows, _JUDGEMENTS)


def write_explanations(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON line an explanation."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
