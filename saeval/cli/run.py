"""Commands that run, validate, preview and plan a task."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saeval.cli.shared import (
    ALLOW,
    JSON,
    LLMS,
    SET,
    TASK,
    TASK_OR_FLAGS,
    WITHOUT,
    NumberRange,
    load,
    load_all,
    open_registry,
    print_json,
    say,
)

if TYPE_CHECKING:
    from saeval._run.plan import Plan
    from saeval.records import RunResult
    from saeval.task import Task


@click.command()
@TASK_OR_FLAGS
@SET
@LLMS
@ALLOW
@click.option("--limit", type=click.IntRange(min=1), help="Maximum latents per cell; marks the result as partial.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; default: saeval-runs/TASK-HASH.")
@click.option(
    "--max-cost", type=NumberRange(min=0), metavar="USD", help="Maximum cost; stops cleanly and can be resumed."
)
@click.option("--seeds", type=click.IntRange(min=1), metavar="K", help="Run with K seeds and pool the results.")
@click.option(
    "--until", type=click.Choice(["collect"]), help="Stop after this stage; run the same command without it to resume."
)
@click.option("--retry", type=click.Choice(["failed"]), help="Rerun failed latents; keep everything else.")
@click.option("--unpriced", is_flag=True, help="Run even if --max-cost cannot count a model of unknown price.")
@click.option("--allow-model-change", is_flag=True, help="Resume even if the served model has changed.")
@click.option("--display", type=click.Choice(["rich", "plain", "json", "none"]), help="Progress display.")
@WITHOUT
@JSON
def run(
    task: Any,
    assignments: Sequence[str],
    llms: Sequence[str],
    limit: int | None,
    out: Path | None,
    max_cost: float | None,
    seeds: int | None,
    until: Any,
    retry: Any,
    unpriced: bool,
    allow_model_change: bool,
    display: Any,
    without: Sequence[str],
    as_json: bool,
) -> None:
    """Run a task (or group), resuming unfinished work, and print the leaderboard."""
    from saeval._run import SharedLimit, over_limits, runner
    from saeval._util import display as make_display

    if seeds is not None:
        assignments = [*assignments, f"run.seeds={seeds}"]
    group, tasks = load_all(task, assignments, llms, open_registry(without))
    paths = [runner.default_path(built) for built in tasks]
    if out is not None:
        paths = [out / built.name for built in tasks] if group else [out]
    if until is not None:
        _collect(group, dict(zip(paths, tasks, strict=True)), display, as_json=as_json)
        return
    results: dict[Path, RunResult] = {}
    over = []
    session = runner.Session(limit, max_cost, retry, unpriced, allow_model_change)
    spending = SharedLimit(paths if max_cost is not None else ())
    for built, path in zip(tasks, paths, strict=True):
        with _naming_log(path):
            result = runner.run_task(
                built, session, out=path, display=make_display(display), elsewhere=spending.elsewhere(path)
            )
        results[path] = result
        spending.update(path)
        if not as_json:
            _show_run(result, path)
            if not isinstance(task, str):
                say(f"spec      {path}/spec.yaml  (run it again with `saeval run {path}/spec.yaml`)")
        over += [f"{built.name}: {said}" for said in over_limits(built, result)]
    found = {result.task: result.model_dump(mode="json", by_alias=True) for result in results.values()}
    if as_json:
        print_json({"group": group, "runs": found} if group else next(iter(found.values())))
    elif group:
        _show_group(group, results)
    if over:
        click.echo("\n".join(over), err=True)
        sys.exit(1)


def _collect(group: str | None, tasks: Mapping[Path, Task], display: Any, *, as_json: bool) -> None:
    """Collect the activations of tasks (by run directory), and print where the stores are."""
    from saeval._run import runner
    from saeval._util import counted, display as make_display

    found = {}
    for path, task in tasks.items():
        with _naming_log(path):
            stores = runner.collect_task(task, out=path, display=make_display(display))
        found[task.name] = {name: str(store) for name, store in stores.items()}
        if not as_json:
            say(
                f"collected {counted(len(stores), 'cell')} of {task.name}; run the same command without --until to "
                "resume"
            )
    if as_json:
        print_json({"group": group, "collected": found} if group else {"collected": next(iter(found.values()))})


@contextmanager
def _naming_log(run_dir: Path) -> Iterator[None]:
    """Print the path of the log if the run in this block fails and has written one."""
    from saeval._util import SaevalError

    log = run_dir / "logs" / "run.log"
    try:
        yield
    except SaevalError:
        with suppress(OSError):  # the log does not exist, or its name is too long
            if log.stat().st_size:
                say(f"log       {log}", err=True)
        raise


def _show_group(group: str, results: Mapping[Path, RunResult]) -> None:
    """Print one board with all cells of a group, and the findings of its runs."""
    from saeval._compare import join
    from saeval._util import counted
    from saeval.report import finding_line, written

    click.echo(f"\n=== {group}: {counted(len(results), 'task')} ===\n")
    ranked = [result.rank_by for result in results.values()]
    board = join.join(list(results), rank_by=max(ranked, key=ranked.count), mixed=True)
    click.echo(written(board, "text"), nl=False)
    for result in results.values():
        if result.findings:
            say(f"\n{result.task}")
            say("\n".join(finding_line(found) for found in result.findings))


def _show_run(result: RunResult, path: Path) -> None:
    from saeval.report import render

    render(result)
    click.echo(f"\nresults   {path}/results.json")
    click.echo(f"report    {path}/report/index.html  report.md  leaderboard.csv  leaderboard.parquet")
    if any(row.failed for cell in result.cells for row in cell.scores):
        click.echo(f"log       {path}/logs/run.log  (why latents failed)")


@click.command()
@TASK_OR_FLAGS
@SET
@LLMS
@ALLOW
@WITHOUT
@JSON
def validate(task: Any, assignments: Sequence[str], llms: Sequence[str], without: Sequence[str], as_json: bool) -> None:
    """Check a task spec, its plugins, options and files. Loads no model."""
    from saeval._util import SpecError, counted

    try:
        group, tasks = load_all(task, assignments, llms, open_registry(without))
    except SpecError as error:
        if not as_json:
            raise
        print_json({"valid": False, "problems": list(error.problems)})
        sys.exit(2)
    rows = []
    for built in tasks:
        cells = [cell.name for cell in built.cells]
        warnings = _warnings(built)
        rows.append(
            {
                "valid": True,
                "task": built.name,
                "version": built.version,
                "sha": built.sha,
                "cells": cells,
                "warnings": warnings,
            }
        )
        if not as_json:
            click.echo(f"{built.name} {built.version}: valid; {counted(len(cells), 'cell')}: {'; '.join(cells)}")
            for warning in warnings:
                say(f"warning: {warning}", err=True)
    if as_json:
        print_json({"valid": True, "group": group, "tasks": rows} if group else rows[0])


def _warnings(task: Task) -> list[str]:
    """Return what the sources of a task's cells warn of, and notes about contestants that read different text."""
    from saeval.task import said_by

    sources = {cell.name: cell.source for cell in task.cells}
    cautions = {name: said_by(source.label, source.plugin.cautions) for name, source in sources.items()}
    return [f"{name}: {caution}" for name, said in cautions.items() for caution in said] + _text_notes(task)


def _text_notes(task: Task) -> list[str]:
    """Return notes about contestants that will read different text because of their coders' files."""
    from saeval._util import content_hash
    from saeval.task import text_options_of

    contestants = [cell for cell in task.cells if cell.baseline is None]
    found = [(cell, text_options_of(cell.source.plugin)) for cell in contestants]
    if all(options == found[0][1] for _, options in found):
        return []
    from saeval._compare import TextOf, differing_text  # slow to import

    texts = []
    for cell, options in found:
        given = cell.source.plugin.model_dump(mode="json", exclude={"coder", "hookpoint"})
        texts.append(TextOf(cell.name, content_hash(cell.source.loaded.id, given), content_hash(options), options))
    return list(differing_text(texts))


@click.command()
@TASK
@SET
@LLMS
@ALLOW
@click.option(
    "--latents", "n", default=1, type=click.IntRange(min=1), help="Number of latents to show, from the first cell."
)
@WITHOUT
@JSON
def preview(
    task: Any, assignments: Sequence[str], llms: Sequence[str], n: int, without: Sequence[str], as_json: bool
) -> None:
    """Print prompts exactly as they would be sent. Collects activations if necessary; asks no model."""
    from saeval._run import preview_prompts as make_preview
    from saeval._util import display

    prompts = make_preview(load(task, assignments, llms, open_registry(without)), n, display())
    if as_json:
        print_json(prompts)
        return
    for prompt in prompts:
        say(f"=== {prompt['step']}  latent {prompt['latent']}  role {prompt['role']}")
        say(prompt["text"])
        click.echo()


@click.command()
@TASK_OR_FLAGS
@SET
@LLMS
@ALLOW
@click.option("--limit", type=click.IntRange(min=1), help="Maximum latents per cell.")
@click.option(
    "--like", type=click.Path(path_type=Path), metavar="RUN", help="Use speed and reliability of this earlier run."
)
@WITHOUT
@JSON
def plan(
    task: Any,
    assignments: Sequence[str],
    llms: Sequence[str],
    limit: int | None,
    like: Path | None,
    without: Sequence[str],
    as_json: bool,
) -> None:
    """Estimate calls, tokens, dollars, minutes and disk of a run. Asks no model, and collects nothing."""
    from saeval._run.plan import ASSUMPTIONS, plan as make_plan, speed, worth
    from saeval._util import fold

    group, tasks = load_all(task, assignments, llms, open_registry(without))
    measured = speed(like) if like else None
    plans = {built.name: make_plan(built, limit, measured) for built in tasks}
    warnings = {built.name: _warnings(built) for built in tasks}
    more = {name: [*worth(of_task.steps, like)] if like else [] for name, of_task in plans.items()}
    if as_json:
        found = {name: of_task.as_json() for name, of_task in plans.items()}
        for name, of_task_worth in more.items():
            found[name]["more_money"] = [of_scorer._asdict() for of_scorer in of_task_worth]
            found[name]["warnings"] = warnings[name]
        print_json({"group": group, "plans": found} if group else next(iter(found.values())))
        return
    for name, of_task in plans.items():
        if group:
            say(f"=== {name}")
        _show_plan(of_task)
        for warning in warnings[name]:
            say(fold(f"warning: {warning}"), err=True)
        for of_scorer in more[name]:
            say(fold(of_scorer.text))
    click.echo("\n" + "\n".join(map(fold, ASSUMPTIONS)))


_PLAN = ("step", "latents", "calls", "in", "out", "usd", "minutes", "MB")


def _show_plan(plan: Plan) -> None:
    """Print one line per step, grouped by cell, and the models that the steps ask."""
    from saeval._util import WIDTH, aligned_rows, fold

    steps = [step for step in plan.steps if step.model or step.step in ("collect", "report")]
    quantities = [partial(getattr, step) for step in steps]
    rows = [_plan_row(s.step, s.latents or "", q, s.measured) for s, q in zip(steps, quantities, strict=True)]
    rows.append(_plan_row("total", "", plan.total, all(step.measured for step in steps)))
    head, *lines, total = aligned_rows(_PLAN, rows, WIDTH)
    say(head)
    cell = ""
    for step, line in zip(steps, lines, strict=True):
        if step.cell != cell:
            say(fold(f"{step.cell or 'all cells'}:"))
            cell = step.cell
        say(line)
    say(total)
    read = [step.note for step in steps if step.step == "collect" and step.input_tokens != 0 and step.note]
    for note in dict.fromkeys(read):
        say(fold(f"collect: {note}"))
    asked: dict[str, list[str]] = {}
    for step in (step for step in steps if step.model):
        name = step.step.partition(" (")[0]
        if name not in asked.setdefault(str(step.model), []):
            asked[str(step.model)].append(name)
    for model, asking in asked.items():
        say(fold(f"{model}: {', '.join(asking)}"))


def _plan_row(step: str, latents: int | str, values: Callable[[str], Any], measured: bool) -> list[str]:
    def shown(column: str, format_: str, unit: int = 1) -> str:
        value = values(column)
        return "unknown" if value is None else format(value / unit if unit > 1 else value, format_)

    minutes = "~" * (not measured) + shown("seconds", ".1f", 60)
    return [
        step.replace("_explanation)", ")"),
        f"{latents}",
        shown("calls", ","),
        shown("input_tokens", ","),
        shown("output_tokens", ","),
        shown("usd", ".4f"),
        minutes,
        shown("bytes", ".1f", 10**6),
    ]
