"""Commands that export, import, send and fetch results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from saeval.cli.shared import JSON, print_json, say
from saeval.exchange import EXPORTS, FORMATS


def _format(known: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for a format."""
    return click.option(
        "--format", "-f", "format_", required=True, type=click.Choice(known), help="Format of the files."
    )


_OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to create.")


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@_format(EXPORTS)
@_OUT
@click.option("--cell", help="Only this cell; default: all.")
@click.option("--model", help="Name of the subject model in the format.")
@click.option("--source", help="Name of the hookpoint in the format.")
@click.option("--dataset", metavar="OWNER/NAME", help="Benchmark's dataset on the Hub, for hf-eval-results.")
@JSON
def export(
    run_dir: Path,
    format_: str,
    out: Path,
    cell: str | None,
    model: str | None,
    source: str | None,
    dataset: str | None,
    as_json: bool,
) -> None:
    """Write a run in another tool's format, and report what the format cannot represent. Sends nothing."""
    from saeval._util import counted
    from saeval.exchange import export_run

    lost = export_run(run_dir, format_, out, cell=cell, model=model, source=source, dataset=dataset)
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    if as_json:
        print_json({"format": format_, "out": str(out), "files": files, "warnings": lost})
        return
    for sentence in lost:
        say((sentence), err=True)
    say(f"written   {out}  ({counted(len(files), 'file')})")


@click.command(name="import")
@click.argument("path", type=click.Path(path_type=Path))
@_format(FORMATS)
@_OUT
@JSON
def import_(path: Path, format_: str, out: Path, as_json: bool) -> None:
    """Create a run directory from another tool's files, for `saeval report` and the `precomputed` explainer."""
    from saeval._util import counted
    from saeval.exchange import import_run

    result = import_run(path, format_, out)
    if as_json:
        print_json(result.model_dump(mode="json", by_alias=True))
        return
    for warning in result.warnings:
        say((warning), err=True)
    explained = sum(cell.counts["explained"] for cell in result.cells)
    say(f"imported  {out}  ({counted(len(result.cells), 'cell')}, {counted(explained, 'explanation')})")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("dest")
@click.option("--public", is_flag=True, help="Make a new repository public.")
@JSON
def push(path: Path, dest: str, public: bool, as_json: bool) -> None:
    """Send a run or an activation store to a directory or to hf://datasets/OWNER/NAME (token in HF_TOKEN)."""
    from saeval.exchange import push as send

    place = send(path, dest, public=public)
    if as_json:
        print_json({"dest": place})
    else:
        say(f"sent      {place}")


@click.command()
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@JSON
def pull(src: str, out: Path, as_json: bool) -> None:
    """Fetch a pushed run or store from a directory or hf://datasets/OWNER/NAME[@REVISION], and verify every file."""
    from saeval.exchange import pull as fetch

    kind = fetch(src, out)
    if as_json:
        print_json({"kind": kind, "out": str(out)})
    else:
        say(f"fetched   {out}  ({kind})")
