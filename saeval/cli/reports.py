"""Commands that read finished runs: reports, comparisons, leaderboards."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saeval.cli.shared import JSON, NumberRange, print_json, say

if TYPE_CHECKING:
    from saeval.report import LocalServer


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Also write the plots into this folder.")
@click.option(
    "--format", "-f", "format_", type=click.Choice(("svg", "pdf", "png")), default="svg", help="Format of the plots."
)
@JSON
def report(run_dir: Path, plots: Path | None, format_: Any, as_json: bool) -> None:
    """Write a run's reports again from its results, and print the leaderboard. Asks no model."""
    from saeval.records import read_result
    from saeval.report import render, write_plots, write_reports

    result = read_result(run_dir)
    folder = run_dir if run_dir.is_dir() else run_dir.parent
    written = write_reports(result, folder / "report")
    if plots is not None:
        written += write_plots(result, folder, plots, format_)
    if as_json:
        print_json(result.model_dump(mode="json", by_alias=True))
        return
    render(result)
    click.echo("\n" + "\n".join(f"written   {file}" for file in written))


@click.command()
@click.argument("run_dir", required=False, type=click.Path(path_type=Path))
@click.option("--serve", is_flag=True, help="Serve the report on 127.0.0.1 under a secret address.")
@click.option(
    "--live", is_flag=True, help="With --serve: load the subject model to show activations on text that you type."
)
@click.option("--follow", is_flag=True, help="Show progress, spending, failures and scores of a run in progress.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port for --serve and --follow; default: a free one."
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report as one file for sharing: a page (.html) or a packed folder (.zip).",
)
def view(run_dir: Path | None, serve: bool, live: bool, follow: bool, port: int, bundle: Path | None) -> None:
    """Open a run's HTML report in the browser, or serve it until Ctrl-C.

    RUN_DIR is a run directory, or a folder whose latest run is opened (default: saeval-runs).
    """
    import webbrowser

    from saeval.report import FollowServer, LiveServer, view as viewing
    from saeval.results import RUNS, last_run

    modes = [name for name, on in {"--bundle": bundle, "--serve": serve, "--follow": follow}.items() if on]
    if len(modes) > 1:
        raise click.UsageError(f"use either {modes[0]} or {modes[1]}")
    if port and not (serve or follow):
        raise click.UsageError("--port needs --serve or --follow")
    if live and not serve:
        raise click.UsageError("--live needs --serve")
    if run_dir is not None and run_dir.name == "results.json":
        run_dir = run_dir.parent
    if run_dir is None or not (run_dir / "report").exists():
        run_dir = last_run(run_dir or RUNS)
    if bundle is not None:
        viewing.bundle(run_dir, bundle)
        say(f"written   {bundle}" + "  (unpack it and open index.html)" * (bundle.suffix == ".zip"))
    elif follow:
        with FollowServer(run_dir, port) as server:
            _serve(server, "following", opens=True)
    elif live:
        from saeval._run import TypedText

        say("loading the subject model …")
        typed = TypedText(run_dir)
        with LiveServer(run_dir, port, typed.cells, typed.read) as server:
            _serve(server, "serving")
    elif serve:
        with viewing.ReportServer(run_dir, port) as server:
            _serve(server, "serving")
    else:
        index = viewing.page(run_dir).absolute()
        say(f"report    {index}")
        webbrowser.open(index.as_uri())


def _serve(server: LocalServer, doing: str, *, opens: bool = False) -> None:
    """Serve until Ctrl-C."""
    import webbrowser

    say(f"{doing:9} {server.url}\nCtrl-C stops it; anyone on this machine who knows the address can read the report")
    if opens:
        webbrowser.open(server.url)
    with suppress(KeyboardInterrupt):
        server.serve_forever()


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="SCORER.METRIC",
    help="Metric to compare (repeatable); default: each scorer's headline.",
)
@click.option("--paired", is_flag=True, help="Pair latents by number, as in checkpoints of one SAE.")
@click.option("--seed", default=0, help="Seed of resampling.")
@JSON
def compare(a: str, b: str, metrics: Sequence[str], paired: bool, seed: int, as_json: bool) -> None:
    """Compare two cells, each a run directory or RUN:CELL. Paired if both have the same latents."""
    from saeval._compare import pairwise as comparing

    found = comparing.compare(a, b, metrics, paired=paired, seed=seed)
    if as_json:
        print_json(found.as_json())
    else:
        say(comparing.text(found))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--rank-by", metavar="SCORER.METRIC", help="Column to rank by; default: the runs' own.")
@click.option("--group-by", metavar="AXIS", help="One board per value, each with its own ranks.")
@click.option(
    "--filter", "keep", multiple=True, metavar="AXIS=VALUE", help="Only these cells (repeatable: any may match)."
)
@click.option("--match-l0", type=NumberRange(min=0, min_open=True), metavar="L0", help="Compare families at one L0.")
@click.option("--family", default="architecture", metavar="AXIS", help="Axis that defines the families of --match-l0.")
@click.option("--weights", type=click.Choice(("firing_rate", "energy")), help="Also show means weighted by this.")
@click.option("--mixed", is_flag=True, help="Join runs that are not comparable, and mark the board.")
@click.option(
    "--format",
    "-f",
    "format_",
    type=click.Choice(("text", "markdown", "latex", "csv", "json", "parquet")),
    default="text",
    help="Output format.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: standard output.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write an interactive HTML page.")
def leaderboard(
    runs: Sequence[str],
    rank_by: str | None,
    group_by: str | None,
    keep: Sequence[str],
    match_l0: float | None,
    family: str,
    weights: Any,
    mixed: bool,
    format_: str,
    out: Path | None,
    html: Path | None,
) -> None:
    """Join the cells of several runs on one board.

    RUN is a run directory, a folder of runs, or hf://datasets/OWNER/NAME.
    """
    from shutil import get_terminal_size
    from tempfile import TemporaryDirectory

    from saeval._compare import join
    from saeval._util import WIDTH, write_atomic
    from saeval.report import joined_page, written

    if format_ == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE")
    if html is not None:
        _refuse_beside_html(
            {"--match-l0": match_l0 is not None, "--format": format_ != "text", "--out": out is not None}
        )
    with TemporaryDirectory() as folder:
        places = [place for k, run in enumerate(runs) for place in _at_hand(run, Path(folder) / str(k))]
        joined = join.join(places, rank_by=rank_by, keep=keep, mixed=mixed, weights=weights)
    if html is not None:
        write_atomic(html, joined_page(joined, group_by, html))
        say(f"written   {html}")
        return
    width = get_terminal_size().columns if out is None and sys.stdout.isatty() else WIDTH
    content = written(joined, format_, group_by=group_by, match_l0=match_l0, family=family, width=width)
    if out is None:
        click.echo(content, nl=False)
    else:
        write_atomic(out, content)
        say(f"written   {out}")


def _refuse_beside_html(given: Mapping[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise click.UsageError(f"use either --html or {option}; --html writes a page of all cells")


def _at_hand(run: str, folder: Path) -> list[Path]:
    """Return run directories: the given one, those in a given folder, or one fetched from the hub into `folder`."""
    from saeval.results import finished_runs

    if not run.startswith("hf://"):
        return finished_runs(Path(run))
    from saeval.exchange import pull as fetch

    fetch(run, folder)
    return [folder]


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN[:CELL]...")
@click.option("--by", multiple=True, type=click.Choice(("explanations", "decoder", "encoder")), help="What to compare.")
@click.option("--model", metavar="NAME", help="Sentence-transformers model that embeds explanations.")
@click.option("--seed", default=0, help="Seed of the baselines.")
@JSON
def similarity(runs: Sequence[str], by: Sequence[Any], model: str | None, seed: int, as_json: bool) -> None:
    """Match the latents of coders by explanations or directions, with random and shuffled baselines."""
    from dataclasses import asdict

    from saeval._compare import latent_matching as matching

    found, skipped = matching.similarities(runs, by=by, model=model or matching.EMBEDDER, seed=seed)
    if as_json:
        print_json({"similarities": [asdict(s) for s in found], "left_out": skipped})
        return
    say(matching.text(found))
    for reason in skipped:
        say(f"skipped: {reason}", err=True)
