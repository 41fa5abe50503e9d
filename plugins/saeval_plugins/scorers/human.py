"""Human reads people's ratings of explanations from a table (paper §4.1)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from saeval.plugin import (
    Context,
    Examples,
    Explanation,
    InputError,
    LatentId,
    Metric,
    Score,
    Scorer,
    SpecPath,
    file_sha256,
)

_REQUIRED = ("latent", "rating")
_OPTIONAL = ("hookpoint", "rater", "example", "explanation")


class Rating(NamedTuple):
    """One row of the table; an empty `hookpoint` or `explanation` matches any."""

    latent: int
    rating: float
    hookpoint: str
    rater: str
    explanation: str


class Human(Scorer):
    """Scores each latent with the mean of its human ratings, 1 (worst) to 4 (best), from a CSV file.

    The columns are `latent` and `rating` and, optionally, `hookpoint`, `rater`, `example` and `explanation`. All rows
    have equal weight. A row with an `explanation` counts only for exactly this text (ignoring case and surrounding
    space), so ratings of one explainer never count for another or for a baseline. Latents without a rating are skipped.
    The report contains correlations with the other scorers.
    """

    name = "human"
    metrics = (Metric("rating", low=1, high=4),)

    path: SpecPath
    """The table: comma-separated, UTF-8; the path is relative to the spec."""

    @property
    def reads_explanation(self) -> bool:  # type: ignore[override]
        """Whether the table names the rated explanations; without them, baselines cannot be rated."""
        return any(rating.explanation for rating in self.ratings)

    def check(self) -> None:
        """Check that the table can be read."""
        self.ratings  # noqa: B018 - raises if it cannot be read

    def fingerprint(self) -> JsonValue:
        """Return the options and the hash of the table."""
        return [super().fingerprint(), file_sha256(self.path)]

    @cached_property
    def ratings(self) -> tuple[Rating, ...]:
        """All rows of the table.

        Raises:
            InputError: If it is missing, empty or malformed; the message names the line.
        """
        try:
            return tuple(_read(self.path))
        except OSError as error:
            raise InputError(f"ratings {self.path}: cannot be read ({error.strerror or error})") from error
        except UnicodeDecodeError as error:
            raise InputError(f"ratings {self.path}: not UTF-8 ({error.reason}); save the table as UTF-8") from error

    def cautions(self, values: Mapping[str, float], latents: Sequence[LatentId]) -> list[str]:
        """Warn if some ratings match no latent of the cell, or if no rating was used."""
        there = {(latent.index, place) for latent in latents for place in ("", latent.hookpoint)}
        strange = sum((rating.latent, rating.hookpoint) not in there for rating in self.ratings)
        said = []
        if strange:
            said.append(f"{strange} of {len(self.ratings)} ratings in {self.path.name} match no latent of this cell.")
        if not values and strange < len(self.ratings):
            said.append(f"no rating in {self.path.name} matches an explanation of this cell (column `explanation`).")
        return said

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Return the mean of the latent's ratings."""
        found = [rating for rating in self.ratings if _is_of(rating, context.latent, explanation)]
        if not found:
            return Score.skipped(f"{self.path.name} has no rating of latent {context.latent} and this explanation")
        raters = len({rating.rater for rating in found if rating.rater})
        mean = sum(rating.rating for rating in found) / len(found)
        return Score(values={"rating": mean}, notes={"ratings": len(found), "raters": raters or None})


def _is_of(rating: Rating, latent: LatentId, explanation: Explanation) -> bool:
    return (
        rating.latent == latent.index
        and rating.hookpoint in ("", latent.hookpoint)
        and rating.explanation in ("", _plain(explanation.text))
    )


def _plain(text: str) -> str:
    return text.strip().casefold()


def _read(path: Path) -> list[Rating]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        found: list[Rating] = []
        columns: list[str] = []
        try:
            for row in reader:
                place = f"ratings {path}, line {reader.line_num}"
                if not any(cell.strip() for cell in row):
                    continue
                if not columns:
                    columns = _columns(row, place)
                elif len(row) != len(columns):
                    raise InputError(f"{place}: {len(row)} values for {len(columns)} columns")
                else:
                    found.append(_rating(dict(zip(columns, map(str.strip, row), strict=True)), place))
        except csv.Error as error:
            raise InputError(f"ratings {path}, line {reader.line_num}: not CSV ({error})") from error
    if not found:
        raise InputError(f"ratings {path}: has no ratings")
    return found


def _columns(row: list[str], place: str) -> list[str]:
    columns = [name.strip().casefold() for name in row]
    if missing := [name for name in _REQUIRED if name not in columns]:
        raise InputError(f"{place}: no column {' and no column '.join(map(repr, missing))} among {', '.join(columns)}")
    if strange := [name for name in columns if name not in (*_REQUIRED, *_OPTIONAL)]:
        known = ", ".join((*_REQUIRED, *_OPTIONAL))
        raise InputError(f"{place}: the column {strange[0]!r} is unknown; use {known}")
    if len(set(columns)) < len(columns):
        raise InputError(f"{place}: a column appears twice")
    return columns


def _rating(row: dict[str, str], place: str) -> Rating:
    latent = row["latent"]
    if not (latent.isascii() and latent.isdigit()):
        raise InputError(f"{place}: the latent {latent!r} is not a latent number")
    try:
        rating = float(row["rating"])
    except ValueError:
        rating = float("nan")
    if not 1 <= rating <= 4:
        raise InputError(f"{place}: the rating {row['rating']!r} is not a number from 1 to 4")
    return Rating(
        int(latent), rating, row.get("hookpoint", ""), row.get("rater", ""), _plain(row.get("explanation", ""))
    )
