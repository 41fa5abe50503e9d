"""Compresses and validates journal entries; invalid ones are recomputed."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from saeval._util import deflated, inflated
from saeval.records import Explanation, JudgedWindows, Metric, Outcome, Score, Usage

R = TypeVar("R", Explanation, Score)

_USAGE = TypeAdapter(Usage)
_FACTS: TypeAdapter[dict[int, dict[str, float | list[int] | list[float] | list[str]]]] = TypeAdapter(
    dict[int, dict[str, float | list[int] | list[float] | list[str]]]
)
_ROUNDING = 1e-9
_MOST_BYTES = 1 << 26  # maximum bytes to decompress, since a few kilobytes may expand to gigabytes (zip bomb)
_USUAL: dict[str, Any] = {
    name: None if field.is_required() else field.get_default() for name, field in Outcome.model_fields.items()
}
_UNUSED = vars(Usage())
_FLAGS = frozenset({"active", "predicted"})
_DIGITS = frozenset({"active", "predicted", "decile"})
"""Columns that are stored as strings with one digit per window; `-` for None."""
_DIGIT: dict[int | None, str] = {None: "-", **{digit: str(digit) for digit in range(10)}}  # True is 1, False is 0
_LINE = re.compile(r"[0-9-]*", re.ASCII)
_NUMBER: dict[str, int | None] = {digit: number for number, digit in _DIGIT.items()}


def entry_of(result: Explanation | Score, usage: Usage, judged: JudgedWindows | None = None) -> dict[str, Any]:
    """Return the journal's entry of a result: JSON, without default values in the usage.

    Judged windows are stored as columns without those that have only default values, in one text: JSON, zlib, base64.

    Args:
        result: The explanation or score.
        usage: Usage of its calls.
        judged: Its judged windows as columns, if at hand; default: its `outcomes`.
    """
    used = {name: value for name, value in vars(usage).items() if value != _UNUSED[name]}
    if isinstance(result, Explanation) or not result.outcomes:
        return {"result": result.model_dump(mode="json"), "usage": used}
    fields = result.model_copy(update={"outcomes": ()}).model_dump(mode="json")
    return {"result": {**fields, "outcomes": _packed(judged or JudgedWindows.of(result.outcomes))}, "usage": used}


def _packed(judged: JudgedWindows) -> str:
    n = len(judged.example)
    columns = {
        name: "".join(map(_DIGIT.__getitem__, column)) if name in _DIGITS else column
        for name, column in judged._asdict().items()
        if column.count(_USUAL[name]) < n
    }
    text = json.dumps(columns, separators=(",", ":"))
    return b64encode(deflated(text.encode())).decode()


def judged_windows(entry: Any) -> JudgedWindows | None:
    """Return the judged windows of a score's entry; None if there are none, or they cannot be read.

    Earlier versions stored them as lists of numbers, and before that as a mapping for each window.
    """
    result = entry.get("result") if isinstance(entry, dict) else None
    columns = result.get("outcomes") if isinstance(result, dict) else None
    if isinstance(columns, str):
        columns = _unpacked(columns)
    if isinstance(columns, list):
        columns = _transposed(columns)
    if not isinstance(columns, dict) or not columns.keys() <= _USUAL.keys():
        return None
    columns = {name: _digits(column) for name, column in columns.items()}
    lists = all(isinstance(column, list) for column in columns.values())
    if not lists or len(lengths := {len(column) for column in columns.values()}) != 1:
        return None
    (n,) = lengths
    for name in _FLAGS & columns.keys():
        columns[name] = [v if v is None else bool(v) for v in columns[name]]
    return JudgedWindows(**{name: columns.get(name, [usual] * n) for name, usual in _USUAL.items()})


def expanded(entry: Any) -> Any:
    """Return a result's entry as JSON of its `Explanation` or `Score` and its usage, with default values.

    An entry in another format is returned unchanged.
    """
    result = entry.get("result") if isinstance(entry, dict) else None
    if not isinstance(result, dict):
        return entry
    if isinstance(usage := entry.get("usage"), dict):
        entry = {**entry, "usage": {**_UNUSED, **usage}}
    if (judged := judged_windows(entry)) is None:
        return entry
    outcomes = [dict(zip(judged._fields, row, strict=True)) for row in zip(*judged, strict=True)]
    return {**entry, "result": {**result, "outcomes": outcomes}}


def _transposed(rows: Sequence[Any]) -> dict[str, list[Any]] | None:
    """Return mappings with the same keys as columns; None if they are something else."""
    if not rows or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        return None
    return {name: [row[name] for row in rows] for name in rows[0]}


def _unpacked(packed: str) -> Any:
    """Decompress packed columns; return None if they are damaged or too large."""
    try:
        return json.loads(inflated(packed, _MOST_BYTES))
    except (ValueError, RecursionError):
        return None


def _digits(column: Any) -> Any:
    """Convert a string of digits to a list; return other columns unchanged."""
    if not isinstance(column, str) or not _LINE.fullmatch(column):
        return column
    return [*map(_NUMBER.__getitem__, column)]


class Kept(NamedTuple, Generic[R]):
    """A result from the journal.

    Attributes:
        result: The explanation or score.
        usage: Usage of its calls.
    """

    result: R
    usage: Usage


def kept_explanation(entry: Any) -> Kept[Explanation] | None:
    """Return the explanation of an entry; None if it is invalid, or blank although its status is `ok`."""
    kept = _kept(entry, Explanation)
    blank = kept is not None and kept.result.status == "ok" and not kept.result.text.strip()
    return None if blank else kept


def kept_score(entry: Any, metrics: Sequence[Metric]) -> Kept[Score] | None:
    """Return the score of an entry; None if it is invalid, or a value is not in its metric's range."""
    kept = _kept(entry, Score)
    return None if kept is None or out_of_range(kept.result, metrics) is not None else kept


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


def facts_of(entry: Any) -> dict[int, dict[str, Any]]:
    """Return the facts of latents in an entry, by latent; empty if it contains no such facts."""
    try:
        return {**_FACTS.validate_python(entry.get("result") if isinstance(entry, dict) else {})}
    except ValidationError:
        return {}


def _kept(entry: Any, kind: type[R]) -> Kept[R] | None:
    whole = expanded(entry)
    if not isinstance(whole, dict):
        return None
    try:
        usage = _USAGE.validate_python(whole.get("usage"))
        result = kind.model_validate(whole.get("result"))
    except ValidationError:
        return None
    taken = (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.usd or 0.0)
    return Kept(result, usage) if all(0 <= part < math.inf for part in taken) else None
