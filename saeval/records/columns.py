"""Defines how a value is shown on leaderboards: head, unit, format, direction and tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Place = Literal["board", "report", "scores", "details", "tables", "requested"]
"""Kinds of table. `board`: one line per cell, for narrow output (terminal, LaTeX, joined boards as text); `report`: the
same for wide output (report.md and pages); `scores`: one line per cell, scorer and explanation, narrow (terminal);
`details`: the same for wide output (report.md, joined boards in Markdown, pages); `tables`: CSV, Parquet, JSON;
`requested`: joined boards in Markdown, beside `details`, if at least one score has a value."""
EVERYWHERE: frozenset[Place] = frozenset(get_args(Place)) - {"requested"}
NOT_ON_NARROW_BOARDS: frozenset[Place] = EVERYWHERE - {"board"}
PER_SCORE: frozenset[Place] = frozenset({"scores", "details", "tables"})
WITH_ROOM: frozenset[Place] = frozenset({"details", "tables"})
TABLES_ONLY: frozenset[Place] = frozenset({"tables"})

Better = Literal["higher", "lower"]
Kind = Literal["string", "bool", "int64", "double", "interval"]


@dataclass(frozen=True)
class ColumnStyle:
    """How a value is shown on leaderboards; annotates the field that holds it.

    Attributes:
        title: Heading of its column; the name if empty.
        format: Format specification of its numbers, or `measure` for four digits.
        precise: Format specification for wide output; `format` if empty.
        unit: Unit of its values.
        better: Direction; None if neither direction is better.
        where: The kinds of table that show it.
        kind: Arrow type of its values; `interval` for a pair, which flat tables store in two columns.
        missing: Shown in place of a missing value.
    """

    title: str = ""
    format: str = ""
    precise: str = ""
    unit: str = ""
    better: Better | None = None
    where: frozenset[Place] = EVERYWHERE
    kind: Kind = "double"
    missing: str = "–"

    def form(self, place: Place) -> str:
        """Return the format specification for a kind of table."""
        return self.precise if place in ("report", "details") and self.precise else self.format

    def flat(self, name: str, value: Any) -> dict[str, Any]:
        """Return a value as columns of a flat table, by name; for a name that ends in a dot, one column per key."""
        if self.kind == "interval":
            return dict(zip(_ends(name), value or (None, None), strict=True))
        if name.endswith("."):
            return {f"{name}{key}": v for key, v in value.items()}
        return {name: value}

    def types(self, name: str, keys: Iterable[str]) -> dict[str, str]:
        """Return the Arrow types of a flat table's columns by name; for a name that ends in a dot, of its keys."""
        if self.kind == "interval":
            return dict.fromkeys(_ends(name), "double")
        if name.endswith("."):
            return {key: self.kind for key in keys if key.startswith(name)}
        return {name: self.kind}


def _ends(name: str) -> tuple[str, str]:
    stem = name.removesuffix("95")
    return f"{stem}_low", f"{stem}_high"


NAME_COLUMN = ColumnStyle(kind="string", where=TABLES_ONLY)
"""Style of columns with names: in tables only, since boards show names in headings and separate columns."""
