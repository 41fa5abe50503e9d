"""Ranks the cells of a leaderboard; cells that cannot be distinguished get a range of ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

from saeval._compare import stats
from saeval._compare.lift_rows import Key, Lifted, Reading, key_of, with_lifts
from saeval._compare.settings import TextOf, differing_text
from saeval._util import interval, number
from saeval.records import MAIN, CellResult, Ranking, RunResult, ScoreRow, split_ranking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Standing:
    """One cell on the board.

    Attributes:
        cell: The cell.
        rank: Best and worst rank that its score is compatible with; None for baselines and cells without a score.
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
class AgainstBaseline:
    """A test of a contestant against a baseline coder in the ranking column.

    Attributes:
        cell: Name of the contestant.
        baseline: Name of the baseline's cell.
        difference: Contestant minus baseline, positive if the contestant is better.
        ci95: Its interval, uncorrected.
        p: Two-sided p value, with Holm's correction over all pairs of contestant and baseline.
    """

    cell: str
    baseline: str
    difference: float
    ci95: tuple[float, float]
    p: float

    HEADS: ClassVar[tuple[str, ...]] = ("contestant", "is", "baseline coder", "difference", "95 % CI", "p (Holm)")
    """Column heads for a table of `texts`."""

    @property
    def texts(self) -> list[str]:
        """Names, outcome, difference, interval and p as texts."""
        side = "above" if self.difference > 0 else "below"
        said = side if self.p <= 0.05 else "not distinguishable from"
        return [
            self.cell,
            said,
            self.baseline,
            number(self.difference, "+.3f"),
            interval(self.ci95, "+.3f"),
            number(self.p, ".2g"),
        ]

    @property
    def text(self) -> str:
        """The same as a sentence."""
        cell, said, baseline, difference, between, p = self.texts
        return f"{cell} is {said} {baseline}: {difference} ({between}), p {p}"


@dataclass(frozen=True)
class Leaderboard:
    """Cells in ranked order.

    Attributes:
        standings: Contestants, best first; then baselines, best first.
        metrics: Main metric by scorer label: first the ranking column, then the headline of every other scorer; empty
            if no cell has scores.
        shown: Labels and metrics that boards show: the main ones, each followed by the scorer's other board metrics.
        variants: Explanation baselines, in the order of the spec.
        ranked_by: The ranking column, `scorer.metric`.
        ranking: Whether lifts or raw scores rank.
        note: Explanation of the ranking for readers; may be empty.
        readings: Per scorer with floors: whether its judge's scores depend on explanations.
        against: Tests of contestants against baseline coders.
        smallest_difference: Minimum detectable difference between two contestants (5 % over all pairs, 80 % power);
            None for fewer than two contestants.
        smallest_against: The same between a contestant and a baseline coder.
    """

    standings: tuple[Standing, ...]
    metrics: dict[str, str]
    shown: tuple[tuple[str, str], ...]
    variants: tuple[str, ...]
    ranked_by: str
    ranking: Ranking
    note: str
    readings: Mapping[str, Reading]
    against: tuple[AgainstBaseline, ...]
    smallest_difference: float | None
    smallest_against: float | None

    @classmethod
    def of(cls, run: RunResult) -> Leaderboard:
        """Rank the cells of a run."""
        return cls.of_cells(run.cells, run.rank_by)

    @classmethod
    def of_cells(cls, found: Sequence[CellResult], rank_by: str) -> Leaderboard:
        """Rank cells with distinct names by `scorer.metric`, or by its lift if all contestants have floors.

        Args:
            found: The cells.
            rank_by: `scorer.metric`; a suffix `.lift` or `.raw` requests one of the two.
        """
        return cls.of_columns(found, [rank_by])[rank_by]

    @classmethod
    def of_columns(
        cls, found: Sequence[CellResult], columns: Iterable[str], shown: Collection[str] | None = None
    ) -> dict[str, Leaderboard]:
        """Rank cells by each of several columns, as `of_cells` does.

        Args:
            found: The cells; floors are pooled over them, and judges read from them.
            columns: Ranking columns, as for `of_cells`.
            shown: Names of the cells to rank and test; default: all.
        """
        cells, lifted = with_lifts(found)
        if shown is not None:
            cells = [cell for cell in cells if cell.cell in shown]
            lifted = {key: of.only(shown) for key, of in lifted.items() if any(name in shown for name in of.cells)}
        return {column: cls._of(cells, lifted, column) for column in columns}

    @classmethod
    def _of(cls, cells: Sequence[CellResult], lifted: Mapping[Key, Lifted], rank_by: str) -> Leaderboard:
        rows = [row for cell in cells for row in cell.scores]
        column, wanted = split_ranking(rank_by)
        scorer, metric = next(
            ((r.scorer, r.metric) for r in rows if f"{r.scorer}.{r.metric}" == column), column.rsplit(".", 1)
        )
        headlines = {r.scorer: r.metric for r in reversed(rows)}
        first = {scorer: metric} if rows else {}
        metrics = first | {r.scorer: headlines[r.scorer] for r in rows if r.scorer != scorer}
        ranked = _Ranked.of(cells, scorer, metric, lifted, wanted)
        order = {name: place for place, name in enumerate(ranked.names)}
        ordered = sorted(cells, key=lambda c: (c.baseline is not None, order.get(c.cell, len(cells))))
        contestants = [i for i, cell in enumerate(ranked.cells) if cell.baseline is None]
        baselines = [i for i, cell in enumerate(ranked.cells) if cell.baseline is not None]
        ranks = ranked.ranks(contestants)
        against = [(i, j) for i in contestants for j in baselines]
        variants = dict.fromkeys(r.variant for r in rows if r.variant != MAIN)
        return cls(
            standings=tuple(Standing(c, ranks.get(c.cell)) for c in ordered),
            metrics=metrics,
            shown=tuple(_shown(metrics, rows)),
            variants=tuple(variants),
            ranked_by=f"{scorer}.{metric}",
            ranking=ranked.ranking,
            note=ranked.note,
            readings=_readings(lifted, metrics),
            against=ranked.against(contestants, baselines),
            smallest_difference=ranked.detectable(list(combinations(contestants, 2))),
            smallest_against=ranked.detectable(against),
        )

    @property
    def title(self) -> str:
        """The ranking column in words: `lift of scorer.metric`, `raw scorer.metric`, or that there is none."""
        if not self.metrics:
            return "nothing (no scores)"
        return f"{'lift of' if self.ranking == 'lift' else 'raw'} {self.ranked_by}"

    @property
    def notes(self) -> list[str]:
        """Notes for the reader of the ranks, a sentence or two each."""
        if not self.metrics:
            return ["There are no scores, so nothing is ranked."]
        what = "lifts" if self.ranking == "lift" else "scores"
        found = [f"rank: a range if {what} are not distinguishable (z tests, Holm)."]
        if self.ranking == "lift":
            found.append(
                "lift: score above the floor, which is what the same windows score with uninformed explanations; "
                "floors are pooled over cells as far as the data allow, and the interval includes their error."
            )
        else:
            found.append(f"{self.note}.")
        contestants = [x.cell for x in self.standings if x.cell.baseline is None and x.cell.corpus]
        found += differing_text(TextOf(c.cell, c.subject, c.corpus, c.text_options) for c in contestants)
        found += [f"{scorer}: {reading.text}." for scorer, reading in self.readings.items() if reading.text]
        for between, difference in (
            ("two contestants", self.smallest_difference),
            ("a contestant and a baseline coder", self.smallest_against),
        ):
            if difference is not None:
                found.append(
                    f"minimum detectable difference between {between} in {self.title} (80 % power): {difference:.3f}."
                )
        shown = [self.row(x.cell, scorer) for x in self.standings for scorer in self.metrics]
        rows = [row for row in shown if row and row.value is not None]
        if any(row.few or row.lift_few for row in rows):
            found.append(f"*: fewer than {ScoreRow.FEW} latents, so the interval may be too narrow.")
        if any(row.off for row in rows):
            found.append(
                "≠: a condition of the scorer was missed, so the score belongs to another setting (see warnings)."
            )
        if any(row.unanswered > ScoreRow.MAX_UNANSWERED for row in rows):
            found.append(
                "!: more than 5 % of the windows have no answer; the score could be anything within the bounds."
            )
        return found

    def row(self, cell: CellResult, scorer: str, variant: str = MAIN, metric: str | None = None) -> ScoreRow | None:
        """Return a cell's row for a scorer, or None if there is none.

        Defaults: the cell's own explanations, and the scorer's main metric.
        """
        return _find(cell, scorer, metric or self.metrics[scorer], variant)


def _shown(metrics: dict[str, str], rows: Sequence[ScoreRow]) -> Iterator[tuple[str, str]]:
    """Yield the score columns of the board, which omits scorers that score baselines only."""
    apart = {r.scorer for r in rows} - {r.scorer for r in rows if r.variant == MAIN}
    for scorer, main in metrics.items():
        if scorer in apart:
            continue
        others = dict.fromkeys(r.metric for r in rows if r.scorer == scorer and r.on_board and r.metric != main)
        yield from ((scorer, metric) for metric in (main, *others))


@dataclass(frozen=True)
class _Ranked:
    """Cells with a value in the ranking column, best first, and the covariance of their errors.

    Attributes:
        cells: The cells.
        values: Ranked values, greater is better.  [cells]
        covariance: Covariance of their errors.  [cells, cells]
        ranking: Lifts or raw scores.
        note: Explanation of the ranking for readers.
        least_p: Lower bound for p values of differences: the p value of the hypothesis that the judge's scores do not
            depend on explanations.
    """

    cells: list[CellResult]
    values: NDArray[np.float64]
    covariance: NDArray[np.float64]
    ranking: Ranking
    note: str
    least_p: float = 0.0

    @classmethod
    def of(
        cls,
        cells: Sequence[CellResult],
        scorer: str,
        metric: str,
        lifted: Mapping[Key, Lifted],
        wanted: Ranking | None,
    ) -> _Ranked:
        """Return lifts if requested and available, else raw scores."""
        rows = {c.cell: row for c in cells if (row := _find(c, scorer, metric, MAIN)) and row.value is not None}
        contestants = [row for c in cells if c.baseline is None and (row := rows.get(c.cell))]
        without = [row for row in contestants if row.lift is None]
        if wanted == "raw":
            return cls._raw(cells, rows, "ranked by raw scores, as requested: floors are not subtracted")
        if without or not contestants:
            return cls._raw(cells, rows, _why_raw(contestants, without))
        return cls._lifts([c for c in cells if c.cell in rows and rows[c.cell].lift is not None], rows, lifted)

    @classmethod
    def _raw(cls, cells: Sequence[CellResult], rows: Mapping[str, ScoreRow], note: str) -> _Ranked:
        import numpy as np

        sign = {name: 1 if row.higher_is_better else -1 for name, row in rows.items()}
        found = sorted((c for c in cells if c.cell in rows), key=lambda c: -sign[c.cell] * (rows[c.cell].value or 0.0))
        values = np.array([sign[c.cell] * (rows[c.cell].value or 0.0) for c in found])
        errors = np.array([standard_error(rows[c.cell]) for c in found])
        return cls(found, values, np.diag(errors**2), "raw", note)

    @classmethod
    def _lifts(cls, cells: Sequence[CellResult], rows: Mapping[str, ScoreRow], lifted: Mapping[Key, Lifted]) -> _Ranked:
        import numpy as np

        groups = list(dict.fromkeys(key_of(c, rows[c.cell]) for c in cells))
        names = [name for key in groups for name in lifted[key].cells]
        values = np.concatenate([lifted[key].values for key in groups])
        covariance = np.zeros((len(names), len(names)))
        start = 0
        for key in groups:
            end = start + len(lifted[key].cells)
            covariance[start:end, start:end] = lifted[key].covariance
            start = end
        order = np.argsort(-values, kind="stable")
        by_name = {c.cell: c for c in cells}
        readings = [lifted[key].reading for key in groups]
        note = "; ".join(dict.fromkeys(r.text for r in readings if r.text))
        least = max(1.0 if r.ignores else r.p for r in readings)
        return cls(
            [by_name[names[i]] for i in order], values[order], covariance[np.ix_(order, order)], "lift", note, least
        )

    @property
    def names(self) -> list[str]:
        return [cell.cell for cell in self.cells]

    def ranks(self, places: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Return the ranks of these cells by name; the full range if none can be separated."""
        if self.least_p > 0.05:
            return {self.cells[i].cell: (1, len(places)) for i in places}
        import numpy as np

        found = stats.rank_ranges(self.values[list(places)], self.covariance[np.ix_(places, places)]) if places else []
        return {self.cells[i].cell: rank for i, rank in zip(places, found, strict=True)}

    def against(self, contestants: Sequence[int], baselines: Sequence[int]) -> tuple[AgainstBaseline, ...]:
        pairs = [(i, j) for i in contestants for j in baselines]
        found = []
        errors = stats.difference_errors(self.covariance, pairs)
        for (i, j), p, error in zip(pairs, stats.apart_p(self.values, self.covariance, pairs), errors, strict=True):
            difference = float(self.values[i] - self.values[j])
            ci = difference - stats.Z95 * error, difference + stats.Z95 * error
            names = self.cells[i].cell, self.cells[j].cell
            found.append(AgainstBaseline(*names, difference, ci, max(p, self.least_p)))
        return tuple(found)

    def detectable(self, pairs: Sequence[tuple[int, int]]) -> float | None:
        return stats.detectable_difference(stats.difference_errors(self.covariance, pairs))


def _why_raw(contestants: Sequence[ScoreRow], without: Sequence[ScoreRow]) -> str:
    if not contestants:
        return "no contestant has a score in this column, so none is ranked"
    if len(without) < len(contestants):
        return "ranked by raw scores: not every contestant has a floor"
    return (
        "ranked by raw scores: this board has no floors, so part of a difference may come from the windows alone; "
        "add shuffled_explanation to the baselines for lifts"
    )


def _readings(lifted: Mapping[Key, Lifted], metrics: Mapping[str, str]) -> dict[str, Reading]:
    """Return the reading of each scorer's judge; with several judges, the one with the largest p value."""
    found: dict[str, Reading] = {}
    for key, of in lifted.items():
        scorer, metric, *_ = key
        if metrics.get(scorer) == metric and (scorer not in found or of.reading.p > found[scorer].p):
            found[scorer] = of.reading
    return found


def _find(cell: CellResult, scorer: str, metric: str, variant: str) -> ScoreRow | None:
    return next((r for r in cell.scores if (r.scorer, r.metric, r.variant) == (scorer, metric, variant)), None)


def standard_error(row: ScoreRow) -> float:
    """Return the standard error that corresponds to the row's interval."""
    return stats.standard_error(row.value, row.ci95, *row.range)
