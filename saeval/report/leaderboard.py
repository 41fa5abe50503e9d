"""The leaderboard: who stands where, as far as the intervals can tell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from saeval.results import CellResult, RunResult, ScoreRow

OWN = "explanation"


@dataclass(frozen=True)
class Standing:
    """One cell on the board.

    Attributes:
        cell: The cell.
        rank: Ranks that its score is compatible with, best and worst; None for baselines and cells without a score.
    """

    cell: CellResult
    rank: tuple[int, int] | None

    def row(self, scorer: str, variant: str = OWN) -> ScoreRow | None:
        """Return a scorer's headline row for the cell's own or a baseline's explanations."""
        return next((r for r in self.cell.scores if (r.scorer, r.variant) == (scorer, variant)), None)

    @property
    def rank_text(self) -> str:
        """The rank as `2` or `1-3`; empty for baselines."""
        if self.rank is None:
            return ""
        best, worst = self.rank
        return str(best) if best == worst else f"{best}-{worst}"


@dataclass(frozen=True)
class Leaderboard:
    """Cells in the order of the score that ranks.

    Attributes:
        standings: Contestants, best first; then baselines, best first.
        scorers: Labels of the scorers, the one that ranks first.
        variants: Explanation baselines, in the order of the spec.
        smallest_difference: What two contestants had to differ by to be told apart in four of five such runs, at 5 %;
            None for fewer than two contestants.
    """

    standings: tuple[Standing, ...]
    scorers: tuple[str, ...]
    variants: tuple[str, ...]
    smallest_difference: float | None

    @classmethod
    def of(cls, run: RunResult) -> Leaderboard:
        """Rank the cells of a run."""
        scorer, _, metric = run.rank_by.partition(".")

        def ranking(cell: CellResult) -> ScoreRow | None:
            return next((r for r in cell.scores if (r.scorer, r.metric, r.variant) == (scorer, metric, OWN)), None)

        def order(cell: CellResult) -> tuple[bool, float]:
            row = ranking(cell)
            if row is None or row.value is None:
                return True, 0.0
            return False, -row.value if row.higher_is_better else row.value

        contestants = sorted((c for c in run.cells if c.baseline is None), key=order)
        baselines = sorted((c for c in run.cells if c.baseline is not None), key=order)
        rows = [ranking(c) for c in contestants]
        ranks = _ranks([r for r in rows if r is not None and r.value is not None])
        standings = [Standing(c, ranks[i] if i < len(ranks) else None) for i, c in enumerate(contestants)]
        standings += [Standing(c, None) for c in baselines]
        labels = dict.fromkeys([scorer, *(r.scorer for c in run.cells for r in c.scores)])
        variants = dict.fromkeys(r.variant for c in run.cells for r in c.scores if r.variant != OWN)
        return cls(tuple(standings), tuple(labels), tuple(variants), _smallest_difference(rows))


def standard_error(row: ScoreRow) -> float | None:
    """Return the standard error that the row's interval stands for: its half-width over 1.96."""
    return (row.ci95[1] - row.ci95[0]) / 2 / 1.96 if row.ci95 else None


def _ranks(rows: list[ScoreRow]) -> list[tuple[int, int]]:
    """Return the best and worst rank of each, given rows in order, best first.

    Two cells are told apart by a z test of their means, unpaired, since latents of different coders are different
    things; over all pairs, Holm's correction keeps the chance of any false separation at 5 %.
    """
    from scipy.stats import norm

    p_values = []
    for i, j in combinations(range(len(rows)), 2):
        a, b = standard_error(rows[i]), standard_error(rows[j])
        spread = ((a or 0.0) ** 2 + (b or 0.0) ** 2) ** 0.5
        difference = abs((rows[i].value or 0.0) - (rows[j].value or 0.0))
        p = float(2 * norm.sf(difference / spread)) if spread > 0 else float(difference == 0)
        p_values.append((p, i, j))
    apart: set[tuple[int, int]] = set()
    for step, (p, i, j) in enumerate(sorted(p_values)):
        if p > 0.05 / (len(p_values) - step):
            break
        apart.add((i, j))
    return [
        (1 + sum((j, i) in apart for j in range(i)), len(rows) - sum((i, j) in apart for j in range(i + 1, len(rows))))
        for i in range(len(rows))
    ]


def _smallest_difference(rows: list[ScoreRow | None]) -> float | None:
    """Return (1.96 + 0.84) times the median standard error of a difference between two contestants."""
    from statistics import median

    errors = [e for row in rows if row is not None and (e := standard_error(row)) is not None]
    pairs = [(a**2 + b**2) ** 0.5 for a, b in combinations(errors, 2)]
    return 2.8 * median(pairs) if pairs else None
