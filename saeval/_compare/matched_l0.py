"""Compares families of coders at one L0, by interpolation along each family's sparsity curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

from saeval._compare.leaderboard import rank_text, standard_error
from saeval._compare.stats import Z95, combined_interval, rank_ranges
from saeval._util import InputError
from saeval.records import MAIN, CellResult, ScoreRow

_EXACT = 1e-9  # maximum relative difference of L0s that count as equal
_APART = 0.5  # minimum distance of a third cell in log L0, in distances of the two neighbours


@dataclass(frozen=True)
class Matched:
    """A family's score at the requested L0.

    Attributes:
        family: Its name.
        value: The score.
        ci95: Its interval, from those of the neighbouring cells and the bend of the curve; None if one of them has no
            interval.
        between: Names of those cells, or of the one cell with exactly this L0.
        rank: Best and worst rank that the score is compatible with.
    """

    family: str
    value: float
    ci95: tuple[float, float] | None
    between: tuple[str, ...]
    rank: tuple[int, int]

    @property
    def rank_text(self) -> str:
        """The rank as `2` or `1-3`."""
        return rank_text(self.rank)


def at_l0(families: Mapping[str, Sequence[CellResult]], l0: float, rank_by: str) -> list[Matched]:
    """Return every family's score at one L0, best first.

    Between two neighbouring cells, a family's score is interpolated linearly over log L0. Cells are different
    dictionaries, so their means are independent, and the interval of the interpolated score combines theirs. If the
    family has a third cell, the interval extends further on both sides by the difference from a parabola through it;
    without one, it does not include the error from curvature. A cell that is nearer to either neighbour than half their
    distance in log L0 is not used as the third, because its noise would look like curvature. Families are ranked like
    the cells of a leaderboard.

    Args:
        families: Cells of each family, each with the measure `l0`.
        l0: The L0 at which to compare.
        rank_by: The score, `scorer.metric`.

    Raises:
        InputError: If a cell lacks L0 or score, two cells of a family have the same L0, or a family does not cover the
            requested L0.
    """
    import numpy as np

    curves = {family: _curve(family, cells, rank_by) for family, cells in families.items()}
    if not curves:
        raise InputError("there are no contestants to compare")
    least, greatest = max(curve[0][0] for curve in curves.values()), min(curve[-1][0] for curve in curves.values())
    short = [f for f, curve in curves.items() if l0 < curve[0][0] * (1 - _EXACT) or l0 > curve[-1][0] * (1 + _EXACT)]
    if short:
        ranges = ", ".join(f"{f} from {curves[f][0][0]:.4g} to {curves[f][-1][0]:.4g}" for f in short)
        common = f"all families cover {least:.4g} to {greatest:.4g}" if least <= greatest else "no L0 is covered by all"
        raise InputError(f"L0 {l0:g} is outside the measured range: {ranges}; scores are not extrapolated ({common})")
    found = [(family, *_interpolated(curve, l0)) for family, curve in curves.items()]
    higher = next(iter(curves.values()))[0][2].higher_is_better
    found.sort(key=lambda x: -x[1] if higher else x[1])
    errors = np.array([error for *_, error in found])
    ranks = rank_ranges([value for _, value, *_ in found], np.diag(errors**2))
    return [Matched(f, v, ci, between, rank) for (f, v, ci, between, _), rank in zip(found, ranks, strict=True)]


def _curve(family: str, cells: Sequence[CellResult], rank_by: str) -> list[tuple[float, CellResult, ScoreRow]]:
    points = []
    for cell in cells:
        row = next((r for r in cell.scores if r.variant == MAIN and f"{r.scorer}.{r.metric}" == rank_by), None)
        if row is None or row.value is None:
            raise InputError(f"{cell.cell}: has no {rank_by}; exclude it with --filter")
        if cell.measures.get("l0", 0) <= 0:
            raise InputError(f"{cell.cell}: has no L0; put `l0` under `measure` in the task")
        points.append((cell.measures["l0"], cell, row))
    points.sort(key=lambda point: point[0])
    for (x, a, _), (y, b, _) in pairwise(points):
        if y <= x * (1 + _EXACT):
            raise InputError(f"{a.cell} and {b.cell} are both {family} at L0 {x:.4g}; choose one with --filter")
    return points


def _interpolated(
    curve: Sequence[tuple[float, CellResult, ScoreRow]], l0: float
) -> tuple[float, tuple[float, float] | None, tuple[str, ...], float]:
    """Return the score at an L0, its interval, the neighbouring cells and its standard error."""
    for x, cell, row in curve:
        if abs(x - l0) <= _EXACT * x:
            return float(row.value or 0), row.ci95, (cell.cell,), standard_error(row)
    i = next(i for i, (x, _, _) in enumerate(curve) if x > l0)
    (x, a, low), (y, b, high) = curve[i - 1], curve[i]
    share = (log(l0) - log(x)) / (log(y) - log(x))
    weights, values = (1 - share, share), (float(low.value or 0), float(high.value or 0))
    bend = _bend(curve, i, l0)
    error = sum((w * standard_error(row)) ** 2 for w, row in zip(weights, (low, high), strict=True)) ** 0.5 + bend / Z95
    ci = None
    if low.ci95 is not None and high.ci95 is not None:
        least, greatest = combined_interval(weights, values, (low.ci95, high.ci95))
        least, greatest = least - bend, greatest + bend
        lowest, highest = low.range
        least = least if lowest is None else max(least, lowest)
        greatest = greatest if highest is None else min(greatest, highest)
        ci = least, greatest
    return sum(w * v for w, v in zip(weights, values, strict=True)), ci, (a.cell, b.cell), error


def _bend(curve: Sequence[tuple[float, CellResult, ScoreRow]], i: int, l0: float) -> float:
    """Return the difference between linear and quadratic interpolation before the cell `i`; 0 without a third cell.

    The parabola runs through the nearest cell before or after the two neighbours that is at least half their distance
    away from them, whichever of the two differs more. Over a shorter distance, the scores' noise gives a steep slope.
    """
    points = [(log(x), float(row.value or 0)) for x, _, row in curve]
    (x, a), (y, b) = points[i - 1 : i + 1]
    least = _APART * (y - x)
    before = [point for point in points[: i - 1] if x - point[0] >= least]
    after = [point for point in points[i + 1 :] if point[0] - y >= least]
    slope = (b - a) / (y - x)
    bends = [((c - b) / (z - y) - slope) / (z - x) for z, c in (*before[-1:], *after[:1])]
    return max(map(abs, bends), default=0.0) * (log(l0) - x) * (y - log(l0))
