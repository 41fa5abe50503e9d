"""The command line: a thin layer that reads arguments, calls the library, and turns errors into exit codes.

Exit codes: 0 done; 1 done, but over `max_failed`, or the run gave up; 2 a mistake in the command, the spec or what
it names; 3 stopped at the cost limit (resumable); 130 interrupted (resumable).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import click

from saeval.exchange import FORMATS

if TYPE_CHECKING:
    from saeval.plan import Plan
    from saeval.plugins import Registry
    from saeval.results import RunResult
    from saeval.task import Task

LIST_KINDS = ("tasks", "sources", "coders", "samplers", "explainers", "scorers", "llms", "trackers", "runs")
SHOW_KINDS = ("task", "source", "coder", "sampler", "explainer", "scorer", "llm", "tracker")

_TASK = click.option(
    "--task", "-t", required=True, metavar="NAME_OR_FILE", help="A shipped task or group, or a spec file."
)
_SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key of the spec: --set latents.n=20."
)
_LLM = click.option("--llm", "llms", multiple=True, metavar="ROLE=MODEL", help="Put another model in a role.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_WITHOUT = click.option("--without", multiple=True, metavar="NAMESPACE", help="Leave a plugin package out.")


class _Cli(click.Group):
    """Turns saeval's errors into one clear sentence and an honest exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from saeval.errors import BudgetExceeded, InputError, PluginError, SaevalError, SpecError, StoreError

        try:
            return super().invoke(ctx)
        except SpecError as error:
            for problem in error.problems:
                click.echo(_safe(problem), err=True)
            n = len(error.problems)
            click.echo(f"{n} mistake{'s' if n > 1 else ''}; nothing was run", err=True)
            ctx.exit(2)
        except (InputError, PluginError, StoreError) as error:
            click.echo(f"error: {_safe(error)}", err=True)
            ctx.exit(2)
        except BudgetExceeded as error:
            click.echo(f"stopped: {_safe(error)}", err=True)
            ctx.exit(3)
        except SaevalError as error:
            click.echo(f"error: {_safe(error)}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to go on where it stopped", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            ctx.exit(0)


def _safe(text: object) -> str:
    """Drop control characters: messages may quote model or corpus text."""
    return "".join(c for c in str(text) if c.isprintable() or c == "\n")


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="saeval")
def main() -> None:
    """Explain the latents of sparse autoencoders in words, score the explanations, and compare SAEs.

    Begin with: saeval run --task quickstart
    """
    import signal

    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # stop as cleanly as on Ctrl-C


def _registry(without: Sequence[str] = ()) -> Registry:
    from saeval.plugins import Registry

    return Registry(disabled=without)


def _load(
    task: str, assignments: Sequence[str], llms: Sequence[str], registry: Registry, *, check: bool = True
) -> Task:
    from saeval.task import load_task

    return load_task(task, registry=registry, overrides=_overrides(assignments), llms=_roles(llms), check=check)


def _load_all(
    task: str, assignments: Sequence[str], llms: Sequence[str], registry: Registry
) -> tuple[str | None, list[Task]]:
    """Return a group's name and its tasks, or None and the task."""
    from saeval.task_files import find_group

    group = find_group(task, registry)
    members = group.tasks if group else [task]
    return group.group if group else None, [_load(member, assignments, llms, registry) for member in members]


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    from saeval.spec import parse_assignment

    return dict(parse_assignment(a) for a in assignments)


def _roles(llms: Sequence[str]) -> dict[str, str]:
    roles = {}
    for text in llms:
        role, equals, model = text.partition("=")
        if not (role and equals and model):
            raise click.BadParameter(
                f"{text!r}: write ROLE=MODEL, such as judge=openai/gpt-4o-mini", param_hint="--llm"
            )
        roles[role] = model
    return roles


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=1, default=str))  # in ASCII: what it quotes can do nothing to a terminal


# --- run ----------------------------------------------------------------------------------------------------


@main.command()
@_TASK
@_SET
@_LLM
@click.option("--limit", type=click.IntRange(min=1), help="Latents a cell at most; the result is marked partial.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory, exactly this one.")
@click.option("--max-cost", type=click.FloatRange(min=0), metavar="USD", help="Stop cleanly when this much is spent.")
@click.option("--retry", type=click.Choice(["failed"]), help="Do again what failed before; all else is kept.")
@click.option("--display", type=click.Choice(["rich", "plain", "json", "none"]), help="How progress is shown.")
@_WITHOUT
@_JSON
def run(
    task: str, assignments: Sequence[str], llms: Sequence[str], limit: int | None, out: Path | None,
    max_cost: float | None, retry: Any, display: Any, without: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Run a task or a group of tasks, or what is missing of it, and print its leaderboard."""
    from saeval import runner
    from saeval.progress import display as make_display
    from saeval.summary import over_max_failed

    group, tasks = _load_all(task, assignments, llms, _registry(without))
    results: dict[Path, RunResult] = {}
    over = []
    for built in tasks:
        path = (out / built.name if group else out) if out else runner.default_path(built)
        spent = sum(ledger.usd or 0.0 for result in results.values() for ledger in result.ledger)
        left = None if max_cost is None else max(0.0, max_cost - spent)
        result = runner.run_task(
            built, out=path, limit=limit, max_cost=left, retry=retry, display=make_display(display)
        )
        results[path] = result
        if not as_json:
            _show_run(result, path)
        if over_max_failed(built, result):
            over.append(f"{built.name}: more than {built.run.max_failed:.0%} of a scorer's latents failed")
    found = {result.task: result.model_dump(mode="json", by_alias=True) for result in results.values()}
    if as_json:
        _print_json({"group": group, "runs": found} if group else next(iter(found.values())))
    elif group:
        _show_group(group, results)
    if over:
        click.echo("\n".join(over), err=True)
        sys.exit(1)


def _show_group(group: str, results: Mapping[Path, RunResult]) -> None:
    """Print one board of all the group's cells, and what its runs say of their tasks' claims."""
    from saeval.report import join
    from saeval.report.terminal import finding_line

    click.echo(f"\n=== {group}: {len(results)} tasks ===\n")
    ranked = [result.rank_by for result in results.values()]
    board = join.join(list(results), rank_by=max(ranked, key=ranked.count), mixed=True)
    click.echo(join.written(board, "text"), nl=False)
    for result in results.values():
        if result.findings:
            click.echo(_safe(f"\n{result.task}"))
            click.echo(_safe("\n".join(finding_line(found) for found in result.findings)))


def _show_run(result: RunResult, path: Path) -> None:
    from saeval.report.terminal import render

    render(result)
    click.echo(f"\nresults   {path}/results.json")
    click.echo(f"report    {path}/report/index.html  report.md  leaderboard.csv  leaderboard.parquet")


@main.command()
@_TASK
@_SET
@_LLM
@_WITHOUT
@_JSON
def validate(task: str, assignments: Sequence[str], llms: Sequence[str], without: Sequence[str], as_json: bool) -> None:
    """Check a task spec, its plugins, options and files, without loading any model."""
    from saeval.errors import SpecError

    try:
        group, tasks = _load_all(task, assignments, llms, _registry(without))
    except SpecError as error:
        if not as_json:
            raise
        _print_json({"valid": False, "problems": list(error.problems)})
        sys.exit(2)
    rows = []
    for built in tasks:
        cells = [cell.name for cell in built.cells]
        rows.append({"valid": True, "task": built.name, "version": built.version, "sha": built.sha, "cells": cells})
        if not as_json:
            click.echo(f"{built.name} {built.version}: valid; {len(cells)} cells: {'; '.join(cells)}")
    if as_json:
        _print_json({"valid": True, "group": group, "tasks": rows} if group else rows[0])


# --- look ---------------------------------------------------------------------------------------------------


@main.command(name="list")
@click.argument("kind", type=click.Choice(LIST_KINDS), default="tasks")
@click.option("--tag", "wanted", multiple=True, metavar="TAG", help="Tasks that have it; several narrow the list.")
@_WITHOUT
@_JSON
def list_(kind: str, wanted: Sequence[str], without: Sequence[str], as_json: bool) -> None:
    """List tasks, plugins of a kind, or the runs under saeval-runs/."""
    if wanted and kind != "tasks":
        raise click.UsageError("--tag goes with tasks")
    rows: list[dict[str, Any]]
    if kind == "tasks":
        rows = [row for row in _list_tasks(_registry(without)) if set(wanted) <= set(row["tags"])]
        if not as_json:
            rows = [{**row, "tags": " ".join(row["tags"])} for row in rows]
    elif kind == "runs":
        rows = _list_runs(Path("saeval-runs"))
    else:
        rows = [
            {
                "name": _short(loaded.id),
                "description": _first_line(loaded.cls),
                "package": f"{loaded.distribution} {loaded.version}",
            }
            for loaded in _registry(without).names(kind.removesuffix("s"))
        ]
    if as_json:
        _print_json(rows)
    else:
        _print_rows(rows)


def _short(plugin_id: str) -> str:
    return plugin_id.removeprefix("saeval/")


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def _list_tasks(registry: Registry) -> list[dict[str, Any]]:
    import yaml

    from saeval.task_files import shipped_tasks

    rows = []
    for name, file in shipped_tasks(registry):
        try:
            head = yaml.safe_load(file.read_text(encoding="utf-8"))
            rows.append(
                {
                    "name": name,
                    "version": "group" if "group" in head else str(head.get("version", "")),
                    "tags": [str(tag) for tag in head.get("tags") or []],
                    "description": " ".join(str(head.get("description", "")).split()),
                }
            )
        except (yaml.YAMLError, OSError, AttributeError) as error:
            rows.append(
                {"name": name, "version": "", "tags": [], "description": f"cannot be read: {type(error).__name__}"}
            )
    return rows


def _list_runs(folder: Path) -> list[dict[str, str]]:
    import json

    rows = []
    for file in sorted(folder.glob("*/run.json")):
        try:
            head = json.loads(file.read_text(encoding="utf-8"))
            rows.append({"name": file.parent.name, "status": str(head["status"]), "task": str(head["task"])})
        except (ValueError, KeyError, OSError):
            rows.append({"name": file.parent.name, "status": "unreadable", "task": ""})
    return rows


def _print_rows(rows: Sequence[dict[str, str]]) -> None:
    if not rows:
        click.echo("none")
        return
    widths = [max(len(r[k]) for r in rows) for k in rows[0]]
    for row in rows:
        click.echo(_safe("  ".join(v.ljust(w) for v, w in zip(row.values(), widths, strict=True)).rstrip()))


@main.command()
@click.argument("kind", type=click.Choice(SHOW_KINDS))
@click.argument("name")
@_SET
@_LLM
@_WITHOUT
@_JSON
def show(
    kind: str, name: str, assignments: Sequence[str], llms: Sequence[str], without: Sequence[str], as_json: bool
) -> None:
    """Show a task's resolved spec, or a plugin's options."""
    registry = _registry(without)
    if kind == "task":
        import yaml

        from saeval.spec import plain

        built = _load(name, assignments, llms, registry, check=False)
        data = plain(built.resolved)
        if as_json:
            _print_json(data)
        else:
            click.echo(f"# {built.name} {built.version}  sha {built.sha[:12]}  {len(built.cells)} cells")
            click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
        return
    loaded = registry.get(kind, name)
    schema = loaded.cls.model_json_schema()
    if as_json:
        _print_json({"name": loaded.id, "version": loaded.version, "package": loaded.distribution, "schema": schema})
        return
    click.echo(
        f"{kind} {loaded.id}  ({loaded.distribution} {loaded.version})\n\n{(loaded.cls.__doc__ or '').strip()}\n\noptions:"
    )
    for option, field in loaded.cls.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        click.echo(f"  {option}: {_type_name(field.annotation)}  ({default})\n      {field.description or ''}")


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return " | ".join(map(_type_name, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


@main.group(invoke_without_command=True)
@_WITHOUT
@_JSON
@click.pass_context
def plugins(ctx: click.Context, without: Sequence[str], as_json: bool) -> None:
    """List installed plugin packages, what they add, and why a broken one is left out."""
    from dataclasses import asdict

    if ctx.invoked_subcommand:
        return
    rows = _registry(without).plugins()
    if as_json:
        _print_json([asdict(row) for row in rows])
        return
    for row in rows:
        click.echo(
            _safe(
                f"{row.namespace:<12} {row.distribution} {row.version}  {row.status}"
                + (f": {row.reason}" if row.reason else "")
            )
        )
        for kind, names in row.provides.items():
            if names:
                click.echo(f"             {kind}s: {', '.join(names)}")


@plugins.command()
@click.argument("package", metavar="PKG")
@_JSON
def check(package: str, as_json: bool) -> None:
    """Run the contracts of saeval.testing on all that a package adds; exit code 1 if anything breaks one."""
    from dataclasses import asdict

    from saeval.plugin_checks import check_package

    rows = []
    for row in check_package(_registry(), package):
        rows.append(asdict(row))
        if not as_json:
            click.echo(_safe(f"{row.status:<10} {row.kind} {row.name}" + (f": {row.reason}" if row.reason else "")))
    if as_json:
        _print_json(rows)
    if any(row["status"] == "failed" for row in rows):
        sys.exit(1)


@main.command()
@click.argument("kind", type=click.Choice([kind for kind in SHOW_KINDS if kind != "task"]))
@click.argument("name")
@click.option("--file", "lone", is_flag=True, help="A lone file for `use: ./NAME.py:Class`, instead of a package.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to put it in; this one by default.")
def new(kind: str, name: str, lone: bool, out: Path | None) -> None:
    """Begin a plugin: a package saeval-NAME that installs, keeps its contract and runs, or a lone file."""
    from saeval import scaffold

    made = scaffold.new(kind, name, lone=lone, out=out)
    click.echo("\n".join(f"made      {_safe(file)}" for file in made))
    if lone:
        click.echo(f'in a spec beside it:  use: "./{name}.py:{scaffold.class_name(name)}"')
    else:
        click.echo(_safe(f"next:  pip install -e {made[0].parent}  and read its README.md"))


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="File to write; printed when left out.")
@_WITHOUT
def schema(out: Path | None, without: Sequence[str]) -> None:
    """Give editors the JSON Schema of task specs, with the options of all installed plugins."""
    import json

    from saeval.schema import task_schema

    text = json.dumps(task_schema(_registry(without)), indent=1, ensure_ascii=False)
    if out is None:
        click.echo(text)
        return
    out.write_text(text + "\n", encoding="utf-8")
    click.echo(_safe(f"written   {out}; begin a spec with `# yaml-language-server: $schema={out}`"))


@main.command()
@_TASK
@_SET
@_LLM
@click.option("--latents", "n", default=1, type=click.IntRange(min=1), help="Latents to show, of the first cell.")
@_WITHOUT
@_JSON
def preview(
    task: str, assignments: Sequence[str], llms: Sequence[str], n: int, without: Sequence[str], as_json: bool
) -> None:
    """Show the first prompts exactly as they would be sent. Collects activations if need be; asks no model."""
    from saeval.preview import preview as make_preview
    from saeval.progress import display

    prompts = make_preview(_load(task, assignments, llms, _registry(without)), n, display())
    if as_json:
        _print_json(prompts)
        return
    for prompt in prompts:
        click.echo(_safe(f"=== {prompt['step']}  latent {prompt['latent']}  role {prompt['role']}"))
        click.echo(_safe(prompt["text"]))
        click.echo()


@main.command()
@_TASK
@_SET
@_LLM
@click.option("--limit", type=click.IntRange(min=1), help="Latents a cell at most.")
@click.option("--like", type=click.Path(path_type=Path), metavar="RUN", help="Take the speed from this run.")
@_WITHOUT
@_JSON
def plan(
    task: str, assignments: Sequence[str], llms: Sequence[str], limit: int | None, like: Path | None,
    without: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Tell what a run would take: calls, tokens, dollars, minutes and disk. Asks no model, and collects nothing."""
    from saeval.plan import ASSUMPTIONS
    from saeval.plan import plan as make_plan
    from saeval.speed import speed

    group, tasks = _load_all(task, assignments, llms, _registry(without))
    measured = speed(like) if like else None
    plans = {built.name: make_plan(built, limit, measured) for built in tasks}
    if as_json:
        found = {name: of_task.as_json() for name, of_task in plans.items()}
        _print_json({"group": group, "plans": found} if group else next(iter(found.values())))
        return
    for name, of_task in plans.items():
        if group:
            click.echo(_safe(f"=== {name}"))
        _show_plan(of_task)
    click.echo("\n" + "\n".join(ASSUMPTIONS))


def _show_plan(plan: Plan) -> None:
    from functools import partial

    def row(step: str, latents: int | str, values: Any, measured: bool, model: str | None, cell: str) -> dict[str, str]:
        def shown(column: str, format_: str, unit: int = 1) -> str:
            value = values(column)
            return "unknown" if value is None else format(value / unit if unit > 1 else value, format_)

        return {
            "step": step, "latents": f"{latents}", "calls": shown("calls", ","), "in": shown("input_tokens", ","),
            "out": shown("output_tokens", ","), "usd": shown("usd", ".4f"),
            "minutes": "~" * (not measured) + shown("seconds", ".1f", 60), "MB": shown("bytes", ".1f", 10**6), "model": model or "", "cell": cell,
        }  # fmt: skip

    asking = [step for step in plan.steps if step.model or step.step in ("collect", "report")]
    rows = [row(s.step, s.latents or "", partial(getattr, s), s.measured, s.model, s.cell) for s in asking]
    rows.append(row("total", "", plan.total, all(s.measured for s in asking), "", ""))
    _print_rows([{column: column for column in rows[0]}, *rows])
    for note in dict.fromkeys(step.note for step in plan.steps if step.note):
        click.echo(_safe(f"\nnote: {note}"))


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--plots", type=click.Path(path_type=Path), metavar="DIR", help="Write the plots there, as files for papers."
)
@click.option(
    "--format", "-f", "format_", type=click.Choice(("svg", "pdf", "png")), default="svg", help="Of the plots."
)
@_JSON
def report(run_dir: Path, plots: Path | None, format_: Any, as_json: bool) -> None:
    """Write a finished run's reports again from its results, and print the leaderboard. Asks no model."""
    from saeval.report import write_reports
    from saeval.report.html import write_plots
    from saeval.report.terminal import render
    from saeval.results import read

    result = read(run_dir)
    folder = run_dir if run_dir.is_dir() else run_dir.parent
    written = write_reports(result, folder / "report")
    if plots is not None:
        written += write_plots(result, folder, plots, format_)
    if as_json:
        _print_json(result.model_dump(mode="json", by_alias=True))
        return
    render(result)
    click.echo("\n" + "\n".join(f"written   {file}" for file in written))


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--serve", is_flag=True, help="Serve it on 127.0.0.1, to whoever has the address that is printed.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to serve on; a free one when left out.")
def view(run_dir: Path, serve: bool, port: int) -> None:
    """Open a run's HTML report in the browser, or serve it until Ctrl-C."""
    import webbrowser

    from saeval import view as viewing

    if not serve:
        index = viewing.page(run_dir).absolute()
        click.echo(_safe(f"report    {index}"))
        webbrowser.open(index.as_uri())
        return
    with viewing.ReportServer(run_dir, port) as server:
        click.echo(_safe(f"serving   {server.url}\nCtrl-C ends it; whoever has this address can read the report"))
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@main.command()
@click.option("--store", type=click.Path(path_type=Path), help="Read an activation store and compare its checksums.")
@_JSON
def doctor(store: Path | None, as_json: bool) -> None:
    """Look at packages, device, cache, plugins and keys (by name only), and say what is wrong. Sends nothing."""
    from dataclasses import asdict

    from saeval.doctor import examine

    found = list(examine(store))
    if as_json:
        _print_json([asdict(finding) for finding in found])
    else:
        _print_rows([{"status": f.status, "what": f.what, "text": f.text} for f in found])
    if any(finding.status == "wrong" for finding in found):
        sys.exit(1)


# --- compare ------------------------------------------------------------------------------------------------


@main.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--metric", "metrics", multiple=True, metavar="SCORER.METRIC", help="This one; headlines when left out.")
@click.option("--seed", default=0, help="Of resampling.")
@_JSON
def compare(a: str, b: str, metrics: Sequence[str], seed: int, as_json: bool) -> None:
    """Compare two cells, each a run directory or RUN:CELL; paired where both are about the same latents."""
    from saeval.report import compare as comparing

    found = comparing.compare(a, b, metrics, seed=seed)
    if as_json:
        _print_json(found.as_json())
    else:
        click.echo(_safe(comparing.text(found)))


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--rank-by", metavar="SCORER.METRIC", help="Column that ranks; the runs' own when left out.")
@click.option("--group-by", metavar="AXIS", help="A board for each of its values, ranked apart.")
@click.option(
    "--filter", "keep", multiple=True, metavar="AXIS=VALUE", help="Cells that have it; several are either-or."
)
@click.option(
    "--match-l0", type=click.FloatRange(min=0, min_open=True), metavar="L0", help="Families of coders at one L0."
)
@click.option("--family", default="architecture", metavar="AXIS", help="What --match-l0 calls a family.")
@click.option("--mixed", is_flag=True, help="Join runs whose numbers cannot be compared, marked.")
@click.option(
    "--format", "-f", "format_", type=click.Choice(("text", "markdown", "latex", "csv", "json", "parquet")),
    default="text", help="How it is written.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="File to write; printed when left out.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page to filter, group, rank and plot."
)
def leaderboard(
    runs: Sequence[str], rank_by: str | None, group_by: str | None, keep: Sequence[str], match_l0: float | None,
    family: str, mixed: bool, format_: str, out: Path | None, html: Path | None,
) -> None:  # fmt: skip
    """Join the cells of runs, in directories or at hf://datasets/OWNER/NAME, on one board."""
    from tempfile import TemporaryDirectory

    from saeval.files import write_atomic
    from saeval.report import join

    if format_ == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE")
    if html is not None and match_l0 is not None:
        raise click.UsageError("--html shows cells, so --match-l0 goes with the other formats only")
    with TemporaryDirectory() as folder:
        places = [_at_hand(run, Path(folder) / str(k)) for k, run in enumerate(runs)]
        joined = join.join(places, rank_by=rank_by, keep=keep, mixed=mixed)
    if html is not None:
        from saeval.report.html.joined import joined_page

        write_atomic(html, joined_page(joined, group_by))
        click.echo(_safe(f"written   {html}"))
        return
    content = join.written(joined, format_, group_by=group_by, match_l0=match_l0, family=family)
    if out is None:
        click.echo(content, nl=False)
    else:
        write_atomic(out, content)
        click.echo(_safe(f"written   {out}"))


def _at_hand(run: str, folder: Path) -> Path:
    """Return where a run lies, fetched to the folder if it is on the hub."""
    if not run.startswith("hf://"):
        return Path(run)
    from saeval.exchange.hub import pull as fetch

    fetch(run, folder)
    return folder


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN[:CELL]...")
@click.option(
    "--by", multiple=True, type=click.Choice(("explanations", "decoder", "encoder")), help="What to compare by."
)
@click.option("--model", metavar="NAME", help="Sentence-transformers model that embeds explanations.")
@click.option("--seed", default=0, help="Of the baselines.")
@_JSON
def similarity(runs: Sequence[str], by: Sequence[Any], model: str | None, seed: int, as_json: bool) -> None:
    """Match the latents of coders by their explanations or directions, beside random and shuffled baselines."""
    from dataclasses import asdict

    from saeval import similarity as matching

    found, left_out = matching.similarities(runs, by=by, model=model or matching.EMBEDDER, seed=seed)
    if as_json:
        _print_json({"similarities": [asdict(s) for s in found], "left_out": left_out})
        return
    click.echo(_safe(matching.text(found)))
    for sentence in left_out:
        click.echo(_safe(f"left out: {sentence}"), err=True)


# --- exchange -----------------------------------------------------------------------------------------------

_FORMAT = click.option("--format", "-f", "format_", required=True, type=click.Choice(FORMATS), help="Whose format.")
_OUT = click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Directory to make, exactly this one."
)


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@_FORMAT
@_OUT
@click.option("--cell", help="This cell only; all when left out.")
@click.option("--model", help="What the format should call the subject model.")
@click.option("--source", help="What the format should call the place in the model, instead of the hookpoint.")
@_JSON
def export(
    run_dir: Path, format_: str, out: Path, cell: str | None, model: str | None, source: str | None, as_json: bool
) -> None:
    """Write a run in another tool's format. Nothing is sent anywhere; what the format cannot hold is said."""
    from saeval.exchange import export_run

    lost = export_run(run_dir, format_, out, cell=cell, model=model, source=source)
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    if as_json:
        _print_json({"format": format_, "out": str(out), "files": files, "warnings": lost})
        return
    for sentence in lost:
        click.echo(_safe(sentence), err=True)
    click.echo(_safe(f"written   {out}  ({len(files)} file{'' if len(files) == 1 else 's'})"))


@main.command(name="import")
@click.argument("path", type=click.Path(path_type=Path))
@_FORMAT
@_OUT
@_JSON
def import_(path: Path, format_: str, out: Path, as_json: bool) -> None:
    """Make a run directory from another tool's files, which `saeval report` shows and `precomputed` reads."""
    from saeval.exchange import import_run

    result = import_run(path, format_, out)
    if as_json:
        _print_json(result.model_dump(mode="json", by_alias=True))
        return
    for warning in result.warnings:
        click.echo(_safe(warning), err=True)
    explained = sum(cell.counts["explained"] for cell in result.cells)
    click.echo(_safe(f"imported  {out}  ({len(result.cells)} cells, {explained} explanations)"))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("dest")
@click.option("--public", is_flag=True, help="Open a repository that is made to everyone.")
@_JSON
def push(path: Path, dest: str, public: bool, as_json: bool) -> None:
    """Send a run or an activation store to a directory or to hf://datasets/OWNER/NAME (token in HF_TOKEN)."""
    from saeval.exchange.hub import push as send

    place = send(path, dest, public=public)
    if as_json:
        _print_json({"dest": place})
    else:
        click.echo(_safe(f"sent      {place}"))


@main.command()
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@_JSON
def pull(src: str, out: Path, as_json: bool) -> None:
    """Fetch what `push` sent, from a directory or from hf://datasets/OWNER/NAME[@REVISION]; every file is verified."""
    from saeval.exchange.hub import pull as fetch

    kind = fetch(src, out)
    if as_json:
        _print_json({"kind": kind, "out": str(out)})
    else:
        click.echo(_safe(f"fetched   {out}  ({kind})"))
