"""Compresses and validates journal entries; invalid ones are recomputed."""

from __future__ import annotations

import json
import math
import re
import zlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from saeval._util import inflated
from saeval.records import Explanation, Metric, Outcome, Score, Usage

Usable = Callable[[Any], bool]
"""Returns whether an entry of the journal is valid."""

_USAGE = TypeAdapter(Usage)
_ROWS: TypeAdapter[list[dict[str, list[int] | list[float] | list[str]]]] = TypeAdapter(
    list[dict[str, list[int] | list[float] | list[str]]]
)
_ROUNDING = 1e-9
_LEVEL = 6  # zlib level
_MOST_BYTES = 1 << 26  # maximum bytes to decompress, since a few kilobytes may expand to gigabytes (zip bomb)
_USUAL: dict[str, Any] = {
    name: None if field.is_required() else field.get_default() for name, field in Outcome.model_fields.items()
}
_UNUSED: dict[str, Any] = asdict(Usage())
_FLAGS = frozenset({"active", "predicted"})
_DIGITS = frozenset({"active", "predicted", "decile"})
"""Columns that are stored as strings with one digit per window; `-` for None."""
_LINE = re.compile(r"[0-9-]*", re.ASCII)


def compact(value: Any) -> Any:
    """Return an entry with judged windows as columns, without default values in usage and columns.

    The columns are one text: JSON, zlib, base64.
    """
    result = value.get("result") if isinstance(value, dict) else None
    if not isinstance(result, dict):
        return value
    if isinstance(usage := value.get("usage"), dict):
        value = {**value, "usage": {k: v for k, v in usage.items() if k not in _UNUSED or v != _UNUSED[k]}}
    outcomes = result.get("outcomes")
    if not outcomes or isinstance(outcomes, dict):
        return value
    columns: dict[str, Any] = {name: [o[name] for o in outcomes] for name in outcomes[0]}
    for name in [name for name, column in columns.items() if column.count(_USUAL[name]) == len(column)]:
        del columns[name]
    for name in _DIGITS & columns.keys():
        text = "".join("-" if v is None else str(int(v)) for v in columns[name])
        columns[name] = text if len(text) == len(outcomes) else columns[name]
    text = json.dumps(columns, separators=(",", ":"))
    packed = b64encode(zlib.compress(text.encode(), _LEVEL)).decode()
    return {**value, "result": {**result, "outcomes": packed}}


def expanded(value: Any) -> Any:
    """Undo `compact`; entries of earlier versions or in another format are returned unchanged."""
    result = value.get("result") if isinstance(value, dict) else None
    if not isinstance(result, dict):
        return value
    if isinstance(usage := value.get("usage"), dict):
        value = {**value, "usage": {**_UNUSED, **usage}}
    columns = result.get("outcomes")
    if isinstance(columns, str):
        columns = _unpacked(columns)
    if not isinstance(columns, dict):
        return value
    columns = {name: _digits(column) for name, column in columns.items()}
    if not all(isinstance(column, list) for column in columns.values()):
        return value
    if len({len(column) for column in columns.values()}) > 1:
        return value
    for name in _FLAGS & columns.keys():
        columns[name] = [v if v is None else bool(v) for v in columns[name]]
    rows = zip(*columns.values(), strict=True)
    outcomes = [{**_USUAL, **dict(zip(columns, row, strict=True))} for row in rows]
    return {**value, "result": {**result, "outcomes": outcomes}}


def _unpacked(packed: str) -> Any:
    """Decompress packed columns; return None if they are damaged or too large."""
    try:
        return json.loads(inflated(packed, _MOST_BYTES))
    except (ValueError, zlib.error, RecursionError):
        return None


def _digits(column: Any) -> Any:
    """Convert a string of digits to a list; return other columns unchanged."""
    if not isinstance(column, str) or not _LINE.fullmatch(column):
        return column
    return [None if c == "-" else int(c) for c in column]


def usable_explanation(entry: Any) -> bool:
    """Return whether an entry contains a valid explanation, blank only if there is none, and its usage."""
    explanation = _usable(entry, Explanation)
    return isinstance(explanation, Explanation) and (explanation.status != "ok" or bool(explanation.text.strip()))


def usable_score(entry: Any, metrics: Sequence[Metric]) -> bool:
    """Return whether an entry contains its usage and a valid score with values in the metrics' ranges."""
    score = _usable(entry, Score)
    return isinstance(score, Score) and out_of_range(score, metrics) is None


def out_of_range(score: Score, metrics: Sequence[Metric]) -> str | None:
    """Return what is wrong with a score's values: no headline metric, or a value out of range; None if valid."""
    if score.status != "ok":
        return None
    if metrics[0].name not in score.values:
        return f"no {metrics[0].name}"
    for metric in metrics:
        value = score.values.get(metric.name)
        if value is not None and not metric.low - _ROUNDING <= value <= metric.high + _ROUNDING:
            return f"{metric.name} = {value}, outside {metric.low} to {metric.high}"
    return None


def numbers(entry: Any, names: Sequence[str]) -> bool:
    """Return whether an entry maps these names to finite numbers."""
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), int | float) and math.isfinite(entry[name]) for name in names
    )


def rows(entry: Any, n: int) -> bool:
    """Return whether an entry contains a result with n rows of lists, or with none."""
    try:
        found = _ROWS.validate_python(entry.get("result") if isinstance(entry, dict) else None)
    except ValidationError:
        return False
    return len(found) in (0, n)


def _usable(entry: Any, kind: type[Explanation] | type[Score]) -> Explanation | Score | None:
    if not isinstance(entry, dict):
        return None
    try:
        usage = _USAGE.validate_python(entry.get("usage"))
        result = kind.model_validate(entry.get("result"))
    except ValidationError:
        return None
    taken = (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.usd or 0.0)
    return result if all(0 <= part < math.inf for part in taken) else None
