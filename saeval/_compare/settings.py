"""Finds settings of samplers, explainers and scorers that differ between runs or cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from saeval._util import counted
from saeval.records import CellResult, PartSettings

_SHOWN = 4  # options that a text names
_LONGEST = 40  # characters of a value


def settings_sha(cell: CellResult, place: str) -> str:
    """Return the hash of a part's settings, such as those of `scorers.detection`; empty if unknown."""
    found = cell.settings.get(place)
    return "" if found is None else found.sha


def differing_settings(sides: Mapping[str, Sequence[CellResult]]) -> Iterator[str]:
    """Yield a text for each part whose settings differ between sides, naming the options and their values.

    A side may have several settings on purpose, on an axis of its matrix, so sides are compared by their sets of
    settings. Sides without the part, or with unknown settings, are not compared.

    Args:
        sides: Cells by the name of their side.
    """
    for place in dict.fromkeys(place for cells in sides.values() for cell in cells for place in cell.settings):
        found = {name: _by_sha(cells, place) for name, cells in sides.items()}
        found = {name: parts for name, parts in found.items() if parts}
        if len({frozenset(parts) for parts in found.values()}) > 1:
            yield f"{place}: {_difference(found)}"


def _by_sha(cells: Sequence[CellResult], place: str) -> dict[str, PartSettings]:
    return {cell.settings[place].sha: cell.settings[place] for cell in cells if place in cell.settings}


def _difference(sides: Mapping[str, Mapping[str, PartSettings]]) -> str:
    plugins = {name: [part.plugin for part in parts.values()] for name, parts in sides.items()}
    if _differ(plugins):
        return f"plugin differs: {_said(plugins)}"
    found = []
    parts = [part for each in sides.values() for part in each.values()]
    for option in dict.fromkeys(option for part in parts for option in part.options):
        values = {name: [_text(part.options.get(option)) for part in each.values()] for name, each in sides.items()}
        if _differ(values):
            found.append(f"{option} differs: {_said(values)}")
    if not found:
        return f"prompts or files differ ({', '.join(sides)})"
    more = [f"{counted(len(found) - _SHOWN, 'more option')} differ"] if len(found) > _SHOWN else []
    return "; ".join([*found[:_SHOWN], *more])


def _differ(values: Mapping[str, Sequence[str]]) -> bool:
    return len({frozenset(each) for each in values.values()}) > 1


def _said(values: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{' and '.join(dict.fromkeys(each))} ({name})" for name, each in values.items())


def _text(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
