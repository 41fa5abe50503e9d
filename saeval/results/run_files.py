"""Reads the files of a run directory, and checks that they are consistent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saeval._util import InputError, did_you_mean, file_name, latent_number, read_json_lines
from saeval.records import MAIN, CellResult, RunResult, ScoreRow, read_result

Row = dict[str, Any]


@dataclass(frozen=True)
class RunCell:
    """One cell of a run, with the tables in its folder.

    Attributes:
        result: Its row of `results.json`.
        folder: Folder of its tables.
        seeds: Seeds that the run pools; such a run has no tables.
    """

    result: CellResult
    folder: Path
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self.result.cell

    @property
    def hookpoint(self) -> str:
        """Hookpoint of the cell's coder, or `unknown`."""
        return str(self.result.coder.get("hookpoint") or "unknown")

    @cached_property
    def latents(self) -> list[Row]:
        """Rows of `latents.parquet`, ascending."""
        rows = self._table("latents", ("latent", "firings", "windows", "density", "max_activation"))
        return sorted(rows, key=lambda row: row["latent"])

    @cached_property
    def examples(self) -> list[Row]:
        """Rows of `examples.parquet`; empty if the file is missing, as in some imported runs."""
        columns = ("latent", "role", "active", "decile", "context", "start", "tokens", "activations")
        return self._table("examples", columns) if self.file("examples.parquet").exists() else []

    @cached_property
    def windows(self) -> dict[tuple[int, str], Row]:
        """Rows of `examples.parquet` by latent and address (`context:start`), as judgements name them."""
        return {(row["latent"], f"{row['context']}:{row['start']}"): row for row in self.examples}

    @cached_property
    def judgements(self) -> list[Row]:
        """Rows of `judgements.parquet`."""
        columns = ("latent", "scorer", "variant", "example", "active", "predicted", "probability", "decile", "status")
        return self._table("judgements", columns)

    @cached_property
    def explanations(self) -> list[Row]:
        """Rows of `explanations.jsonl`."""
        rows = []
        for where, row in read_json_lines(self.file("explanations.jsonl")):
            if not isinstance(row, dict) or not all(
                isinstance(row.get(k), str) for k in ("variant", "text", "status", "reason")
            ):
                raise InputError(f"{where}: must contain latent, variant, text, status and reason")
            rows.append({**row, "latent": latent_number(row.get("latent"), where)})
        return rows

    @cached_property
    def texts(self) -> dict[int, str]:
        """The cell's own successful explanations, by ascending latent."""
        own = [row for row in self.explanations if row["variant"] == MAIN and row["status"] == "ok"]
        return {row["latent"]: row["text"] for row in sorted(own, key=lambda row: row["latent"])}

    @property
    def lost_explanations(self) -> int:
        """Number of explanations that are not the cell's own, or failed."""
        return len(self.explanations) - len(self.texts)

    def file(self, name: str) -> Path:
        """Return a file of the cell.

        Raises:
            InputError: If the run pools seeds, which have the files.
        """
        if self.seeds:
            run = self.folder.parent.parent
            seeds = ", ".join(str(run / f"seed-{seed}") for seed in self.seeds)
            raise InputError(f"{run}: pools several seeds; give the directory of one of them ({seeds})")
        return self.folder / name

    def judged(self, scorer: str) -> dict[int, list[Row]]:
        """Return a scorer's judgements of the cell's own explanations, by latent, ascending."""
        found: dict[int, list[Row]] = {}
        for row in self.judgements:
            if row["scorer"] == scorer and row["variant"] == MAIN:
                found.setdefault(row["latent"], []).append(row)
        return dict(sorted(found.items()))

    def rows(self) -> dict[str, list[ScoreRow]]:
        """Return the leaderboard rows of the cell's own explanations, by scorer."""
        found: dict[str, list[ScoreRow]] = {}
        for row in self.result.scores:
            if row.variant == MAIN:
                found.setdefault(row.scorer, []).append(row)
        return found

    def values(self, scorer: str, metric: str) -> dict[int, float]:
        """Return the values of a metric for the cell's own explanations, by latent, ascending."""
        key = f"score.{scorer}.{metric}"
        return {row["latent"]: row[key] for row in self.latents if row.get(key) is not None}

    def _table(self, name: str, columns: tuple[str, ...]) -> list[Row]:
        from saeval.results.cells import CELL_TABLES
        from saeval.results.tables import read_table

        file = self.file(f"{name}.parquet")
        rows: list[Row] = read_table(file, CELL_TABLES[name], columns).to_pylist()
        for row in rows:
            row["latent"] = latent_number(row["latent"], str(file))
        return rows


def open_run(run: Path, cell: str | None = None) -> tuple[RunResult, list[RunCell]]:
    """Return a run's results and its cells, or only the named cell.

    Raises:
        InputError: If it is not a run directory, the cell does not exist, or a cell's name is not a folder name.
    """
    result = read_result(run)
    root = run if run.is_dir() else run.parent
    names = [c.cell for c in result.cells]
    if cell is not None and cell not in names:
        raise InputError(f"{run}: no cell {cell!r}{did_you_mean(cell, names)}; there are {'; '.join(names)}")
    if wrong := [name for name in names if Path(name).name != name or name == ".."]:
        raise InputError(f"{run}: a cell is called {wrong[0]!r:.80}, which is not a folder name")
    chosen = [c for c in result.cells if cell is None or c.cell == cell]
    return result, [RunCell(c, root / "cells" / c.cell, result.seeds) for c in chosen]


def cell_file(cell: RunCell, suffix: str = "") -> str:
    """Return the name of a cell's file or folder in an export."""
    return file_name(cell.name) + suffix
