"""The command line: a thin layer that reads arguments, calls the library, and turns errors into exit codes.

Exit codes: 0 done; 1 done, but over `max_failed`, or the run gave up; 2 a mistake in the command, the spec or what
it names; 3 stopped at the cost limit (resumable); 130 interrupted (resumable).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import click

from saeval.exchange import FORMATS

if TYPE_CHECKING:
    from saeval.plugins import Registry
    from saeval.results import RunResult
    from saeval.task import Task

LIST_KINDS = ("tasks", "sources", "coders", "samplers", "explainers", "scorers", "llms", "runs")
SHOW_KINDS = ("task", "source", "coder", "sampler", "explainer", "scorer", "llm")

_TASK = click.option("--task", "-t", required=True, metavar="NAME_OR_FILE", help="A shipped task, or a spec file.")
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
    """Run a task, or what is missing of it, and print its leaderboard."""
    from saeval import runner
    from saeval.progress import display as make_display

    registry = _registry(without)
    built = _load(task, assignments, llms, registry)
    path = out or runner.default_path(built)
    result = runner.run_task(
        built, out=path, limit=limit, max_cost=max_cost, retry=retry, display=make_display(display)
    )
    if as_json:
        _print_json(result.model_dump(mode="json", by_alias=True))
    else:
        _show_run(result, path)
    from saeval.summary import over_max_failed

    if over_max_failed(built, result):
        click.echo(f"more than {built.run.max_failed:.0%} of a scorer's latents failed", err=True)
        sys.exit(1)


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
        built = _load(task, assignments, llms, _registry(without))
    except SpecError as error:
        if not as_json:
            raise
        _print_json({"valid": False, "problems": list(error.problems)})
        sys.exit(2)
    cells = [cell.name for cell in built.cells]
    if as_json:
        _print_json({"valid": True, "task": built.name, "version": built.version, "sha": built.sha, "cells": cells})
    else:
        click.echo(f"{built.name} {built.version}: valid; {len(cells)} cells: {'; '.join(cells)}")


# --- look ---------------------------------------------------------------------------------------------------


@main.command(name="list")
@click.argument("kind", type=click.Choice(LIST_KINDS), default="tasks")
@_WITHOUT
@_JSON
def list_(kind: str, without: Sequence[str], as_json: bool) -> None:
    """List tasks, plugins of a kind, or the runs under saeval-runs/."""
    if kind == "tasks":
        rows = _list_tasks(_registry(without))
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


def _list_tasks(registry: Registry) -> list[dict[str, str]]:
    import yaml

    from saeval.task_files import shipped_tasks

    rows = []
    for name, file in shipped_tasks(registry):
        try:
            head = yaml.safe_load(file.read_text(encoding="utf-8"))
            rows.append(
                {
                    "name": name,
                    "version": str(head.get("version", "")),
                    "description": " ".join(str(head.get("description", "")).split()),
                }
            )
        except (yaml.YAMLError, OSError, AttributeError) as error:
            rows.append({"name": name, "version": "", "description": f"cannot be read: {type(error).__name__}"})
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
@_WITHOUT
@_JSON
def plan(
    task: str, assignments: Sequence[str], llms: Sequence[str], limit: int | None, without: Sequence[str], as_json: bool
) -> None:
    """Tell what a run would take: calls, tokens, dollars, minutes and disk. Asks no model, and collects nothing."""
    from functools import partial

    from saeval.plan import ASSUMPTIONS
    from saeval.plan import plan as make_plan

    found = make_plan(_load(task, assignments, llms, _registry(without)), limit)
    if as_json:
        _print_json(found.as_json())
        return

    def row(step: str, latents: int | str, values: Any, model: str | None, cell: str) -> dict[str, str]:
        def shown(column: str, format_: str, unit: int = 1) -> str:
            value = values(column)
            return "unknown" if value is None else format(value / unit if unit > 1 else value, format_)

        return {
            "step": step, "latents": f"{latents}", "calls": shown("calls", ","), "in": shown("input_tokens", ","),
            "out": shown("output_tokens", ","), "usd": shown("usd", ".4f"), "minutes": shown("seconds", ".1f", 60),
            "MB": shown("bytes", ".1f", 10**6), "model": model or "", "cell": cell,
        }  # fmt: skip

    asking = [step for step in found.steps if step.model or step.step == "collect"]
    rows = [row(s.step, s.latents or "", partial(getattr, s), s.model, s.cell) for s in asking]
    rows.append(row("total", "", found.total, "", ""))
    _print_rows([{column: column for column in rows[0]}, *rows])
    for note in dict.fromkeys(step.note for step in found.steps if step.note):
        click.echo(_safe(f"\nnote: {note}"))
    click.echo("\n" + "\n".join(ASSUMPTIONS))


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@_JSON
def report(run_dir: Path, as_json: bool) -> None:
    """Write a finished run's reports again from its results, and print the leaderboard. Asks no model."""
    from saeval.report import write_reports
    from saeval.report.terminal import render
    from saeval.results import read

    result = read(run_dir)
    folder = run_dir if run_dir.is_dir() else run_dir.parent
    written = write_reports(result, folder / "report")
    if as_json:
        _print_json(result.model_dump(mode="json", by_alias=True))
        return
    render(result)
    click.echo("\n" + "\n".join(f"written   {file}" for file in written))


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
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
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
def leaderboard(
    runs: Sequence[Path], rank_by: str | None, group_by: str | None, keep: Sequence[str], match_l0: float | None,
    family: str, mixed: bool, format_: str, out: Path | None,
) -> None:  # fmt: skip
    """Join the cells of runs, wherever they lie, on one board."""
    from saeval.files import write_atomic
    from saeval.report import join

    if format_ == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE")
    joined = join.join(runs, rank_by=rank_by, keep=keep, mixed=mixed)
    content = join.written(joined, format_, group_by=group_by, match_l0=match_l0, family=family)
    if out is None:
        click.echo(content, nl=False)
    else:
        write_atomic(out, content)
        click.echo(_safe(f"written   {out}"))


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
