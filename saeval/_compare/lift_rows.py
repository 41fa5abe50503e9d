"""Adds lifts to the rows of a board's cells, and tests whether a judge's scores depend on explanations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saeval._compare import stats
from saeval._compare.lifts import Paired, lifts
from saeval._compare.settings import settings_key
from saeval._util import counted
from saeval.records import MAIN, CellResult, FloorSample, ScoreRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ALIKE = 0.98  # minimum share of equal answers for saying that a judge ignores the explanation
_FEWEST = 20  # minimum windows for saying so

Key = tuple[str, str, str, str | None, str]
"""Scorer, metric, plugin, judge and settings; floors are pooled over rows with the same key."""


@dataclass(frozen=True)
class Reading:
    """Whether a judge's scores depend on the explanation.

    Attributes:
        p: One-sided p value, over all cells, of the hypothesis that scores do not depend on it.
        same: Share of windows with equal answers under a latent's own and another's explanation; None if there are no
            answers per window.
        answers: Number of those windows; cells that share a floor count once, by the largest number.
        latents: Latents that were judged with both explanations, counted in the same way.
    """

    p: float
    same: float | None
    answers: int
    latents: int

    @property
    def ignores(self) -> bool:
        """Whether the judge gives the same answers for any explanation."""
        return self.same is not None and self.same >= _ALIKE and self.answers >= _FEWEST

    @property
    def depends(self) -> bool:
        """Whether scores are shown to depend on the explanation, at 5 %."""
        return self.p <= 0.05 and not self.ignores

    @property
    def text(self) -> str:
        """Note for a board; empty if scores depend on the explanation."""
        if self.ignores:
            return (
                f"this judge ignores the explanation: {self.same:.0%} of its answers on {self.answers} windows are the "
                "same with uninformed explanations. Its scores describe windows, not latents"
            )
        if self.depends:
            return ""
        return (
            f"no lift was detected over {counted(self.latents, 'latent')} (p {self.p:.2g}): uninformed explanations "
            "score as high. Either the explanations are wrong, the judge does not read them, or there are too few "
            "latents"
        )


@dataclass(frozen=True)
class Lifted:
    """Lifts of the cells of a board under one metric and judge.

    Attributes:
        cells: Names of the cells.
        values: Lifts, positive if better.  [cells]
        covariance: Covariance of their errors.  [cells, cells]
        reading: Whether the judge's scores depend on explanations; over all cells, also if only some are shown.
    """

    cells: tuple[str, ...]
    values: NDArray[np.float64]
    covariance: NDArray[np.float64]
    reading: Reading

    def only(self, shown: Collection[str]) -> Lifted:
        """Return the lifts of some of the cells, unchanged."""
        import numpy as np

        places = [i for i, name in enumerate(self.cells) if name in shown]
        names = tuple(self.cells[i] for i in places)
        return replace(
            self, cells=names, values=self.values[places], covariance=self.covariance[np.ix_(places, places)]
        )


def with_lifts(cells: Sequence[CellResult]) -> tuple[list[CellResult], dict[Key, Lifted]]:
    """Return the cells with lifts in their rows (floors pooled over these cells), and the lifts of each column.

    Rows without a floor have no lift.
    """
    groups: dict[Key, list[tuple[str, ScoreRow]]] = {}
    for cell in cells:
        for row in cell.scores:
            if row.variant == MAIN and row.against is not None and row.ci95 is not None:
                groups.setdefault(key_of(cell, row), []).append((cell.cell, row))
    found = {key: _lifted(rows) for key, rows in groups.items()}
    made = {(name, key): i for key, lifted in found.items() for i, name in enumerate(lifted.cells)}

    def row_with_lift(cell: CellResult, row: ScoreRow) -> ScoreRow:
        place = made.get((cell.cell, key_of(cell, row))) if row.variant == MAIN else None
        if place is None:  # results of an earlier version hold lifts over chance
            return row.model_copy(update={"lift": None, "lift_ci95": None})
        return _with_lift(row, found[key_of(cell, row)], place)

    return [
        cell.model_copy(update={"scores": [row_with_lift(cell, row) for row in cell.scores]}) for cell in cells
    ], found


def key_of(cell: CellResult, row: ScoreRow) -> Key:
    """Return the key of a cell's row; floors are pooled over rows with the same key."""
    return row.scorer, row.metric, row.plugin, row.judge, settings_key(cell, f"scorers.{row.scorer}")


def _lifted(rows: Sequence[tuple[str, ScoreRow]]) -> Lifted:
    found = lifts([_paired(row) for _, row in rows])
    sign = 1 if rows[0][1].higher_is_better else -1
    return Lifted(tuple(name for name, _ in rows), sign * found.values, found.covariance, _reading(rows))


def _paired(row: ScoreRow) -> Paired:
    sample = row.against
    if sample is None or row.value is None:
        raise ValueError(f"{row.scorer}.{row.metric} has no floor")
    error = stats.standard_error(row.value, row.ci95, *row.range)
    return Paired(
        row.value, error, sample.own, sample.value, sample.n, sample.covariance, sample.least_error, sample.shared
    )


def _with_lift(row: ScoreRow, lifted: Lifted, place: int) -> ScoreRow:
    from math import isfinite

    from scipy.special import stdtrit

    sample = row.against
    value, error = round(float(lifted.values[place]), 12) + 0.0, float(lifted.covariance[place, place] ** 0.5)
    half = float(stdtrit(max(sample.n - 1, 1), 0.975)) * error if sample else error
    low, high = row.range
    span = high - low if low is not None and high is not None else float("inf")
    ci = (max(value - half, -span), min(value + half, span)) if isfinite(half) else None
    return row.model_copy(update={"lift": value, "lift_ci95": ci})


def _reading(rows: Sequence[tuple[str, ScoreRow]]) -> Reading:
    samples = [row.against for _, row in rows if row.against is not None]
    compared = sum(s.answers for s in samples)
    same = sum(s.answers * s.same for s in samples if s.same is not None)
    by_floor: dict[str | int, list[FloorSample]] = {}
    for i, sample in enumerate(samples):
        by_floor.setdefault(sample.shared or i, []).append(sample)
    ps, answers, latents = [], 0, 0
    for sharing in by_floor.values():  # the same latents and windows, which count once
        tests = [s.p for s in sharing if s.p is not None]
        if tests:
            ps.append(stats.simes(tests))
        answers += max(s.answers for s in sharing)
        latents += max(s.n for s in sharing)
    return Reading(stats.fisher(ps), same / compared if compared else None, answers, latents)
