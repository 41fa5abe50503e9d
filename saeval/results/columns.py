"""The columns of leaderboards: terminal, Markdown, LaTeX, CSV, Parquet, JSON and pages all show this list.

A field of `ScoreRow` that is annotated with `ColumnStyle` is a column. Columns that combine several fields, or describe
a cell, are declared here. Plugins also contribute columns: coders and sources by the measures that they declare
(`Coder.measures`), scorers by metrics with `on_board`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, get_origin

from saeval._util import MISSING, descriptions
from saeval.records import (
    EVERYWHERE,
    NAME_COLUMN,
    NOT_ON_NARROW_BOARDS,
    TABLES_ONLY,
    CellResult,
    ColumnStyle,
    Measure,
    Place,
    RunResult,
    ScoreRow,
)
from saeval.results import row_texts


class Line(NamedTuple):
    """The data from which a column reads its value.

    Attributes:
        run: The run.
        cell: The cell.
        row: The score; None for columns of cells.
    """

    run: RunResult
    cell: CellResult
    row: ScoreRow | None = None

    @property
    def score(self) -> ScoreRow:
        """The score; use it only in columns of scores."""
        assert self.row is not None
        return self.row


class Estimate(NamedTuple):
    """A score with its interval, or the reason why there is none.

    Attributes:
        value: The score.
        ci95: Its 95 % interval.
        why: Why there is no score, in a word or two.
        few: Whether the interval may be too narrow because it is based on few latents.
        off: Whether a condition of the score was missed.
    """

    value: float | None
    ci95: tuple[float, float] | None
    why: str
    few: bool = False
    off: bool = False

    @property
    def marks(self) -> str:
        """Marks of the score: `*` for few latents, `≠` for a missed condition."""
        return "*" * self.few + "≠" * self.off

    @property
    def missing(self) -> str:
        """What boards show in place of a missing score: `– (3 failed)`."""
        return f"{MISSING} ({self.why})"


@dataclass(frozen=True)
class Column:
    """A column of a leaderboard.

    Attributes:
        name: Name in tables. If it ends in a dot, values are mappings and each key is a column.
        value: Returns the column's value for a line; None if there is none.
        shown: How boards show it.
        meaning: Description in one sentence; default: the docstring of the field with that name.
    """

    name: str
    value: Callable[[Line], Any]
    shown: ColumnStyle
    meaning: str = ""

    @property
    def key(self) -> str:
        """Name in JSON."""
        return self.name.removesuffix(".").removeprefix("measure.")

    @property
    def head(self) -> str:
        """Column head on boards."""
        return self.shown.title or self.key

    @cached_property
    def about(self) -> str:
        """Description in one sentence."""
        return self.meaning or " ".join(descriptions(ScoreRow).get(self.key, "").split())


def estimate(row: ScoreRow) -> Estimate:
    """Return a row's score, or the reason why there is none."""
    untold = "undefined" if row.tried else "none tried"
    why = f"{row.failed} failed" if row.failed else "skipped" if row.skipped else untold
    return Estimate(row.value, row.ci95, why, row.few, row.off)


MEASURES = (
    Measure(name="l0", title="L0", about="Latents that fire on a token, on average.", unit="latents", format=".1f"),
    Measure(name="density", about="Share of tokens on which a latent fires, on average.", on_board=False),
    Measure(name="frac_alive", title="alive", about="Share of latents that fire at all.", format=".2f"),
    Measure(name="d_sae", about="Width of the dictionary.", unit="latents", on_board=False),
    Measure(name="tokens", about="Tokens of the corpus.", unit="tokens", on_board=False),
    Measure(name="fvu", about="Share of the activations' variance that reconstructions leave unexplained.",
    format=".3f", better="lower"),
    Measure(name="ce_recovered", about="Share of the model's loss that reconstructions recover.", better="higher",
    on_board=False),
)  # fmt: skip
"""Facts about coders that saeval measures; `Coder.measures` adds to them."""

CELL_COLUMNS = (
    Column("run_id", attrgetter("run.run_id"), NAME_COLUMN),
    Column("task", attrgetter("run.task"), NAME_COLUMN),
    Column("task_version", attrgetter("run.task_version"), NAME_COLUMN),
    Column("spec_sha", attrgetter("run.spec_sha"), NAME_COLUMN),
    Column("synthetic", attrgetter("run.synthetic"), ColumnStyle(kind="bool", where=TABLES_ONLY)),
    Column("partial", attrgetter("run.partial"), ColumnStyle(kind="bool", where=TABLES_ONLY)),
    Column("cell", attrgetter("cell.cell"), NAME_COLUMN),
    Column("baseline", attrgetter("cell.baseline"), NAME_COLUMN),
    Column("subject", attrgetter("cell.subject"), NAME_COLUMN),
    Column("corpus", lambda line: line.cell.corpus or None, NAME_COLUMN),
    Column("axis.", attrgetter("cell.axes"), NAME_COLUMN),
    Column("measure.", attrgetter("cell.measures"), ColumnStyle(where=TABLES_ONLY)),
    Column("count.", attrgetter("cell.counts"), ColumnStyle(kind="int64", where=TABLES_ONLY)),
)
"""Columns that describe a cell, besides its measures."""


def _text(title: str, *where: Place) -> ColumnStyle:
    return ColumnStyle(title, kind="string", missing="", where=frozenset(where))


def _of_floor(name: str) -> Callable[[Line], Any]:
    return lambda line: None if line.score.against is None else getattr(line.score.against, name)


_FLOOR = ColumnStyle("floor", ".3f", missing="", where=frozenset({"scores"}))
_WEIGHTED = _text("weighted", "board", "requested")
_CORRECTED = _text("corrected", "board", "report", "details")

SCORE = Column(
    "score",
    lambda line: estimate(line.score),
    ColumnStyle(where=frozenset({"board", "report", "scores"})),
    "Mean over latents and its 95 % interval.",
)
SCORED = Column(
    "scored",
    lambda line: f"{line.score.n}/{line.score.tried}",
    ColumnStyle("n", unit="latents", where=frozenset({"report", "scores", "details"})),
    "Latents scored, of those tried.",
)


def _natural(row: ScoreRow) -> dict[str, float]:
    """Return the numeric natural rates by name; an interval becomes two entries, `_low` and `_high`."""
    found: dict[str, float] = {}
    for name, value in row.natural or ():
        if isinstance(value, tuple):
            stem = name.removesuffix("95")
            found |= {f"{stem}_low": value[0], f"{stem}_high": value[1]}
        elif isinstance(value, float):
            found[name] = value
    return found


def _written(write: Callable[[ScoreRow], str]) -> Callable[[Line], str | None]:
    return lambda line: write(line.score) or None


BESIDE = (
    Column("floors", _written(row_texts.floor), _text("floor", "report"), "Floor of the lift, and its latents."),
    Column("floor_at", _of_floor("value"), _FLOOR, "Floor of the lift."),
    Column("lifts", _written(row_texts.short_lift), _text("lift ↑", "board"), "Score above its floor."),
    Column("lift_text", _written(row_texts.lift), _text("lift", "report"), "Score above its floor."),
    Column("lift_from", _of_floor("variant"), NAME_COLUMN, "Whose explanations the floor is made of."),
    Column(
        "lift_n",
        _of_floor("n"),
        ColumnStyle(unit="latents", kind="int64", where=TABLES_ONLY),
        "Latents that have a floor.",
    ),
    Column(
        "lift_p",
        _of_floor("p"),
        ColumnStyle(where=TABLES_ONLY),
        "One-sided p of scores that do not depend on the explanation.",
    ),
    Column(
        "same_answers",
        _of_floor("same"),
        ColumnStyle(where=TABLES_ONLY),
        "Share of windows with one answer under both explanations.",
    ),
    Column(
        "answered_text",
        _written(row_texts.answered),
        _text("windows", "scores", "details", "report"),
        "Windows answered.",
    ),
    Column("weighted_text", _written(row_texts.weighted), _WEIGHTED, "Weighted mean and its 95 % interval."),
    Column("corrected_text", _written(row_texts.corrected), _CORRECTED, "Score corrected for the judge's errors."),
    Column(
        "natural_text",
        _written(row_texts.natural),
        _text("natural precision", "details"),
        "Precision at the rate at which latents fire in the corpus, with the judge's ceiling; ?: not identifiable.",
    ),
    Column(
        "natural.",
        lambda line: _natural(line.score),
        ColumnStyle(where=TABLES_ONLY),
        "Precision, F1 and IoU at that rate.",
    ),
    Column(
        "judge_text",
        _written(row_texts.judge),
        _text("verdict", "report", "details"),
        "What a check says of the judge.",
    ),
)
"""Columns that combine several fields of a score: floor, lift, answered windows, the judge."""


def _score_columns() -> Iterator[Column]:
    yield SCORE
    for name, field in ScoreRow.model_fields.items():
        if name == "n":
            yield SCORED
        if name == "explanation_words":
            yield from BESIDE
        for shown in (note for note in field.metadata if isinstance(note, ColumnStyle)):
            dot = "." if get_origin(field.annotation) is dict else ""
            yield Column(name + dot, attrgetter(f"score.{name}"), shown)


SCORE_COLUMNS = tuple(_score_columns())
"""Columns that describe a score: the fields of `ScoreRow` in order, and combinations of fields."""


def cell_columns(runs: Sequence[RunResult], place: Place) -> list[Column]:
    """Return the columns of cells that a kind of table shows: declared ones, then measures that any cell has."""
    fixed = [column for column in CELL_COLUMNS if place in column.shown.where]
    if place == "tables":  # the declared columns already include measures
        return fixed
    return [*fixed, *(column for column in measure_columns(runs) if place in column.shown.where)]


def measure_columns(runs: Sequence[RunResult]) -> Iterator[Column]:
    """Yield a column for each measure that any cell has: declared ones in order, then others."""
    declared = {m.name: m for m in (*MEASURES, *(m for run in runs for m in run.measures))}
    have = dict.fromkeys(name for run in runs for cell in run.cells for name in cell.measures)
    for name in (*(name for name in declared if name in have), *(name for name in have if name not in declared)):
        m = declared.get(name) or Measure(name=name, on_board=False)
        where = EVERYWHERE if m.on_board else NOT_ON_NARROW_BOARDS
        shown = ColumnStyle(m.title, m.format, "measure", m.unit, m.better, where)
        yield Column(f"measure.{name}", _measure(name), shown, m.about)


def _measure(name: str) -> Callable[[Line], float | None]:
    return lambda line: line.cell.measures.get(name)


def score_columns(place: Place) -> list[Column]:
    """Return the columns of scores that a kind of table shows."""
    return [column for column in SCORE_COLUMNS if place in column.shown.where]


def flat_tables(lines: Iterable[Line], runs: Sequence[RunResult]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the columns of a flat table with their Arrow types, and a row per score."""
    declared = [*cell_columns(runs, "tables"), *score_columns("tables")]
    rows = [{k: v for c in declared for k, v in c.shown.flat(c.name, c.value(line)).items()} for line in lines]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: kind for c in declared for key, kind in c.shown.types(c.name, keys).items()}, rows


def json_row(line: Line) -> dict[str, Any]:
    """Return a score's columns in tables as data for JSON."""
    found = {column.key: column.value(line) for column in score_columns("tables")}
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
