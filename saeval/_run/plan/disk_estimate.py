"""Estimates a run's disk space by writing the results of a few latents like a run."""

from __future__ import annotations

import json
import time
from copy import copy
from dataclasses import replace
from pathlib import Path

from saeval._run.aggregate import summarise
from saeval._run.cell_files import write_cells
from saeval._run.journal_entries import entry_of
from saeval._run.state import CellState, Results, RunState, Scored
from saeval.llm import Call, ledger_line
from saeval.records import Explanation, Score, Usage

_KEY = 32  # characters per hash
_ROW = 60  # bytes per answer in the cache besides its text: key, model, checksum, index entry


def journal(result: Explanation | Score) -> int:
    """Return the size of a result's line in the journal, in bytes."""
    value = entry_of(result, Usage(1000, 10, 0, 0.00012345, "provider"))
    return len(json.dumps({"key": "0" * _KEY, "value": value})) + 10


def call(role: str, model: str) -> int:
    """Return the size of a call's line in the ledger, in bytes."""
    usage = Usage(1000, 10, 0, 0.00012345, "provider")
    made = Call(role, model, "0" * _KEY, "0" * _KEY, "ok", False, 1, usage, 1234.5, served=model, words=999)
    return len(ledger_line(made, round(time.time(), 3), 0.123456789)) + 1


def answer(characters: int) -> int:
    """Return the size of an answer in the cache, in bytes, from the length of its JSON."""
    return characters + _ROW


def reports(state: RunState, journal: Results, latents: int, folder: Path) -> int:
    """Return the size of the cells' tables, `results.json` and the report, in bytes.

    Args:
        state: A run with a few latents of each cell.
        journal: Their full results.
        latents: Total number of latents of all cells to extrapolate to.
        folder: An empty folder.
    """
    most = max((len(cell.records) for cell in state.cells.values()), default=0)
    few = most // 2
    all_of_them, part = (_written(_cut(state, journal, n), journal, folder / str(n)) for n in (most, few))
    tried, fewer = (sum(min(n, len(cell.records)) for cell in state.cells.values()) for n in (most, few))
    each = (all_of_them - part) / (tried - fewer) if tried > fewer else 0.0
    return round(all_of_them + each * (latents - tried))


def _written(state: RunState, journal: Results, folder: Path) -> int:
    from saeval.report import write_reports

    def folder_of(cell: str) -> Path:
        (folder / "cells" / cell).mkdir(parents=True)
        return folder / "cells" / cell

    write_cells(state, journal, folder_of)
    result = summarise(state, [], run_id="plan", partial=False, seconds={})
    write_reports(result, folder / "report")
    bytes_ = len(json.dumps(result.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False).encode())
    return bytes_ + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _cut(state: RunState, journal: Results, n: int) -> RunState:
    """Return the state restricted to the first n latents of each cell."""
    cut = copy(state)
    cut.cells = {name: _cut_cell(state, journal, cell, n) for name, cell in state.cells.items()}
    return cut


def _cut_cell(state: RunState, journal: Results, cell: CellState, n: int) -> CellState:
    records = cell.records.first(n)
    kept = [latent.index for latent in records.latents]
    scored = {place: Scored(len(kept)) for place in cell.scored}
    for place, into in scored.items():
        for latent in kept:
            if (found := state.score(journal, cell.item(*place, latent))) is not None:
                into.take(latent, *found)
    explanations = {(variant, i): e for (variant, i), e in cell.explanations.items() if i in kept}
    return replace(cell, records=records, explanations=explanations, scored=scored)
