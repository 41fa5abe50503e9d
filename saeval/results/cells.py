"""Writes the tables of one cell: latents, windows, judgements and explanations, as Parquet and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from saeval._util import replacing
from saeval.results.tables import TableWriter, table_writer

Fields = Mapping[str, Any]

_LATENTS = {
    "latent": "int64", "firings": "int64", "windows": "int64", "density": "double",
    "max_activation": "double", "token_share": "double", "position_dependence": "double", "explanation_words": "int32",
    "explanation_status": "string", "histogram": "list<int64>", "histogram_top": "double",
    "mean_square": "double",
}  # fmt: skip
_DIRECTIONS = {
    "neighbours": "list<int64>", "cosines": "list<float>", "promoted": "list<string>", "suppressed": "list<string>",
    "decoder_norm": "double",
}  # fmt: skip
_EXAMPLES = {
    "latent": "int64", "role": "string", "active": "bool", "decile": "int8", "context": "int64", "start": "int32",
    "document": "int32", "tokens": "list<string>", "activations": "list<float>",
}  # fmt: skip
_ACTIVATIONS = {
    "latent": "int64", "group": "string", "context": "int64", "start": "int32", "document": "int32",
    "tokens": "list<string>", "activations": "list<float>",
}  # fmt: skip
_JUDGEMENTS = {
    "latent": "int64", "scorer": "string", "variant": "string", "example": "string", "active": "bool",
    "predicted": "bool", "probability": "double", "decile": "int8", "weight": "double", "status": "string",
    "reason": "string", "tokens": "list<string>", "activations": "list<float>",
}  # fmt: skip
_SCORES = {
    "latent": "int64", "scorer": "string", "variant": "string", "metric": "string", "value": "double",
    "low": "double", "high": "double", "status": "string", "reason": "string",
}  # fmt: skip
_CALLS = {
    "latent": "int64", "step": "string", "variant": "string", "call": "int32", "prompt": "string", "reply": "string",
    "status": "string",
}  # fmt: skip
CELL_TABLES = {
    "latents": {**_LATENTS, **_DIRECTIONS, "score.": "double"},
    "examples": _EXAMPLES, "activations": _ACTIVATIONS, "judgements": _JUDGEMENTS, "scores": _SCORES, "calls": _CALLS,
}  # fmt: skip
"""Columns and Arrow types of each table; a name that ends in a dot stands for all columns with this prefix."""


class CellWriters(NamedTuple):
    """Writers of the tables of one cell.

    Attributes:
        latents: One row per latent; the fixed columns come first, then facts about directions, then
            `score.<label>.<metric>`.
        examples: One row per window that explained or scored a latent, with tokens and activations.
        activations: One row per selected window in which a latent fires, over the whole range of activations.
        explanations: One row per explanation.
        scores: One row per latent, scorer, explanation and metric; a missing score is one row without a metric.
        judgements: One row per judged window: truth, answer, probability, or the reason why there is no answer.
        calls: One row per prompt. Text that prompts share is stored once per about four thousand prompts.
    """

    latents: TableWriter
    examples: TableWriter
    activations: TableWriter
    explanations: LineWriter
    scores: TableWriter
    judgements: TableWriter
    calls: TableWriter


@contextmanager
def cell_tables(folder: Path, scores: Sequence[str], *, directions: bool) -> Iterator[CellWriters]:
    """Yield the writers of a cell's tables. The files appear, complete, if the block ends without an error.

    Args:
        folder: Folder of the cell.
        scores: Columns `score.<label>.<metric>` of the latents.
        directions: Whether facts about the latents' directions are available.

    Raises:
        InputError: If the folder cannot be written to.
    """
    latents = {**_LATENTS, **(_DIRECTIONS if directions else {}), **dict.fromkeys(scores, "double")}
    with ExitStack() as files:

        def table(
            name: str, columns: Mapping[str, str], at_once: int = 20_000, unlike: Sequence[str] = ()
        ) -> TableWriter:
            return files.enter_context(table_writer(folder / f"{name}.parquet", columns, at_once, unlike))

        yield CellWriters(
            table("latents", latents),
            table("examples", _EXAMPLES, 40_000),  # tokens that rows share are written once per row group
            table("activations", _ACTIVATIONS),
            files.enter_context(_line_writer(folder / "explanations.jsonl")),
            table("scores", _SCORES),
            table("judgements", _JUDGEMENTS, unlike=["example"]),
            table("calls", _CALLS, 4000, unlike=["prompt"]),
        )


class LineWriter:
    """Writes a file of JSON lines."""

    def __init__(self, file: TextIO):
        self._file = file

    def add(self, rows: Iterable[Fields]) -> None:
        """Add rows."""
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def _line_writer(path: Path) -> Iterator[LineWriter]:
    with replacing(path) as place, place.open("w", encoding="utf-8", newline="\n") as file:
        yield LineWriter(file)
