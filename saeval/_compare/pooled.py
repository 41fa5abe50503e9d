"""Pools the results of one task under several seeds, which draw other latents and windows of the same cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import sqrt
from operator import attrgetter
from statistics import mean, variance
from typing import Any, TypeVar

from saeval._compare import stats
from saeval._compare.controls import pooled_contrasts
from saeval._compare.lift_rows import with_lifts
from saeval._compare.noise import prediction_interval
from saeval._util import content_hash
from saeval.records import (
    CellResult,
    Correlation,
    DecileShares,
    FloorSample,
    Ledger,
    Power,
    RunResult,
    ScoreRow,
    VarianceParts,
)

Item = TypeVar("Item")

_SUMMED = ("n", "tried", "failed", "skipped", "unparsed", "windows", "answered")  # of score rows


def pooled_runs(results: Sequence[RunResult], run_id: str, repeats: Mapping[str, float] | None = None) -> RunResult:
    """Pool the results of several seeds: means over seeds, with intervals that include the spread between seeds.

    The interval of a mean combines those of the seeds ("MOVER"). If seeds differ by more than their intervals explain,
    it is widened accordingly (a random effect of the seed, DerSimonian and Laird 1986). If seeds draw the same latents,
    it is widened to that of the distinct ones. Lifts are pooled over the pooled cells. Medians, correlations, powers,
    reliabilities and variance components are averaged over seeds; natural rates and scores corrected for the judge are
    omitted.

    Args:
        results: One per seed, of the same task.
        run_id: Name of the pooled run.
        repeats: By cell, the mean number of seeds that draw a latent (`repeated`); default: 1.
    """
    repeats = repeats or {}
    seeds = tuple(result.seed for result in results)
    by_name = _grouped(_joined(results, "cells"), attrgetter("cell"))
    cells = [_cell(same, repeats.get(name, 1.0)) for name, same in by_name.items()]
    said = ", ".join(map(str, seeds))
    return results[0].model_copy(
        update={
            "run_id": run_id,
            "seeds": seeds,
            "partial": any(map(attrgetter("partial"), results)),
            "cells": with_lifts(cells)[0],
            "correlations": _correlations(_joined(results, "correlations")),
            "ledger": _ledger(_joined(results, "ledger")),
            "findings": [],
            "controls": pooled_contrasts([result.controls for result in results], _by_control(cells, repeats)),
            "warnings": [f"Pooled over the seeds {said}.", *dict.fromkeys(_joined(results, "warnings"))],
            "seconds": _summed(map(attrgetter("seconds"), results)),
        }
    )


def repeated(latents: Iterable[Iterable[int]]) -> float:
    """Return the mean number of seeds that draw a latent, over all draws: 1 if no latent is drawn twice.

    The variance of a mean over all draws, if a latent has the same score in each, is this number times as large as that
    of as many different latents.

    Example:
        >>> repeated([[1, 2], [3, 4]]), repeated([[1, 2], [1, 2]])
        (1.0, 2.0)
    """
    counts = Counter(latent for drawn in latents for latent in drawn)
    return sum(c * c for c in counts.values()) / counts.total() if counts else 1.0


def _by_control(cells: Sequence[CellResult], repeats: Mapping[str, float]) -> dict[str, float]:
    """Return how often seeds draw the same latents of a control or of trained coders, whichever is more, by control."""
    found: dict[str, float] = {}
    trained = max((repeats.get(cell.cell, 1.0) for cell in cells if cell.baseline is None), default=1.0)
    for cell in cells:
        if cell.baseline is not None:
            found[cell.baseline] = max(found.get(cell.baseline, trained), repeats.get(cell.cell, 1.0))
    return found


def pooled_mean(
    values: Sequence[float],
    intervals: Sequence[stats.Interval],
    bounds: tuple[float | None, float | None],
    repeats: float = 1.0,
) -> stats.Interval:
    """Return the interval of the mean of estimates, widened if they differ by more than their errors.

    Args:
        values: One per seed.
        intervals: Their 95 % intervals.
        bounds: Minimum and maximum of the metric.
        repeats: Mean number of seeds that draw a latent; latents drawn repeatedly do not narrow the interval.
    """
    k, centre = len(values), mean(values)
    low, high = stats.combined_interval([1 / k] * k, values, intervals)
    errors = [stats.standard_error(v, ci, *bounds) for v, ci in zip(values, intervals, strict=True)]
    wider = _wider(values, mean(error**2 for error in errors), repeats)
    low, high = centre - wider * (centre - low), centre + wider * (high - centre)
    least, greatest = bounds
    return low if least is None else max(low, least), high if greatest is None else min(high, greatest)


def _wider(values: Sequence[float], within: float, repeats: float) -> float:
    """Return the factor that widens an interval if estimates differ by more than their errors, by quantiles of t."""
    from scipy.special import stdtrit

    k = len(values)
    if k < 2 or within <= 0 or (excess := variance(values) / within - 1) <= 0:
        return sqrt(repeats)
    between = excess / (repeats + excess)  # share of the variance due to seeds
    return sqrt(repeats + excess) * float(stdtrit((k - 1) / between**2, 0.975)) / stats.Z95


# --- parts of a result ---


def _joined(parts: Iterable[Any], name: str) -> list[Any]:
    """Concatenate a field's lists over all parts."""
    return [item for part in parts for item in getattr(part, name)]


def _grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _summed(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _mean(items: Iterable[Any], name: str) -> float | None:
    """Return the mean of a field over the parts that have it."""
    known = [value for value in map(attrgetter(name), items) if value is not None]
    return mean(known) if known else None


def _dollars(items: Iterable[Any]) -> float | None:
    """Return the sum of dollars; None if one is unknown."""
    dollars = [item.usd for item in items]
    return None if None in dollars else sum(dollars)


def _means(mappings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each key over the mappings that have it."""
    found: dict[str, list[float]] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            found.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in found.items()}


def _cell(cells: Sequence[CellResult], repeats: float) -> CellResult:
    rows = _grouped(_joined(cells, "scores"), attrgetter("scorer", "variant", "metric"))
    deciles = _grouped(_joined(cells, "deciles"), attrgetter("scorer"))
    powers = _grouped(_joined(cells, "powers"), attrgetter("scorer", "variant"))
    variances = _grouped(_joined(cells, "variance"), attrgetter("scorer"))
    parts = list(map(_variance, variances.values()))
    shared = {found.scorer: _shared(found, len(cells)) for found in parts}
    headlines = {row.scorer: row.metric for row in reversed(_joined(cells, "scores"))}
    pooled = [
        _row(same, repeats, shared.get(scorer, 0.0) if metric == headlines[scorer] else 0.0)
        for (scorer, _, metric), same in rows.items()
    ]
    return cells[0].model_copy(
        update={
            "measures": _means([cell.measures for cell in cells]),
            "counts": _summed(map(attrgetter("counts"), cells)),
            "scores": pooled,
            "deciles": list(map(_deciles, deciles.values())),
            "correlations": _correlations(_joined(cells, "correlations")),
            "powers": list(map(_power, powers.values())),
            "cautions": list(dict.fromkeys(_joined(cells, "cautions"))),
            "variance": parts,
        }
    )


def _shared(parts: VarianceParts, seeds: int) -> float:
    """Return the variance of the shift shared by a pooled mean's latents; seeds share the corpus and nothing else."""
    corpus = parts.shared.get("corpus", 0.0)
    return corpus + (sum(parts.shared.values()) - corpus) / seeds


def _row(rows: Sequence[ScoreRow], repeats: float, shared: float) -> ScoreRow:
    first = rows[0]
    total = {name: sum(map(attrgetter(name), rows)) for name in _SUMMED}
    value, ci95 = _mean(rows, "value"), _interval(rows, repeats)
    rerun = None if value is None or ci95 is None else prediction_interval(value, ci95, first.range, shared)
    bounds = [row.bounds for row in rows if row.bounds is not None]
    return first.model_copy(
        update={
            **total,
            "value": value,
            "ci95": ci95,
            "method": f"{first.method}, {len(rows)} seeds",
            "median": _mean(rows, "median"),
            "coverage": total["n"] / max(total["tried"], 1),
            "floor": _means([row.floor for row in rows]),
            "against": _against([row.against for row in rows if row.against is not None], repeats),
            "bounds": tuple(map(mean, zip(*bounds, strict=True))) or None,
            "prediction95": rerun,
            "reliability": _mean(rows, "reliability"),
            "explanation_words": _mean(rows, "explanation_words"),
            "usd": _dollars(rows),
            "off": any(map(attrgetter("off"), rows)),
            **dict.fromkeys(("corrected", "corrected_ci95", "natural")),
        }
    )


def _interval(rows: Sequence[ScoreRow], repeats: float) -> stats.Interval | None:
    scored = [(row.value, row.ci95) for row in rows if row.value is not None and row.ci95 is not None]
    if not scored:
        return None
    values, intervals = zip(*scored, strict=True)
    return pooled_mean(values, intervals, rows[0].range, repeats)


def _against(samples: Sequence[FloorSample], repeats: float) -> FloorSample | None:
    """Return the floor pooled over the latents of all seeds; p values are combined by Fisher's method."""
    if not samples:
        return None
    n, answers = (sum(map(attrgetter(name), samples)) for name in ("n", "answers"))
    own, value = (_weighted_mean(samples, name) for name in ("own", "value"))
    covariance = [repeats * sum(s.covariance[i] * s.n for s in samples) / n for i in range(3)]
    same = sum((s.same or 0.0) * s.answers for s in samples)
    ps = [s.p for s in samples if s.p is not None]
    floors = [s.shared for s in samples]
    shared = content_hash(*floors) if all(floors) else ""
    return samples[0].model_copy(
        update={
            "n": n,
            "own": own,
            "value": value,
            "covariance": tuple(covariance),
            "least_error": mean(s.least_error for s in samples) * sqrt(repeats / len(samples)),
            "p": stats.fisher(ps),
            "same": same / answers if answers else None,
            "answers": answers,
            "shared": shared,
        }
    )


def _weighted_mean(samples: Sequence[FloorSample], name: str) -> float:
    """Return a mean over latents, computed exactly: for seeds with equally many, the same digits as `mean`."""
    total = sum(Fraction(getattr(sample, name)) * sample.n for sample in samples)
    return float(total / sum(sample.n for sample in samples))


def _deciles(shares: Sequence[DecileShares]) -> DecileShares:
    """Return the shares of all windows together."""
    sides: list[tuple[float | None, int]] = []
    for side in range(len(shares[0].n) + 1):
        right, n = 0.0, 0
        for s in shares:
            share, k = (*s.right, s.negatives_right)[side], (*s.n, s.negatives_n)[side]
            right, n = right + (share or 0.0) * k, n + k
        sides.append((right / n if n else None, n))
    *deciles, (rejected, silent) = sides
    right_shares, numbers = zip(*deciles, strict=True)
    return DecileShares(
        scorer=shares[0].scorer, right=right_shares, n=numbers, negatives_right=rejected, negatives_n=silent
    )


def _correlations(found: Iterable[Correlation]) -> list[Correlation]:
    pooled = []
    for same in _grouped(found, attrgetter("scorers")).values():
        means = {name: _mean(same, name) for name in ("pearson", "spearman", "corrected")}
        pooled.append(Correlation(scorers=same[0].scorers, n=sum(c.n for c in same), **means))
    return pooled


def _power(powers: Sequence[Power]) -> Power:
    """Return the mean power, with an interval if every seed has one: results of earlier versions have none."""
    means = {name: _mean(powers, name) for name in ("difference", "power")}
    intervals = [p.ci95 for p in powers if p.ci95 is not None]
    ci95 = tuple(map(mean, zip(*intervals, strict=True))) if len(intervals) == len(powers) else None
    return powers[0].model_copy(update={"n": sum(p.n for p in powers), **means, "ci95": ci95})


def _variance(parts: Sequence[VarianceParts]) -> VarianceParts:
    means = {name: _mean(parts, name) for name in ("latents", "windows")}
    noise, shared = (_means([getattr(part, name) for part in parts]) for name in ("noise", "shared"))
    return parts[0].model_copy(update={"n": sum(p.n for p in parts), **means, "noise": noise, "shared": shared})


def _ledger(entries: Sequence[Ledger]) -> list[Ledger]:
    """Return the sums of calls, tokens and dollars by role and model."""
    counted = [name for name, field in Ledger.model_fields.items() if field.annotation is int]
    found = []
    for same in _grouped(entries, attrgetter("role", "model")).values():
        totals = {name: sum(map(attrgetter(name), same)) for name in counted}
        found.append(same[0].model_copy(update={**totals, "usd": _dollars(same)}))
    return found
