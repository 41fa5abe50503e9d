"""What a run would weigh on disk, found by writing what a few latents come to as a run writes it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from saeval._run.aggregate import CellOutcome, Scored, summarise, write_cells
from saeval.llm import Call
from saeval.records import Explanation, Score, Usage
from saeval.task import Task

_KEY = 32  # characters of a hash
_DATABASE = 1.35  # pages of a database whose keys come in any order are full to some three quarters


def journal(result: Explanation | Score) -> int:
    """Return the bytes of a result's line in the journal."""
    value = {"result": result.model_dump(mode="json"), "usage": asdict(Usage(1000, 10, 0, 0.00012345, "provider"))}
    return len(json.dumps({"key": "0" * _KEY, "value": value})) + 10


def call(role: str, model: str) -> int:
    """Return the bytes of a call's line in the ledger."""
    usage = Usage(1000, 10, 0, 0.00012345, "provider")
    made = Call(role, model, "0" * _KEY, "0" * _KEY, "ok", False, 1, usage, 1234.5)
    return len(json.dumps({"time": time.time(), **asdict(made)})) + 1


def answer(characters: int) -> int:
    """Return the bytes of an answer in the cache, written down in so many characters."""
    return round((characters + _KEY + 20) * _DATABASE)


def reports(task: Task, outcomes: Sequence[CellOutcome], latents: int, folder: Path) -> int:
    """Return the bytes of the tables of cells, `results.json` and the report.

    Args:
        task: The task.
        outcomes: What a few latents of each cell come to.
        latents: Latents of all cells together that it is wanted for.
        folder: An empty folder.
    """
    most = max((len(outcome.records) for outcome in outcomes), default=0)
    few = most // 2
    whole, part = (_written(task, [_cut(o, n) for o in outcomes], folder / str(n)) for n in (most, few))
    tried, fewer = (sum(min(n, len(o.records)) for o in outcomes) for n in (most, few))
    each = (whole - part) / (tried - fewer) if tried > fewer else 0.0
    return round(whole + each * (latents - tried))


def _written(task: Task, outcomes: Sequence[CellOutcome], folder: Path) -> int:
    from saeval.report import write_reports

    by_name = {outcome.cell.name: outcome for outcome in outcomes}

    def folder_of(cell: str) -> Path:
        (folder / "cells" / cell).mkdir(parents=True)
        return folder / "cells" / cell

    write_cells(by_name, folder_of)
    result = summarise(task, by_name, [], run_id="plan", partial=False, seconds={})
    write_reports(result, folder / "report")
    bytes_ = len(json.dumps(result.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False).encode())
    return bytes_ + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _cut(outcome: CellOutcome, n: int) -> CellOutcome:
    """Return what is known of the first n latents."""
    records = outcome.records.first(n)
    kept = [latent.index for latent in records.latents]
    scored = {place: Scored(len(kept)) for place in outcome.scored}
    for place, into in scored.items():
        for i in kept:
            if (score := outcome.score(*place, i)) is not None:
                into.take(i, score)
    explanations = {(variant, i): e for (variant, i), e in outcome.explanations.items() if i in kept}
    return replace(outcome, records=records, explanations=explanations, scored=scored)
