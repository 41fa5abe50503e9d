"""Prepares the content of a report's first page from the results and the tables of the cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from markupsafe import Markup

from saeval._compare import Leaderboard, strata_texts
from saeval.records import MAIN, CellResult, Correlation, RunResult, ScoreRow
from saeval.report.boards import beneath, cell_fields, detail_fields, notes
from saeval.report.html import plots
from saeval.report.html.latents import CellTables
from saeval.report.html.plots import Series
from saeval.report.html.text import slug
from saeval.report.markdown import CONTROL_HEADS, CONTROLS, FINDINGS, control_row, finding_row
from saeval.report.method import method, named
from saeval.results import Line, score_columns

_MOST_PAIRS = 6
_MOST_DISAGREEMENTS = 15


@dataclass(frozen=True)
class Disagreement:
    """A latent on which scorers disagree: its cell, explanation, scores by scorer, and the gap between rank shares."""

    series: Series
    latent: int
    text: str
    scores: dict[str, float | None]
    gap: float


@dataclass(frozen=True)
class Detail:
    """A score with its texts in the order of `score_columns`."""

    row: ScoreRow
    texts: list[str]


@dataclass(frozen=True)
class Cost:
    """Cost of one scorer over all cells: dollars, None when unknown, and latents scored."""

    scorer: str
    judge: str
    usd: float | None
    latents: int

    @property
    def each(self) -> float | None:
        """Dollars per latent."""
        return None if self.usd is None or not self.latents else self.usd / self.latents


def context(
    run: RunResult, board: Leaderboard, tables: Mapping[str, CellTables], pages: Mapping[str, str], spec: str
) -> dict[str, Any]:
    """Return the values for the template.

    Args:
        run: The results.
        board: Its leaderboard.
        tables: Tables of the cells that have them, by cell.
        pages: Addresses of those cells' pages.
        spec: The resolved spec as YAML; empty when it is missing.
    """
    looks = {s.cell.cell: s for s in Series.of(run.cells, dict(pages))}
    series = [looks[x.cell.cell] for x in board.standings]
    contestants = [s for s in series if s.cell.baseline is None]
    several = len(contestants) > 1
    groups = plots.families(series)
    axes = list(dict.fromkeys(axis for c in run.cells for axis in c.axes))
    against = _made((scorer, plots.against(board, scorer, series)) for scorer in board.metrics)
    layers = _made((scorer, plots.by_layer(board, scorer, groups)) for scorer in board.metrics)
    families = [group[0] for group in groups]
    rows = [row for cell in run.cells for row in cell.scores]
    return {
        **_names(run),
        "run": run,
        "board": board,
        "looks": looks,
        "series": series,
        "own": MAIN,
        "slug": slug,
        "interval": plots.interval,
        "beneath": beneath,
        "share_bar": plots.share_bar,
        "axes": axes * (len(axes) > 1),
        "facts": cell_fields(board, lambda _: run, "report"),
        "notes": partial(notes, run),
        "details": _details(run, board, series),
        "detail_columns": score_columns("details"),
        "pages": bool(pages),
        "method": method(run),
        "spec": spec,
        "components": json.dumps(run.components, indent=1, ensure_ascii=False),
        "against": against,
        "families": families,
        "layers": layers,
        "distributions": _made(_distributions(board, series, tables)),
        "deciles": [*_deciles(board, series)],
        "matrices": _matrices(run, series, several),
        "scatters": _made(_scatters(board, contestants, tables)),
        "disagreements": _disagreements(contestants, tables),
        "reliabilities": _reliabilities(contestants),
        "failures": _failures(series, tables),
        "flawless": not run.partial and not any(row.failed or row.unparsed for row in rows),
        "findings": [*map(finding_row, run.findings)],
        "findings_note": FINDINGS,
        "controls": [*map(control_row, run.controls)],
        "control_heads": CONTROL_HEADS,
        "control_notes": [CONTROLS, *strata_texts(run.controls)],
        "costs": _costs(run, board),
    }


def _names(run: RunResult) -> dict[str, Any]:
    """Return the values for the head of the page, over all cells."""
    return {
        "subject": named(cell.subject for cell in run.cells),
        "explainer": named(cell.explainer for cell in run.cells),
        "scored": sum(map(_sampled, run.cells)),
    }


def _sampled(cell: CellResult) -> int:
    return cell.counts.get("sampled", 0)


def _failures(series: Sequence[Series], tables: Mapping[str, CellTables]) -> list[tuple[Series, Any]]:
    known = [s for s in series if s.cell.cell in tables]
    return [(s, failure) for s in known for failure in tables[s.cell.cell].failures()]


def _distributions(
    board: Leaderboard, series: Sequence[Series], tables: Mapping[str, CellTables]
) -> Iterator[tuple[str, Markup | None]]:
    for scorer, metric in board.metrics.items():
        rows = [(s, _values(tables.get(s.cell.cell), scorer), board.row(s.cell, scorer)) for s in series]
        yield scorer, plots.distribution(scorer, metric, rows)


def _deciles(board: Leaderboard, series: Sequence[Series]) -> Iterator[tuple[str, Markup, Sequence[Any]]]:
    for scorer in board.metrics:
        rows = [(s, shares) for s in series for shares in s.cell.deciles if shares.scorer == scorer]
        if rows:
            yield scorer, plots.deciles(scorer, rows), rows


def _scatters(
    board: Leaderboard, contestants: Sequence[Series], tables: Mapping[str, CellTables]
) -> Iterator[tuple[str, Markup | None]]:
    for pair in _pairs(board)[:_MOST_PAIRS]:
        yield "-".join(pair), _scatter(pair, contestants, tables)


def _matrices(run: RunResult, series: Sequence[Series], several: bool) -> list[tuple[str, list[str], Any]]:
    """Return title, labels and entries of each non-empty table of correlations."""
    found = [(s.name, s.cell.correlations) for s in series]
    if several:
        found.insert(0, ("All contestants", run.correlations))
    made = [(title, *_matrix(correlations)) for title, correlations in found]
    return [(title, labels, entries) for title, labels, entries in made if labels]


def _details(run: RunResult, board: Leaderboard, series: Sequence[Series]) -> list[tuple[Series, list[Detail]]]:
    """Return the scores of each cell with all their columns."""
    found = []
    for s in series:
        rows = [board.row(s.cell, scorer, metric=metric) for scorer, metric in board.shown]
        lines = [Line(run, s.cell, row) for row in rows if row]
        fields = detail_fields(lines, "details")
        texts = zip(*(field.texts for field in fields), strict=True)
        if lines:
            found.append((s, [Detail(x.score, [*found]) for x, found in zip(lines, texts, strict=True)]))
    return found


def figures(context: Mapping[str, Any]) -> list[tuple[str, Markup, Sequence[Series]]]:
    """Return every plot of the page: file name, drawing, and the cells of its legend."""
    series = context["series"]
    contestants = [s for s in series if s.cell.baseline is None]
    legends = {"layers": context["families"], "against": series, "distributions": (), "scatters": contestants}
    found = [
        (f"{part}-{slug(name)}", drawing, legend) for part, legend in legends.items() for name, drawing in context[part]
    ]
    return found + [(f"deciles-{slug(scorer)}", drawing, series) for scorer, drawing, _ in context["deciles"]]


def _made(drawings: Iterable[tuple[str, Markup | None]]) -> list[tuple[str, Markup]]:
    return [(name, drawing) for name, drawing in drawings if drawing is not None]


def _column(tables: CellTables | None, scorer: str) -> list[float | None]:
    ranked = next((r for r in tables.ranked if r.scorer == scorer), None) if tables else None
    return tables.column(ranked.key) if tables and ranked else []


def _values(tables: CellTables | None, scorer: str) -> list[float]:
    return [v for v in _column(tables, scorer) if v is not None]


def _pairs(board: Leaderboard) -> list[tuple[str, str]]:
    """Return pairs of scorers, fuzzing against intervention first (paper, figure 4)."""
    rows = [row for x in board.standings for row in x.cell.scores]
    kind = {row.scorer: row.plugin.partition(" ")[0].rpartition("/")[2] for row in rows}
    pairs = [(b, a) if kind.get(a) == "intervention" else (a, b) for a, b in combinations(board.metrics, 2)]
    return sorted(pairs, key=lambda p: {kind.get(s) for s in p} != {"fuzzing", "intervention"})


def _scatter(pair: tuple[str, str], series: Sequence[Series], tables: Mapping[str, CellTables]) -> Markup | None:
    rows = []
    for s in series:
        found = tables.get(s.cell.cell)
        columns = [_column(found, scorer) for scorer in pair]
        points = zip(found.numbers if found else (), *columns, strict=False)
        rows.append((s, [(i, a, b) for i, a, b in points if a is not None and b is not None]))
    return plots.scatter(pair, rows)


def _matrix(found: Sequence[Correlation]) -> tuple[list[str], dict[tuple[str, str], tuple[float | None, int]]]:
    """Return labels, and by row and column a correlation and its n: Pearson above the diagonal, Spearman below."""
    labels = list(dict.fromkeys(label for c in found for label in c.scorers))
    entries = {}
    for c in found:
        a, b = c.scorers
        entries[a, b], entries[b, a] = (c.pearson, c.n), (c.spearman, c.n)
    return labels, entries


def _disagreements(series: Sequence[Series], tables: Mapping[str, CellTables]) -> list[Disagreement]:
    found = []
    for s in series:
        if (cell := tables.get(s.cell.cell)) is None:
            continue
        gaps = sorted(((g, i) for i, g in enumerate(cell.gaps) if g is not None), reverse=True)[:_MOST_DISAGREEMENTS]
        for gap, i in gaps:
            own = cell.own(cell.numbers[i])
            scores = {r.scorer: cell.column(r.key)[i] for r in cell.ranked}
            found.append(Disagreement(s, cell.numbers[i], own.get("text", "") if own else "", scores, gap))
    return sorted(found, key=lambda d: -d.gap)[:_MOST_DISAGREEMENTS]


def _reliabilities(series: Sequence[Series]) -> dict[str, float]:
    """Return the lowest known reliability of each scorer over the contestants."""
    found: dict[str, float] = {}
    for row in (row for s in series for row in s.cell.scores if row.variant == MAIN and row.reliability is not None):
        found[row.scorer] = min(row.reliability or 0.0, found.get(row.scorer, 1.0))
    return found


def _costs(run: RunResult, board: Leaderboard) -> list[Cost]:
    """Return dollars by scorer. All rows of a scorer state the same dollars, so only one row counts."""
    found = []
    for scorer, metric in board.metrics.items():
        rows = [r for c in run.cells for r in c.scores if (r.scorer, r.metric) == (scorer, metric)]
        dollars = [r.usd for r in rows if r.usd is not None]
        usd = sum(dollars) if len(dollars) == len(rows) else None
        found.append(Cost(scorer, named(r.judge for r in rows), usd, sum(r.n for r in rows)))
    return found
