"""Commands that keep a public board of many runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from saeval.cli.shared import JSON, print_json, say


@click.group()
def board() -> None:
    """Keep a public board: a folder with many runs' results, and a static site built from them."""


@board.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--to", type=click.Path(path_type=Path), default="board", show_default=True, help="Folder of the board.")
@JSON
def add(runs: Sequence[str], to: Path, as_json: bool) -> None:
    """Add the results of runs. RUN is a run directory, a folder of runs, or hf://datasets/OWNER/NAME."""
    from saeval.exchange import add_runs

    names = add_runs(to, runs)
    if as_json:
        print_json({"board": str(to), "runs": names})
        return
    for name in names:
        say(f"added     {name}")


@board.command()
@click.argument("folder", type=click.Path(path_type=Path), default="board")
@JSON
def build(folder: Path, as_json: bool) -> None:
    """Build the site from the runs of a board (default: the folder `board`)."""
    from saeval.exchange import build as build_site

    index = build_site(folder)
    if as_json:
        print_json({"site": str(index)})
    else:
        say(f"written   {index}")
