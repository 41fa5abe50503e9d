"""Exports and imports runs in other tools' formats, from files alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from saeval.records import RunResult

FORMATS = ("delphi", "neuronpedia", "saebench", "auto-interp-explanations", "jsonl", "parquet")
"""Formats that a run can be written in, and made from."""
EXPORTS = (*FORMATS, "every-eval-ever", "hf-eval-results")
"""Formats that a run can be written in."""
_MARKED = ("jsonl", "parquet", *EXPORTS[len(FORMATS) :])  # they say that a run is synthetic, and what is a baseline


def export_run(
    run: Path,
    format_: str,
    out: Path,
    *,
    cell: str | None = None,
    model: str | None = None,
    source: str | None = None,
    dataset: str | None = None,
) -> list[str]:
    """Write a run in another format; nothing is sent anywhere.

    Args:
        run: The run directory.
        format_: One of `EXPORTS`.
        out: A directory to make: one file or folder a cell.
        cell: The cell to write; default: all.
        model: What the format should call the subject model, instead of its name in the run.
        source: What the format should call the place in the model, instead of the hookpoint.
        dataset: Dataset repository on the Hub that holds the benchmark, `owner/name`; `hf-eval-results` needs it.

    Returns:
        What the format cannot hold, a sentence each.

    Raises:
        InputError: If the run cannot be read, holds nothing that the format can hold, or `out` already exists.
    """
    from saeval._util import believable, new_folder
    from saeval.results import open_run

    result, cells = open_run(run, cell)
    names = {"model": model, "source": source, "dataset": dataset}
    with new_folder(out) as folder, believable(run):
        lost: list[str] = _module(format_, EXPORTS).write(
            result, cells, folder, {k: v for k, v in names.items() if v}, format_
        )
    if format_ not in _MARKED:
        if result.synthetic:
            lost.insert(
                0, "A part of this run is synthetic, which the files do not say; mark them when you share them."
            )
        lost += [f"{c.name}: is a baseline; the files do not say so." for c in cells if c.result.baseline]
    return list(dict.fromkeys(lost))


def import_run(path: Path, format_: str, out: Path) -> RunResult:
    """Make a run directory from another tool's files; it can be reported on, and its explanations scored again.

    Args:
        path: The file or folder, as the tool wrote it.
        format_: One of `FORMATS`.
        out: The run directory to make.

    Returns:
        The run; it is marked as not reproducible, and its warnings say where the numbers come from and what was
        omitted.

    Raises:
        InputError: If the files are damaged or hold something else, or `out` already exists.
    """
    from saeval._util import InputError, believable, refuse_pipes
    from saeval.exchange.imported import write_run

    refuse_pipes(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    with believable(path):
        return write_run(_module(format_, FORMATS).read(path, format_), format_, path.name, out)


def _module(format_: str, known: tuple[str, ...]) -> Any:
    from saeval._util import InputError, did_you_mean

    if format_ not in known:
        raise InputError(f"no format {format_!r}{did_you_mean(format_, known)}; there are {', '.join(known)}")
    name = {"jsonl": "saeval_tables", "parquet": "saeval_tables"}.get(format_, format_.replace("-", "_"))
    return import_module(f"saeval.exchange.{name}")
