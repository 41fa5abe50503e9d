"""Single tables of a cell, with their columns and types; a run writes all of a cell's tables at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saeval.results import CELL_TABLES, write_table

Fields = Mapping[str, Any]

_DIRECTIONS = ("neighbours", "cosines", "promoted", "suppressed", "decoder_norm")


def write_latents(path: Path, rows: Sequence[Fields]) -> None:
    """Write one row per latent; columns of directions and scores only where rows have them."""
    names = dict.fromkeys(name for row in rows for name in row)
    absent = {"score.", *(name for name in _DIRECTIONS if name not in names)}
    kinds = {name: kind for name, kind in CELL_TABLES["latents"].items() if name not in absent}
    write_table(path, rows, {**kinds, **{name: "double" for name in names if name.startswith("score.")}})


def write_examples(path: Path, rows: Iterable[Fields]) -> None:
    """Write one row per window."""
    write_table(path, rows, CELL_TABLES["examples"])


def write_judgements(path: Path, rows: Iterable[Fields]) -> None:
    """Write one row per judged window."""
    write_table(path, rows, CELL_TABLES["judgements"])


def write_calls(path: Path, rows: Iterable[Fields]) -> None:
    """Write one row per prompt."""
    write_table(path, rows, CELL_TABLES["calls"])


def write_explanations(path: Path, rows: Iterable[Fields]) -> None:
    """Write one JSON line per explanation."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
