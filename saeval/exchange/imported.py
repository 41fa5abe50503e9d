"""Creates a run directory, marked as imported, from another tool's results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import saeval
from saeval._compare import Floors, ScorerRun, judgement_columns, latent_score_rows, score_row
from saeval._util import content_hash, derive_rng, file_name, mark, new_folder, unique, write_atomic, write_checksums
from saeval.records import (
    MAIN,
    CellResult,
    DecileShares,
    Explanation,
    JudgedWindows,
    Metric,
    RunResult,
    Score,
    ScoreRow,
)


@dataclass
class Scoring:
    """Scores of one scorer of another tool.

    Attributes:
        plugin: The tool's name for the scorer.
        metrics: The metrics of its values; the first is the headline.
        scores: Scores by latent.
        judge: Model that judged, if known.
        tried: Number of latents tried, if the tool states it and it exceeds the number of scores.
        skipped: Number of these latents that were skipped.
    """

    plugin: str
    metrics: Sequence[Metric]
    scores: dict[int, Score] = field(default_factory=dict)
    judge: str | None = None
    tried: int = 0
    skipped: int = 0


@dataclass
class ImportedCell:
    """Another tool's results for the latents of one hookpoint.

    Attributes:
        axes: Axes that distinguish this cell from others.
        hookpoint: The tool's name for the hookpoint.
        subject: The subject model; empty if unknown.
        explainer: The explainer; empty if unknown.
        explanations: Explanations by variant and latent.
        scorings: Scorers by label.
        latents: Other facts about latents, as columns of `latents.parquet`.
        examples: Rows of `examples.parquet`.
        judgements: Rows of `judgements.parquet` in addition to those of `scorings`.
        coder: Known facts about the coder.
        baseline: Name of the baseline if the cell is one; None for a contestant.
    """

    axes: dict[str, str]
    hookpoint: str
    subject: str = ""
    explainer: str = ""
    explanations: dict[tuple[str, int], Explanation] = field(default_factory=dict)
    scorings: dict[str, Scoring] = field(default_factory=dict)
    latents: dict[int, dict[str, Any]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    judgements: list[dict[str, Any]] = field(default_factory=list)
    coder: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None

    @property
    def numbers(self) -> list[int]:
        """All latents, ascending."""
        scored = (i for s in self.scorings.values() for i in s.scores)
        return sorted({*(i for _, i in self.explanations), *scored, *self.latents})

    def score_rows(self, label: str, name: str) -> list[ScoreRow]:
        """Return the leaderboard rows of one scorer."""
        scoring, rows = self.scorings[label], []
        tried = max(scoring.tried, len(scoring.scores))
        unparsed = sum(s.count("unparsed", "refused") for s in scoring.scores.values())
        scored = sum(s.status == "ok" for s in scoring.scores.values())
        about = ScorerRun(
            label,
            scoring.plugin,
            tried=tried,
            failed=tried - scored - scoring.skipped,
            skipped=scoring.skipped,
            unparsed=unparsed,
            windows=self._windows(label),
            judge=scoring.judge,
        )
        for place, metric in enumerate(scoring.metrics):
            given = {i: s.values[metric.name] for i, s in sorted(scoring.scores.items()) if metric.name in s.values}
            if not given and (place or not tried):
                continue
            explanations = (self.explanations.get((MAIN, i)) for i in given)
            words = [len(e.text.split()) for e in explanations if e and e.text]
            rng = derive_rng(0, "interval", metric.name, name, label)
            rows.append(score_row(about, metric, given, rng, words=words, floors=Floors()))
        return rows

    def _windows(self, label: str) -> tuple[int, int]:
        """Return the numbers of windows that a scorer asked about and answered; 0 if it does not judge windows."""
        judged = [o for score in self.scorings[label].scores.values() for o in score.outcomes]
        answers = [o.predicted if o.status == "ok" else None for o in judged]
        for row in self.judgements:  # of latents without a score
            if (row["scorer"], row["variant"]) == (label, MAIN):
                answers.append(row["predicted"] if row["status"] == "ok" else None)
        answered = sum(answer is not None for answer in answers)
        return (len(answers), answered) if answered or any(o.status != "ok" for o in judged) else (0, 0)


@dataclass
class Imported:
    """The content of imported files.

    Attributes:
        tool: The tool that wrote the files, in words.
        cells: The cells.
        warnings: What was omitted, and other warnings for readers.
        synthetic: Whether the files state that a part is synthetic.
        rank_by: Column that ranks the leaderboard; default: the first scorer's headline.
    """

    tool: str
    cells: list[ImportedCell]
    warnings: list[str] = field(default_factory=list)
    synthetic: bool = False
    rank_by: str = ""


def write_run(imported: Imported, format_: str, origin: str, out: Path) -> RunResult:
    """Write the run directory, atomically.

    Args:
        imported: The content of the imported files.
        format_: Name of the format.
        origin: Name of the imported file or folder, without its path, which may be private.
        out: The directory to create.

    Raises:
        InputError: If `out` already exists or cannot be written.
    """
    from saeval.report import write_reports

    taken: set[str] = set()
    names = [unique(file_name(",".join(f"{k}={v}" for k, v in c.axes.items()) or "all"), taken) for c in imported.cells]
    result = _result(imported, names, format_, origin, file_name(out.name))
    with new_folder(out) as folder:
        for cell, name in zip(imported.cells, names, strict=True):
            place = folder / "cells" / name
            place.mkdir(parents=True)
            _write_cell(cell, place)
        write_atomic(
            folder / "results.json",
            json.dumps(result.model_dump(mode="json", by_alias=True), ensure_ascii=False, indent=1),
        )
        head = {"status": "imported", "task": result.task, "spec_sha": result.spec_sha, "updated": time.time()}
        write_atomic(folder / "run.json", json.dumps(head, indent=1))
        mark(folder)
        write_checksums(folder)
        write_reports(result, folder / "report")
    return result


def _result(imported: Imported, names: Sequence[str], format_: str, origin: str, run_id: str) -> RunResult:
    cells = []
    for cell, name in zip(imported.cells, names, strict=True):
        n = len(cell.numbers)
        explained = sum(e.status == "ok" for (variant, _), e in cell.explanations.items() if variant == MAIN)
        cells.append(
            CellResult(
                cell=name,
                axes=cell.axes,
                baseline=cell.baseline,
                subject=cell.subject,
                coder={**cell.coder, "hookpoint": cell.hookpoint},
                explainer=cell.explainer or f"unknown, imported from {imported.tool}",
                measures={},
                counts={"requested": n, "eligible": n, "sampled": n, "explained": explained},
                scores=[row for label in cell.scorings for row in cell.score_rows(label, name)],
                deciles=[shares for label, scoring in cell.scorings.items() if (shares := _deciles(label, scoring))],
            )
        )
    first = next((row for c in cells for row in c.scores), None)
    rows = {f"{row.scorer}.{row.metric}" for c in cells for row in c.scores}
    fallback = f"{first.scorer}.{first.metric}" if first else "detection.balanced_accuracy"
    return RunResult(
        run_id=run_id,
        task=f"imported-{format_}",
        task_version="1",
        description=f"Imported from {imported.tool}: {origin}",
        spec_sha=content_hash(format_, [c.model_dump(mode="json") for c in cells]),
        saeval_version=saeval.__version__,
        seed=0,
        rank_by=imported.rank_by if imported.rank_by in rows else fallback,
        partial=False,
        synthetic=imported.synthetic,
        reproducible=False,
        cells=cells,
        ledger=[],
        warnings=[
            f"These numbers come from {imported.tool} ({origin}) and cannot be reproduced from this directory.",
            *imported.warnings,
        ],
        components={"imported": {"format": format_, "origin": origin}},
    )


def _deciles(label: str, scoring: Scoring) -> DecileShares | None:
    """Return the share of correct judgements per decile; None if the files have no answers by decile."""
    right, judged = [0] * 11, [0] * 11
    for score in scoring.scores.values():
        for o in score.outcomes:
            side = o.decile if o.active else 10
            if o.predicted is not None and side is not None:
                judged[side] += 1
                right[side] += o.predicted == o.active
    if not any(judged[:10]):
        return None
    shares = [r / n if n else None for r, n in zip(right, judged, strict=True)]
    return DecileShares(
        scorer=label, right=tuple(shares[:10]), n=tuple(judged[:10]), negatives_right=shares[10], negatives_n=judged[10]
    )


def _write_cell(cell: ImportedCell, folder: Path) -> None:
    """Write the tables of a cell; those of windows for pages and of calls are empty."""
    from saeval.results import cell_tables

    scores = [f"score.{label}.{name}" for label, scoring in cell.scorings.items() for name in _metrics(scoring)]
    with cell_tables(folder, scores, directions=False) as tables:
        tables.latents.add(_latent_row(cell, latent) for latent in cell.numbers)
        tables.examples.add(cell.examples)
        tables.explanations.add(_explanation_rows(cell.explanations))
        for label, scoring in cell.scorings.items():
            for latent, score in sorted(scoring.scores.items()):
                judged = JudgedWindows.of(score.outcomes)
                tables.scores.add(latent_score_rows(latent, label, MAIN, score, judged))
                tables.judgements.add_columns(judgement_columns(latent, label, MAIN, judged))
        tables.judgements.add(cell.judgements)


def _metrics(scoring: Scoring) -> list[str]:
    """Return the metrics that any latent has."""
    return list(dict.fromkeys(name for score in scoring.scores.values() for name in score.values))


def _latent_row(cell: ImportedCell, latent: int) -> dict[str, Any]:
    explanation = cell.explanations.get((MAIN, latent))
    scores = {
        f"score.{label}.{name}": value
        for label, scoring in cell.scorings.items()
        if latent in scoring.scores
        for name, value in scoring.scores[latent].values.items()
    }
    status = explanation.status if explanation else "skipped"
    return {**cell.latents.get(latent, {}), "latent": latent, "explanation_status": status, **scores}


def _explanation_rows(explanations: Mapping[tuple[str, int], Explanation]) -> Iterable[dict[str, Any]]:
    """Return the explanations by latent; a latent's are in the order of the files."""
    by_latent = sorted(explanations.items(), key=lambda item: item[0][1])
    return [{"latent": i, "variant": v, **e.model_dump(mode="json")} for (v, i), e in by_latent]
