"""Expands the matrix of a spec into one document per combination of its axes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

from saeval._util import Located, SpecError, did_you_mean
from saeval.task.spec.document import KeyPath, SpecDocument

_SLOT = re.compile(r"\$\{([^}]*)\}")
Places = dict[KeyPath, tuple[Path | None, int]]


def cells_of(document: SpecDocument) -> Iterator[tuple[dict[str, Any], SpecDocument]]:
    """Yield axis values and the filled-in document for every combination of the matrix.

    Raises:
        SpecError: If the matrix is malformed; after the last cell, if a `${…}` refers to something outside of it, or an
            entry of `exclude` excludes nothing.
    """
    matrix = document.data.get("matrix", {})
    if not isinstance(matrix, dict) or not all(isinstance(v, list) and v for v in matrix.values()):
        raise SpecError([f"{document.where(('matrix',))}: each axis should be a list of values"])
    excluded = document.data.get("exclude", [])
    if not isinstance(excluded, list) or not all(isinstance(e, dict) and e for e in excluded):
        raise SpecError([f"{document.where(('exclude',))}: should be a list of mappings from axis to id"])
    unknown = [f"{document.where(('exclude', i))}: {x}" for i, e in enumerate(excluded) for x in _unknown(e, matrix)]
    problems: list[str] = []
    template = {k: v for k, v in document.data.items() if k not in ("matrix", "exclude")}
    yielded = False
    for numbers in product(*(range(len(values)) for values in matrix.values())):
        chosen = dict(zip(matrix, numbers, strict=True))
        axes = {axis: matrix[axis][number] for axis, number in chosen.items()}
        ids = {axis: axis_id(value) for axis, value in axes.items()}
        if any(all(ids.get(k) == str(v) for k, v in e.items()) for e in excluded):
            continue
        wrong: dict[KeyPath, list[str]] = {}
        filled = _fill(template, axes, (), wrong)
        problems += [f"{document.where(path)}: {reason}" for path, reasons in wrong.items() for reason in reasons]
        moved = _moved(template, chosen, (), document, wrong)
        yielded = True
        yield axes, SpecDocument(filled, document.places | moved, wrong)
    if not yielded:
        raise SpecError([f"{document.where(('exclude',))}: excludes all cells of the matrix; remove an entry"])
    if problems or unknown:
        raise SpecError(list(dict.fromkeys([*problems, *unknown])))


def _unknown(entry: Mapping[str, Any], matrix: Mapping[str, list[Any]]) -> Iterator[str]:
    """Yield what an entry of `exclude` names that the matrix does not have: it would exclude nothing."""
    for axis, value in entry.items():
        if axis not in matrix:
            yield f"the matrix has no axis {axis!r}{did_you_mean(axis, matrix)}; it has: {', '.join(matrix) or 'none'}"
        elif str(value) not in (ids := [axis_id(v) for v in matrix[axis]]):
            yield f"the axis {axis} has no {str(value)!r}{did_you_mean(str(value), ids)}; it has: {', '.join(ids)}"


def axis_id(value: Any) -> str:
    """Return the name of an axis value: its `id`, or the value itself."""
    return str(value["id"]) if isinstance(value, Mapping) and "id" in value else str(value)


def _slot(expression: str) -> str:
    """Return an expression as written in the spec, with control characters escaped."""
    return f"${{{repr(expression)[1:-1]}}}"


def _moved(
    value: Any, chosen: Mapping[str, int], path: KeyPath, document: SpecDocument, wrong: Collection[KeyPath]
) -> Places:
    """Return the places of filled-in values: where the matrix defines them, not where the slots are."""
    found: Places = {}
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found |= _moved(inner, chosen, (*path, key), document, wrong)
    elif isinstance(value, str) and path not in wrong and (whole := _SLOT.fullmatch(value)):
        axis, *keys = whole[1].split(".")[1:]
        origin: KeyPath = ("matrix", axis, chosen[axis], *keys)
        inside = [known for known in document.places if known[: len(origin)] == origin]
        found = {(*path, *known[len(origin) :]): document.places[known] for known in inside}
    return found


def _fill(value: Any, axes: dict[str, Any], path: KeyPath, wrong: dict[KeyPath, list[str]]) -> Any:
    """Return a value with every `${…}` filled in; those that are wrong stay, and `wrong` gets the reasons."""
    if isinstance(value, dict):
        return {k: _fill(v, axes, (*path, k), wrong) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, axes, (*path, i), wrong) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def look_up(slot: re.Match[str]) -> Any:
        root, *keys = slot[1].split(".")
        at: Any = axes
        if root != "matrix" or not keys:
            wrong.setdefault(path, []).append(f"only ${{matrix.AXIS}} can be filled in (got {_slot(slot[1])})")
            return slot[0]
        for key in keys:
            if not isinstance(at, Mapping) or key not in at:
                have = ", ".join(map(str, at)) if isinstance(at, Mapping) and at else "none"
                wrong.setdefault(path, []).append(f"{_slot(slot[1])}: no {key!r} there; it has {have}")
                return slot[0]
            at = at[key]
        return deepcopy(at) if not isinstance(at, str) else at

    if whole := _SLOT.fullmatch(value):
        return look_up(whole)
    text = _SLOT.sub(lambda slot: axis_id(look_up(slot)), value)
    return Located(text, value.file, value.line) if isinstance(value, Located) else text
