"""Reads and writes saeval's tidy tables (latents, explanations, scores, judgements) as JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import saeval
from saeval._util import InputError, latent_number, read_json, read_json_lines, write_atomic
from saeval.exchange.imported import Imported, ImportedCell, Scoring
from saeval.records import MAIN, Explanation, Metric, Outcome, RunResult, Score
from saeval.results import Row, RunCell

TABLES_FORMAT = "saeval.tables/1"
Kind = Literal["jsonl", "parquet"]
_WHERE = {"cell": "string", "subject": "string", "hookpoint": "string", "latent": "int64"}
TABLE_COLUMNS: dict[str, dict[str, str]] = {
    "latents": {**_WHERE, "firings": "int64", "windows": "int64", "density": "double", "max_activation": "double"},
    "explanations": {
        **_WHERE, "variant": "string", "text": "string", "status": "string", "reason": "string", "explainer": "string",
    },
    "scores": {
        **_WHERE, "scorer": "string", "plugin": "string", "judge": "string", "metric": "string", "value": "double",
        "higher_is_better": "bool", "low": "double", "high": "double", "chance": "double",
    },
    "judgements": {
        **_WHERE, "scorer": "string", "variant": "string", "example": "string", "active": "bool", "predicted": "bool",
        "probability": "double", "decile": "int8", "weight": "double", "status": "string", "reason": "string",
    },
}  # fmt: skip
"""Tables, with their columns and Arrow types."""


def write(result: RunResult, cells: Sequence[RunCell], folder: Path, names: dict[str, str], kind: Kind) -> list[str]:
    """Write four tables of all cells, and `about.json`, which describes the run."""
    tables = {name: list(rows(cells, names)) for name, rows in _ROWS.items()}
    for name, found in tables.items():
        if kind == "parquet":
            from saeval.results import write_table

            write_table(folder / f"{name}.parquet", found, TABLE_COLUMNS[name])
        else:
            write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    about = {
        "format": TABLES_FORMAT, "run_id": result.run_id, "task": result.task, "task_version": result.task_version,
        "spec_sha": result.spec_sha, "saeval_version": saeval.__version__, "synthetic": result.synthetic,
        "reproducible": result.reproducible, "rank_by": result.rank_by, "warnings": result.warnings,
        "cells": [_about(cell) for cell in cells],
    }  # fmt: skip
    write_atomic(folder / "about.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return [
        "Windows are not included; they are in the run's cells/*/examples.parquet. Intervals, floors and costs are in "
        "its results.json.",
        "Scores are those of the cells' own explanations; for baselines, only judgements are included, and means are "
        "in results.json.",
    ]


def _about(cell: RunCell) -> Row:
    """Return facts about a cell that are in no table: axes, coder, and the number of latents per scorer."""
    facts = cell.result
    tried = {label: {"tried": rows[0].tried, "skipped": rows[0].skipped} for label, rows in cell.rows().items()}
    return {"cell": cell.name, "axes": facts.axes, "baseline": facts.baseline, "coder": facts.coder, "scorers": tried}


def _place(cell: RunCell, names: dict[str, str], latent: int) -> Row:
    return {
        "cell": cell.name,
        "subject": names.get("model", cell.result.subject),
        "hookpoint": names.get("source", cell.hookpoint),
        "latent": latent,
    }


def latent_rows(cells: Sequence[RunCell], names: dict[str, str]) -> Iterator[Row]:
    """Yield a row per latent."""
    for cell in cells:
        for row in cell.latents:
            yield {
                **_place(cell, names, row["latent"]),
                **{k: row[k] for k in TABLE_COLUMNS["latents"] if k not in _WHERE},
            }


def explanation_rows(cells: Sequence[RunCell], names: dict[str, str]) -> Iterator[Row]:
    """Yield a row per explanation, including failed ones and those of baselines."""
    for cell in cells:
        for row in cell.explanations:
            own = {"explainer": cell.result.explainer if row["variant"] == MAIN else row["variant"]}
            fields = {k: row[k] for k in ("variant", "text", "status", "reason")}
            yield {**_place(cell, names, row["latent"]), **fields, **own}


def score_rows(cells: Sequence[RunCell], names: dict[str, str]) -> Iterator[Row]:
    """Yield a row per latent, scorer and metric."""
    for cell in cells:
        for scorer, rows in cell.rows().items():
            for row in rows:
                low, high = row.range
                about = {
                    "scorer": scorer, "plugin": row.plugin, "judge": row.judge, "metric": row.metric,
                    "higher_is_better": row.higher_is_better, "low": low, "high": high,
                    "chance": row.floor.get("chance"),
                }  # fmt: skip
                for latent, value in cell.values(scorer, row.metric).items():
                    yield {**_place(cell, names, latent), **about, "value": value}


def judgement_rows(cells: Sequence[RunCell], names: dict[str, str]) -> Iterator[Row]:
    """Yield a row per judged window."""
    for cell in cells:
        for row in cell.judgements:
            fields = {k: row.get(k) for k in TABLE_COLUMNS["judgements"] if k not in _WHERE}
            yield {**_place(cell, names, row["latent"]), **fields}


_ROWS: dict[str, Callable[[Sequence[RunCell], dict[str, str]], Iterator[Row]]] = {
    "latents": latent_rows, "explanations": explanation_rows, "scores": score_rows, "judgements": judgement_rows,
}  # fmt: skip


def read(path: Path, kind: Kind) -> Imported:
    """Read the four tables.

    Raises:
        InputError: If one is missing, damaged, or lacks a column.
    """
    about = read_json(path / "about.json")
    cells: dict[str, ImportedCell] = {}
    if not isinstance(about, dict) or about.get("format") != TABLES_FORMAT:
        raise InputError(f"{path / 'about.json'}: does not have the format {TABLES_FORMAT}; export the run again")
    tables = {name: list(_table(path, name, kind)) for name in TABLE_COLUMNS}
    try:
        for facts in about["cells"]:
            cells[facts["cell"]] = ImportedCell(
                dict(facts["axes"]),
                str(facts["coder"].get("hookpoint", "")),
                coder=dict(facts["coder"]),
                baseline=facts["baseline"],
            )
        tried = {(facts["cell"], label): n for facts in about["cells"] for label, n in facts["scorers"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path / 'about.json'}: the list of cells is malformed; export the run again") from None
    for name, rows in tables.items():
        for where, row in rows:
            cell = cells.setdefault(str(row["cell"]), ImportedCell({"cell": str(row["cell"])}, str(row["hookpoint"])))
            cell.subject, cell.hookpoint = str(row["subject"] or ""), str(row["hookpoint"] or "unknown")
            try:
                _TAKE[name](cell, row)
            except (ValidationError, TypeError, ValueError) as error:
                line = str(error).splitlines()
                raise InputError(
                    f"{where}: is not a row of {name} ({line[-1] if len(line) < 3 else line[2].strip():.120})"
                ) from None
    for name, cell in cells.items():
        for label, scoring in cell.scorings.items():
            n = tried.get((name, label), {})
            scoring.tried, scoring.skipped = (int(n.get(key, 0)) for key in ("tried", "skipped"))
    if not any(cell.numbers for cell in cells.values()):
        raise InputError(f"{path}: the tables are empty")
    warnings = [str(warning) for warning in about.get("warnings") or []]
    warnings.append("Floors, intervals over baselines, costs and windows of the original run are not in its tables.")
    return Imported(
        f"a run of saeval ({about.get('task')} {about.get('task_version')}, {about.get('run_id')})",
        list(cells.values()),
        warnings,
        synthetic=about.get("synthetic") is True,
        rank_by=str(about.get("rank_by", "")),
    )


def _table(path: Path, name: str, kind: Kind) -> Iterator[tuple[str, Row]]:
    """Yield the location (file and line or row) and the content of each row of a table."""
    columns = tuple(TABLE_COLUMNS[name])
    if kind == "parquet":
        from saeval.results import read_table

        table = read_table(path / f"{name}.parquet", TABLE_COLUMNS[name], columns)
        rows: Any = ((f"{path / name}.parquet, row {i}", row) for i, row in enumerate(table.to_pylist()))
    else:
        rows = read_json_lines(path / f"{name}.jsonl")
    for where, row in rows:
        if not isinstance(row, dict) or not set(columns) <= row.keys():
            raise InputError(f"{where}: must have the columns {', '.join(columns)}")
        yield where, {**row, "latent": latent_number(row["latent"], where)}


def _take_latent(cell: ImportedCell, row: Row) -> None:
    cell.latents[row["latent"]] = {k: row[k] for k in TABLE_COLUMNS["latents"] if k not in _WHERE}


def _take_explanation(cell: ImportedCell, row: Row) -> None:
    if row["variant"] == MAIN:
        cell.explainer = str(row["explainer"] or "")
    found = Explanation(text=row["text"], status=row["status"], reason=row["reason"])
    cell.explanations[str(row["variant"]), row["latent"]] = found


def _take_score(cell: ImportedCell, row: Row) -> None:
    scoring = cell.scorings.setdefault(
        str(row["scorer"]), Scoring(str(row["plugin"]), [], judge=row["judge"] and str(row["judge"]))
    )
    chance = None if row["chance"] is None else float(row["chance"])
    higher = None if row["higher_is_better"] is None else bool(row["higher_is_better"])
    metric = Metric(str(row["metric"]), higher, float(row["low"]), float(row["high"]), chance)
    if metric not in scoring.metrics:
        scoring.metrics = [*scoring.metrics, metric]
    value = float(row["value"])
    if not metric.low - 1e-9 <= value <= metric.high + 1e-9:
        raise ValueError(f"{metric.name} = {value} lies outside {metric.low} to {metric.high}")
    before = scoring.scores.get(row["latent"], Score())
    scoring.scores[row["latent"]] = before.model_copy(update={"values": {**before.values, metric.name: value}})


def _take_judgement(cell: ImportedCell, row: Row) -> None:
    fields = {k: row[k] for k in ("example", "active", "predicted", "probability", "decile", "weight", "status")}
    outcome = Outcome(**fields, reason=row["reason"] or "")
    scoring = cell.scorings.get(str(row["scorer"]))
    if row["variant"] != MAIN or scoring is None or row["latent"] not in scoring.scores:
        cell.judgements.append(
            {
                "latent": row["latent"],
                "scorer": str(row["scorer"]),
                "variant": str(row["variant"]),
                **outcome.model_dump(mode="json"),
            }
        )
        return
    before = scoring.scores[row["latent"]]
    scoring.scores[row["latent"]] = before.model_copy(update={"outcomes": (*before.outcomes, outcome)})


_TAKE: dict[str, Callable[[ImportedCell, Row], None]] = {
    "latents": _take_latent, "explanations": _take_explanation, "scores": _take_score, "judgements": _take_judgement,
}  # fmt: skip
