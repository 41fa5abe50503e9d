"""The leaderboard: who stands where, as far as the intervals can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot, isfinite
from statistics import median

from saeval._compare.stats import holm
from saeval.records import MAIN, CellResult, RunResult, ScoreRow


@dataclass(frozen=True)
class Standing:
    """One cell on the board.

    Attributes:
        cell: The cell.
        rank: Ranks that its score is compatible with, best and worst; None for baselines and cells without a score.
    """

    cell: CellResult
    rank: tuple[int, int] | None

    @property
    def rank_text(self) -> str:
        """The rank as `2` or `1-3`; `base` for baselines, `–` without a score."""
        if self.rank is None:
            return "–" if self.cell.baseline is None else "base"
        return rank_text(self.rank)


def rank_text(rank: tuple[int, int]) -> str:
    """Write ranks as `2` or `1-3`."""
    best, worst = rank
    return str(best) if best == worst else f"{best}-{worst}"


@dataclass(frozen=True)
class Leaderboard:
    """Cells in the order of the score that ranks.

    Attributes:
        standings: Contestants, best first; then baselines, best first.
        metrics: Label of every scorer and the metric shown of it: the one that ranks, which comes first, and headlines.
        variants: Explanation baselines, in the order of the spec.
        smallest_difference: What two contestants had to differ by to be told apart in four of five such runs, at 5 %;
            None for fewer than two contestants.
    """

    standings: tuple[Standing, ...]
    metrics: dict[str, str]
    variants: tuple[str, ...]
    smallest_difference: float | None

    @classmethod
    def of(cls, run: RunResult) -> Leaderboard:
        """Rank the cells of a run."""
        return cls.of_cells(run.cells, run.rank_by)

    @classmethod
    def of_cells(cls, found: Sequence[CellResult], rank_by: str) -> Leaderboard:
        """Rank cells, whose names are all different, by a column `scorer.metric`."""
        rows = [row for cell in found for row in cell.scores]
        scorer, metric = next(
            ((r.scorer, r.metric) for r in rows if f"{r.scorer}.{r.metric}" == rank_by), rank_by.rsplit(".", 1)
        )
        headlines = {r.scorer: r.metric for r in reversed(rows)}
        metrics = {scorer: metric, **{r.scorer: headlines[r.scorer] for r in rows if r.scorer != scorer}}

        def ranking(cell: CellResult) -> ScoreRow | None:
            row = _find(cell, scorer, metric, MAIN)
            return row if row and row.value is not None else None

        def order(cell: CellResult) -> tuple[bool, float]:
            row = ranking(cell)
            if row is None or row.value is None:
                return True, 0.0
            return False, -row.value if row.higher_is_better else row.value

        cells = sorted(found, key=lambda c: (c.baseline is not None, *order(c)))
        contending = [row for c in cells if c.baseline is None and (row := ranking(c))]
        estimates = [(row.value or 0.0, standard_error(row)) for row in contending]
        ranks = dict(zip((c.cell for c in cells), rank_ranges(estimates), strict=False))
        return cls(
            standings=tuple(Standing(c, ranks.get(c.cell)) for c in cells),
            metrics=metrics,
            variants=tuple(dict.fromkeys(r.variant for r in rows if r.variant != MAIN)),
            smallest_difference=smallest_difference([error for _, error in estimates]),
        )

    def row(self, cell: CellResult, scorer: str, variant: str = MAIN) -> ScoreRow | None:
        """Return the row shown of a scorer, for the cell's own or a baseline's explanations."""
        return _find(cell, scorer, self.metrics[scorer], variant)


def _find(cell: CellResult, scorer: str, metric: str, variant: str) -> ScoreRow | None:
    return next((r for r in cell.scores if (r.scorer, r.metric, r.variant) == (scorer, metric, variant)), None)


def standard_error(row: ScoreRow) -> float:
    """Return the standard error that the row's interval stands for: its half-width over 1.96.

    An interval that the metric's range cuts off counts by its longer side.
    """
    if row.ci95 is None or row.value is None:
        return float("inf")
    low, high = row.ci95
    least, greatest = row.range
    cut = (least is not None and low <= least) or (greatest is not None and high >= greatest)
    half = max(row.value - low, high - row.value) if cut else (high - low) / 2
    return half / 1.96


def rank_ranges(estimates: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """Return the best and worst rank of each.

    Two are told apart by a z test of their means, unpaired, since latents of different coders are different things;
    over all pairs, Holm's correction keeps the chance of any false separation at 5 %. For cells that share their
    latents the test is too careful where their scores go together; `saeval compare` pairs them.

    Args:
        estimates: Values and their standard errors, in order, best first.
    """
    from scipy.stats import norm

    pairs = list(combinations(range(len(estimates)), 2))
    ps = []
    for i, j in pairs:
        (a, error_a), (b, error_b) = estimates[i], estimates[j]
        error = hypot(error_a, error_b)
        ps.append(float(2 * norm.sf(abs(a - b) / error)) if error > 0 else float(a == b))
    apart = {pair for pair, p in zip(pairs, holm(ps), strict=True) if p <= 0.05}
    n = len(estimates)
    return [
        (1 + sum((j, i) in apart for j in range(i)), n - sum((i, j) in apart for j in range(i + 1, n)))
        for i in range(n)
    ]


VISIBLE = 1.96 + 0.84
"""Standard errors that a difference must measure to be seen at 5 % in four of five samples."""


def smallest_difference(errors: Sequence[float]) -> float | None:
    """Return `VISIBLE` times the median standard error of a difference between two of these; None for fewer than two."""
    between = [hypot(a, b) for a, b in combinations(errors, 2)]
    return VISIBLE * median(between) if between and isfinite(median(between)) else None
