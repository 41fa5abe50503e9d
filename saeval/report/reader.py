"""Reads a run from its directory: the results, and tables for data frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PrivateAttr

from saeval._util import InputError, with_home
from saeval.records import RunResult
from saeval.report.notebook import NotebookView, board_html, latent, leaderboard, plot, short
from saeval.results import CELL_TABLES, RunCell, arrow_table, open_run, read_table, tidy

if TYPE_CHECKING:
    import pyarrow as pa

_EXPLANATIONS = {"latent": "int64", "variant": "string", "text": "string", "status": "string", "reason": "string"}


class Run(RunResult):
    """A run's results, and its tables as `pyarrow.Table`.

    A table contains all cells, named in the column `cell`, and is read on access; a missing file is an `InputError`.
    `run.latents.to_pandas()` and `polars.from_arrow(run.latents)` make data frames.

    Example:
        >>> run = saeval.run("mine.yaml", out="mine")
        >>> run.scores.select(["scorer", "metric", "value", "n"]).slice(0, 1).to_pylist()
        [{'scorer': 'detection', 'metric': 'balanced_accuracy', 'value': 1.0, 'n': 4}]
        >>> latents = run.latents.to_pandas()
        >>> latents[latents["score.detection.balanced_accuracy"] < 0.9].latent.tolist()
        []
        >>> judged = run.judgements.to_pandas().query("variant == 'explanation'")
        >>> judged.groupby("active").predicted.mean().to_dict()
        {False: 0.0, True: 1.0}
    """

    _files: list[RunCell] = PrivateAttr(default_factory=list)
    _folder: Path = PrivateAttr(default=Path())

    def __repr__(self) -> str:
        """Return the run in one line."""
        return short(self)

    __str__ = __repr__

    def __dir__(self) -> list[str]:
        """Return the fields, tables and views, without pydantic's methods."""
        own = [name for name in vars(Run) if not name.startswith(("_", "model_"))]
        return sorted([*type(self).model_fields, *own, "model_dump", "model_dump_json"])

    def _repr_html_(self) -> str:
        return board_html(self)

    def leaderboard(self) -> NotebookView:
        """Return the board: HTML in a notebook, text when printed."""
        return leaderboard(self)

    def latent(self, index: int, cell: str | None = None) -> NotebookView:
        """Return one latent: explanations, scores, strongest windows.

        Args:
            index: Number of the latent.
            cell: Name of the cell, if several have this latent.

        Raises:
            InputError: If there is no such latent or cell, or several cells have it.
        """
        return latent(self._files, index, cell)

    def plot(self, name: str | None = None) -> NotebookView:
        """Return a plot of the report.

        Args:
            name: Name of the plot, such as `distributions-detection`; default: the first one.

        Raises:
            InputError: If there is no such plot; the message lists all plots.
        """
        return plot(self, self._folder, name)

    def __eq__(self, other: object) -> bool:
        """Return whether the results are equal, regardless of their directories."""
        return isinstance(other, RunResult) and dict(self) == dict(other)

    @property
    def scores(self) -> pa.Table:
        """The leaderboard: one row per cell, scorer, explanation (`variant`) and metric."""
        columns, rows = tidy(self)
        return arrow_table(rows, columns)

    @property
    def latents(self) -> pa.Table:
        """One row per latent: firings, windows, density, and the scores of its own explanation,
        `score.<label>.<metric>`."""
        return self._joined("latents")

    @property
    def latent_scores(self) -> pa.Table:
        """One row per latent, scorer, explanation (`variant`) and metric: value, or the reason why there is none."""
        return self._joined("scores")

    @property
    def examples(self) -> pa.Table:
        """One row per window that explained or scored a latent (`role`), with its tokens and activations."""
        return self._joined("examples")

    @property
    def judgements(self) -> pa.Table:
        """One row per judged window: truth, answer, probability, or the reason why there is no answer."""
        return self._joined("judgements")

    @property
    def calls(self) -> pa.Table:
        """One row per prompt that was sent for a latent, with the reply."""
        return self._joined("calls")

    @property
    def explanations(self) -> pa.Table:
        """One row per explanation, including those of baselines (`variant`)."""
        rows = [{"cell": cell.name, **row} for cell in self._files for row in cell.explanations]
        return arrow_table(rows, {"cell": "string", **_EXPLANATIONS})

    def _joined(self, name: str) -> pa.Table:
        import pyarrow as pa

        tables = []
        for cell in self._files:
            table = read_table(cell.file(f"{name}.parquet"), CELL_TABLES[name])
            tables.append(table.add_column(0, "cell", pa.repeat(cell.name, len(table))))
        try:
            return pa.concat_tables(tables or [arrow_table([], {"cell": "string"})], promote_options="default")
        except pa.ArrowException:
            raise InputError(f"{name}.parquet: the tables of the cells do not have the same columns") from None


def read(path: str | Path) -> Run:
    """Read a run; this needs no plugin.

    Args:
        path: The run directory, or its `results.json`.

    Raises:
        InputError: If there are no results, or this version of saeval does not support their format.

    Example:
        >>> run = saeval.read("mine")
        >>> row = run.cells[0].scores[0]
        >>> row.scorer, row.metric, row.value, row.n, row.floor["chance"]
        ('detection', 'balanced_accuracy', 1.0, 4, 0.5)
    """
    path = with_home(path).absolute()  # so that its tables can be read after the working directory has changed
    result, files = open_run(path)
    run = Run.model_construct(**dict(result))
    run._files = files
    run._folder = path if path.is_dir() else path.parent
    return run
