"""Pools the results of one task under several seeds: other latents and windows, the same cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from statistics import mean, variance
from typing import Any, TypeVar

from saeval._compare import stats
from saeval._compare.lift_rows import with_lifts
from saeval._compare.noise import prediction_interval
from saeval.records import CellResult, Correlation, DecileShares, FloorSample, Ledger, Power, RunResult, ScoreRow

Item = TypeVar("Item")


def pooled_runs(results: Sequence[RunResult], run_id: str) -> RunResult:
    """Return the results of several seeds as one: means over seeds, with intervals that hold the spread between seeds.

    The interval of a mean combines those of the seeds ("MOVER"). Where values differ between seeds by more than their
    intervals explain, it is widened accordingly (a random effect of the seed, DerSimonian and Laird 1986). Lifts are
    pooled over the pooled cells. Medians, correlations, powers and reliabilities are means over seeds; natural rates
    belong to one draw and are not pooled.

    Args:
        results: One per seed, of the same task.
        run_id: Name of the pooled run.
    """
    first = results[0]
    seeds = tuple(result.seed for result in results)
    cells = [_cell([c for result in results for c in result.cells if c.cell == cell.cell]) for cell in first.cells]
    said = list(dict.fromkeys(text for result in results for text in result.warnings))
    return first.model_copy(
        update={
            "run_id": run_id,
            "seeds": seeds,
            "partial": any(result.partial for result in results),
            "cells": with_lifts(cells)[0],
            "correlations": _correlations([result.correlations for result in results]),
            "ledger": _ledger([entry for result in results for entry in result.ledger]),
            "findings": [],
            "warnings": [f"Pooled over the seeds {', '.join(map(str, seeds))}.", *said],
            "seconds": dict(sum((Counter(result.seconds) for result in results), Counter())),
        }
    )


def pooled_mean(
    values: Sequence[float], intervals: Sequence[stats.Interval], bounds: tuple[float | None, float | None]
) -> stats.Interval:
    """Return the interval of the mean of independent estimates, widened where they differ more than they should.

    Args:
        values: One per seed.
        intervals: Their 95 % intervals.
        bounds: Least and greatest value of the metric.
    """
    k, centre = len(values), mean(values)
    low, high = stats.combined_interval([1 / k] * k, values, intervals)
    errors = [stats.standard_error(v, ci, *bounds) for v, ci in zip(values, intervals, strict=True)]
    within = mean(error**2 for error in errors)
    wider = sqrt(max(1.0, variance(values) / within)) if k > 1 and within > 0 else 1.0
    least, greatest = bounds
    low, high = centre - wider * (centre - low), centre + wider * (high - centre)
    return low if least is None else max(low, least), high if greatest is None else min(high, greatest)


def _cell(cells: Sequence[CellResult]) -> CellResult:
    first = cells[0]
    rows = [row for cell in cells for row in cell.scores]
    grouped = _grouped(rows, lambda row: (row.scorer, row.variant, row.metric))
    measures = {name: mean(c.measures[name] for c in cells if name in c.measures) for name in first.measures}
    return first.model_copy(
        update={
            "measures": measures,
            "counts": dict(sum((Counter(cell.counts) for cell in cells), Counter())),
            "scores": [_row(same) for same in grouped.values()],
            "deciles": [_deciles(s) for s in _grouped([d for c in cells for d in c.deciles], _scorer).values()],
            "correlations": _correlations([cell.correlations for cell in cells]),
            "powers": [_power(same) for same in _grouped([p for c in cells for p in c.powers], _place).values()],
            "cautions": list(dict.fromkeys(text for cell in cells for text in cell.cautions)),
        }
    )


def _scorer(shares: DecileShares) -> str:
    return shares.scorer


def _place(power: Power) -> tuple[str, str]:
    return power.scorer, power.variant


def _grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _row(rows: Sequence[ScoreRow]) -> ScoreRow:
    first, total = rows[0], {name: sum(getattr(row, name) for row in rows) for name in _SUMMED}
    scored = [(row.value, row.ci95) for row in rows if row.value is not None and row.ci95 is not None]
    value = _mean(row.value for row in rows)
    ci95 = pooled_mean([v for v, _ in scored], [ci for _, ci in scored], first.range) if scored else None
    bounds = [row.bounds for row in rows if row.bounds is not None]
    dollars = [row.usd for row in rows]
    return first.model_copy(
        update={
            **total,
            "value": value,
            "ci95": ci95,
            "method": f"{first.method}, {len(rows)} seeds",
            "median": _mean(row.median for row in rows),
            "coverage": total["n"] / total["tried"] if total["tried"] else 0.0,
            "floor": {name: mean(r.floor[name] for r in rows if name in r.floor) for name in first.floor},
            "against": _against([row.against for row in rows if row.against is not None]),
            "bounds": (mean(b[0] for b in bounds), mean(b[1] for b in bounds)) if bounds else None,
            "corrected": None,
            "corrected_ci95": None,
            "prediction95": None if value is None or ci95 is None else prediction_interval(value, ci95, first.range),
            "reliability": _mean(row.reliability for row in rows),
            "natural": None,
            "explanation_words": _mean(row.explanation_words for row in rows),
            "usd": None if None in dollars else sum(usd for usd in dollars if usd is not None),
        }
    )


_SUMMED = ("n", "tried", "failed", "skipped", "unparsed", "windows", "answered")


def _against(samples: Sequence[FloorSample]) -> FloorSample | None:
    """Return one floor of the latents of all seeds; p values are combined by Fisher's method."""
    if not samples:
        return None
    n, answers = sum(s.n for s in samples), sum(s.answers for s in samples)
    covariance = [sum(s.covariance[i] * s.n for s in samples) / n for i in range(3)]
    same = sum((s.same or 0.0) * s.answers for s in samples)
    ps = [s.p for s in samples if s.p is not None]
    return samples[0].model_copy(
        update={
            "n": n,
            "own": sum(s.own * s.n for s in samples) / n,
            "value": sum(s.value * s.n for s in samples) / n,
            "covariance": (covariance[0], covariance[1], covariance[2]),
            "least_error": mean(s.least_error for s in samples) / sqrt(len(samples)),
            "p": stats.fisher(ps) if ps else None,
            "same": same / answers if answers else None,
            "answers": answers,
        }
    )


def _deciles(shares: Sequence[DecileShares]) -> DecileShares:
    n = [sum(column) for column in zip(*(s.n for s in shares), strict=True)]
    right = [
        sum((r or 0.0) * k for r, k in zip(c, m, strict=True))
        for c, m in zip(
            zip(*(s.right for s in shares), strict=True), zip(*(s.n for s in shares), strict=True), strict=True
        )
    ]
    silent = sum(s.negatives_n for s in shares)
    rejected = sum((s.negatives_right or 0.0) * s.negatives_n for s in shares)
    return DecileShares(
        scorer=shares[0].scorer,
        right=tuple(r / k if k else None for r, k in zip(right, n, strict=True)),
        n=tuple(n),
        negatives_right=rejected / silent if silent else None,
        negatives_n=silent,
    )


def _correlations(found: Sequence[Sequence[Correlation]]) -> list[Correlation]:
    grouped = _grouped([c for correlations in found for c in correlations], lambda c: c.scorers)
    return [
        Correlation(
            scorers=scorers,
            n=sum(c.n for c in same),
            pearson=_mean(c.pearson for c in same),
            spearman=_mean(c.spearman for c in same),
            corrected=_mean(c.corrected for c in same),
        )
        for scorers, same in grouped.items()
    ]


def _power(powers: Sequence[Power]) -> Power:
    return powers[0].model_copy(
        update={
            "n": sum(p.n for p in powers),
            "difference": mean(p.difference for p in powers),
            "power": mean(p.power for p in powers),
        }
    )


def _ledger(entries: Sequence[Ledger]) -> list[Ledger]:
    """Return the sums of calls, tokens and dollars by role and model."""
    found = []
    for same in _grouped(entries, lambda entry: (entry.role, entry.model)).values():
        totals: Mapping[str, int] = {
            name: sum(getattr(entry, name) for entry in same)
            for name, field in Ledger.model_fields.items()
            if field.annotation is int
        }
        dollars = [entry.usd for entry in same]
        usd = None if None in dollars else sum(value for value in dollars if value is not None)
        found.append(same[0].model_copy(update={**totals, "usd": usd}))
    return found
