"""The leaderboard: who stands where, as far as the intervals can tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from saeval._compare import stats
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
        metrics: Label of every scorer and its main metric: the one that ranks, which comes first, and headlines.
        shown: Labels and metrics that boards show: the main ones, each followed by others that its scorer puts on boards.
        variants: Explanation baselines, in the order of the spec.
        smallest_difference: What two contestants had to differ by to be told apart in four of five such runs, at 5 %;
            None for fewer than two contestants.
    """

    standings: tuple[Standing, ...]
    metrics: dict[str, str]
    shown: tuple[tuple[str, str], ...]
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
        ranks = dict(zip((c.cell for c in cells), stats.rank_ranges(estimates), strict=False))
        return cls(
            standings=tuple(Standing(c, ranks.get(c.cell)) for c in cells),
            metrics=metrics,
            shown=tuple(_shown(metrics, rows)),
            variants=tuple(dict.fromkeys(r.variant for r in rows if r.variant != MAIN)),
            smallest_difference=stats.detectable_difference([error for _, error in estimates]),
        )

    def row(self, cell: CellResult, scorer: str, variant: str = MAIN, metric: str | None = None) -> ScoreRow | None:
        """Return the row of a scorer's metric, its main one when left out, for the cell's own or a baseline's explanations."""
        return _find(cell, scorer, metric or self.metrics[scorer], variant)


def _shown(metrics: dict[str, str], rows: Sequence[ScoreRow]) -> Iterator[tuple[str, str]]:
    for scorer, main in metrics.items():
        others = dict.fromkeys(r.metric for r in rows if r.scorer == scorer and r.on_board and r.metric != main)
        yield from ((scorer, metric) for metric in (main, *others))


def _find(cell: CellResult, scorer: str, metric: str, variant: str) -> ScoreRow | None:
    return next((r for r in cell.scores if (r.scorer, r.metric, r.variant) == (scorer, metric, variant)), None)


def standard_error(row: ScoreRow) -> float:
    """Return the standard error that the row's interval stands for."""
    return stats.standard_error(row.value, row.ci95, *row.range)
