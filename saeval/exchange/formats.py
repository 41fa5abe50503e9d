"""Exports and imports runs in other tools' formats, using files only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from saeval.records import RunResult

FORMATS = ("delphi", "neuronpedia", "saebench", "auto-interp-explanations", "jsonl", "parquet")
"""Formats for export and import."""
EXPORTS = (*FORMATS, "every-eval-ever", "hf-eval-results")
"""Formats for export."""
_MARKED = ("jsonl", "parquet", *EXPORTS[len(FORMATS) :])  # formats that mark synthetic runs and baselines


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
        out: A directory to create, with one file or folder per cell.
        cell: The cell to write; default: all.
        model: Name of the subject model in the format; default: its name in the run.
        source: Name of the hookpoint in the format; default: its name in the run.
        dataset: Dataset repository of the benchmark on the Hub, `owner/name`; required by `hf-eval-results`.

    Returns:
        One sentence for each thing that the format cannot represent.

    Raises:
        InputError: If the run cannot be read, has nothing that the format can represent, or `out` already exists.
    """
    from saeval._util import new_folder, report_bad_values
    from saeval.results import open_run

    result, cells = open_run(run, cell)
    names = {"model": model, "source": source, "dataset": dataset}
    with new_folder(out) as folder, report_bad_values(run):
        given = {name: value for name, value in names.items() if value}
        lost: list[str] = _module(format_, EXPORTS).write(result, cells, folder, given)
    if format_ not in _MARKED:
        if result.synthetic:
            lost.insert(
                0, "A part of this run is synthetic, but the files are not marked; mark them when you share them."
            )
        lost += [f"{c.name}: is a baseline, but the files are not marked." for c in cells if c.result.baseline]
    return list(dict.fromkeys(lost))


def import_run(path: Path, format_: str, out: Path) -> RunResult:
    """Create a run directory from another tool's files, for reports and for scoring its explanations again.

    Args:
        path: The file or folder that the tool wrote.
        format_: One of `FORMATS`.
        out: The run directory to create.

    Returns:
        The run. It is marked as not reproducible; its warnings name the tool and what was omitted.

    Raises:
        InputError: If the files are damaged or have another format, or `out` already exists.
    """
    from saeval._util import InputError, refuse_pipes, report_bad_values
    from saeval.exchange.imported import write_run

    refuse_pipes(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    with report_bad_values(path):
        return write_run(_module(format_, FORMATS).read(path), format_, path.name, out)


def _module(format_: str, known: tuple[str, ...]) -> Any:
    """Return the module of a format, whose `write` exports and whose `read` imports."""
    from saeval._util import InputError, did_you_mean

    if format_ not in known:
        raise InputError(f"unknown format {format_!r}{did_you_mean(format_, known)}; known: {', '.join(known)}")
    return import_module(f"saeval.exchange.{format_.replace('-', '_')}")
