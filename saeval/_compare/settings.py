"""Finds settings of samplers, explainers, scorers and text that differ between runs or cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from saeval._util import counted
from saeval.records import CellResult, PartSettings

_SHOWN = 4  # options, or cells, that a text names
_LONGEST = 40  # characters of a value

_Sides = Mapping[str, Sequence[PartSettings]]
"""Different settings of one part by the name of their side."""


def settings_key(cell: CellResult, place: str) -> str:
    """Return a key of a part's settings and code, such as those of `scorers.detection`; empty if unknown."""
    found = cell.settings.get(place)
    if found is None:
        return ""
    code = {label: sha for label, sha in found.code.items() if sha or label != found.plugin}
    return json.dumps([found.sha, sorted(code.items())]) if code else found.sha


def differing_settings(sides: Mapping[str, Sequence[CellResult]]) -> Iterator[str]:
    """Yield a text for each part whose plugin, code or settings differ between sides, naming what differs.

    A side may have several settings on purpose, on an axis of its matrix, so sides are compared by their sets of
    settings. Sides without the part, or with unknown settings or code, are not compared.

    Args:
        sides: Cells by the name of their side.
    """
    for place in dict.fromkeys(place for cells in sides.values() for cell in cells for place in cell.settings):
        found = {name: _distinct(cells, place) for name, cells in sides.items()}
        found = {name: parts for name, parts in found.items() if parts}
        if said := _differences(found):
            yield f"{place}: {said}"


class TextOf(NamedTuple):
    """The text that a cell reads.

    Attributes:
        cell: Name of the cell.
        kin: What cells must share for a comparison: the subject model, or all options but those of the coder.
        corpus: Hash of the tokens; any other text, distinct for each cell, if unknown.
        options: Options about the text that the spec leaves to the coder's files.
    """

    cell: str
    kin: str
    corpus: str
    options: Mapping[str, JsonValue]


def differing_text(texts: Iterable[TextOf]) -> Iterator[str]:
    """Yield a note for each option that coders' files set differently, so that cells read different text.

    Cells that differ in their text only because the spec says so, such as on an axis of corpora, are not noted.
    """
    kin: dict[str, list[TextOf]] = {}
    for text in texts:
        kin.setdefault(text.kin, []).append(text)
    for some in kin.values():
        if len({text.corpus for text in some}) == 1:
            continue
        for option in dict.fromkeys(option for text in some for option in text.options):
            cells: dict[str, list[str]] = {}
            for text in some:
                if option in text.options:
                    cells.setdefault(_text(text.options[option]), []).append(text.cell)
            if len(cells) > 1:
                said = ", ".join(f"{value} ({_names(names)})" for value, names in cells.items())
                yield (
                    f"The coders' files set different values of {option}: {said}. Part of a difference between these "
                    f"cells may come from the text; set source.with.{option} to a common value."
                )


def _names(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def _distinct(cells: Sequence[CellResult], place: str) -> list[PartSettings]:
    parts = [cell.settings[place] for cell in cells if place in cell.settings]
    return list({(part.plugin, part.sha, tuple(part.code.items())): part for part in parts}.values())


def _differences(sides: _Sides) -> str:
    """Return what differs between sides; empty if nothing does."""
    plugins = {name: [part.plugin for part in parts] for name, parts in sides.items()}
    names = {name: [_without_version(plugin) for plugin in labels] for name, labels in plugins.items()}
    if _differ(names):  # which have other options, too
        return f"plugin differs: {_said(plugins)}"
    found = [f"plugin differs: {_said(plugins)}"] if _differ(plugins) else []
    found += [*_inner_plugins(sides), *_code(sides)]
    if _differ({name: [part.sha for part in parts] for name, parts in sides.items()}):
        found += _options(sides)
        if not found:
            return f"prompts or files differ ({', '.join(sides)})"
    return "; ".join(found)


def _inner_plugins(sides: _Sides) -> Iterator[str]:
    """Yield a text for each plugin in the options, such as a wrapped scorer, whose version differs."""
    found: dict[str, dict[str, list[str]]] = {}
    for side, parts in sides.items():
        for part in parts:
            for label in part.code:
                if label != part.plugin:
                    found.setdefault(_without_version(label), {}).setdefault(side, []).append(label)
    for having in found.values():
        if _differ(having):
            yield f"plugin differs: {_said(having)}"


def _code(sides: _Sides) -> Iterator[str]:
    """Yield a text for each plugin whose source files differ under one version, among sides that recorded them."""
    found: dict[str, dict[str, list[str]]] = {}
    for side, parts in sides.items():
        for part in parts:
            for label, sha in part.code.items():
                if sha:
                    found.setdefault(label, {}).setdefault(side, []).append(sha)
    for label, having in found.items():
        if _differ(having):
            yield f"code of {label} differs ({', '.join(having)})"


def _options(sides: _Sides) -> list[str]:
    """Return a text for each option that differs; of many, for the first ones and their number."""
    found = []
    parts = [part for each in sides.values() for part in each]
    for option in dict.fromkeys(option for part in parts for option in part.options):
        values = {name: [_text(part.options.get(option)) for part in each] for name, each in sides.items()}
        if _differ(values):
            found.append(f"{option} differs: {_said(values)}")
    more = [f"{counted(len(found) - _SHOWN, 'more option')} differ"] if len(found) > _SHOWN else []
    return [*found[:_SHOWN], *more]


def _without_version(plugin: str) -> str:
    return plugin.rpartition(" ")[0]


def _differ(values: Mapping[str, Sequence[str]]) -> bool:
    return len({frozenset(each) for each in values.values()}) > 1


def _said(values: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{' and '.join(dict.fromkeys(each))} ({name})" for name, each in values.items())


def _text(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
