"""Shared code of commands: options, loading tasks, and printing."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from saeval.plugin.registry import Registry
    from saeval.task import Task


class NumberRange(click.FloatRange):
    """A range of numbers; unlike click's, it refuses `nan`, which no comparison with a bound would find."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def complete_task(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of shipped tasks; if none match, complete files."""
    from click.shell_completion import CompletionItem

    from saeval.task import shipped_tasks

    names = [name for name, _ in shipped_tasks(open_registry()) if name.startswith(incomplete)]
    return [*map(CompletionItem, names)] or [CompletionItem(incomplete, type="file")]


def TASK(command: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802 - a decorator like the others here
    """Add the task as an argument or `--task`; the command receives its name or path as `task`."""

    @wraps(command)
    def with_task(named: str | None, option: str | None, **options: Any) -> Any:
        return command(task=_named(named, option), **options)

    return _names_task(with_task)


def TASK_OR_FLAGS(command: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802
    """Add the task like `TASK`, and flags that describe a new task; the command receives their spec as `task`."""

    @wraps(command)
    def with_task(named: str | None, option: str | None, **options: Any) -> Any:
        flags = {name: options.pop(name) for name in (*FLAG_NAMES, "name")}
        return command(task=_task(named, option, flags), **options)

    name = click.option("--name", metavar="NAME", help="Name of the task made from the flags; default: the model's.")
    return _names_task(FLAGS(name(with_task)))


def _names_task(command: Callable[..., Any]) -> Callable[..., Any]:
    argument = click.argument("named", metavar="[TASK]", required=False, shell_complete=complete_task)
    option = click.option(
        "--task",
        "-t",
        "option",
        metavar="NAME_OR_FILE",
        shell_complete=complete_task,
        help="Shipped task, group or spec file; same as the argument.",
    )
    return argument(option(command))


_FLAGS = (
    click.option("--model", metavar="MODEL", help="Subject model (hub id, folder or .gguf file), instead of a task."),
    click.option(
        "--sae", "saes", multiple=True, metavar="SAE",
        help="SAE folder, or hub id such as RELEASE/ID; ID=SAE names it, CODER:SAE chooses its coder.",
    ),
    click.option("--text", metavar="PATH_OR_ID", help="File or folder of text, or a hub dataset."),
    click.option("--judge", metavar="MODEL", help="Language model that judges, such as openai/gpt-4o-mini."),
    click.option(
        "--explainer", metavar="MODEL",
        help="Language model that explains, or an explainer without one; default: the judge.",
    ),
    click.option("--api-base", metavar="URL", help="Address of an OpenAI-compatible server for judge and explainer."),
    click.option("--latents", type=click.IntRange(min=1), metavar="N", help="Latents per SAE; default: 50."),
    click.option("--tokens", type=click.IntRange(min=1), metavar="N", help="Maximum text tokens; default: 1,000,000."),
    click.option("--scorers", metavar="A,B", help="Scorers; the first one ranks. Default: detection,fuzzing."),
    click.option("--hookpoint", metavar="PLACE", help="Hookpoint in the model; default: from the SAEs' files."),
    click.option(
        "--baseline", "baselines", multiple=True, metavar="NAME",
        help="Baseline (repeatable); default: shuffled_explanation, top_tokens, random_sae and neurons.",
    ),
)  # fmt: skip
FLAG_NAMES = (
    "model", "saes", "text", "judge", "explainer", "api_base", "latents", "tokens", "scorers", "hookpoint", "baselines",
)  # fmt: skip
"""Names of the flags that describe a task, as commands receive them."""


def FLAGS(command: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802 - a decorator like the others here
    """Add the flags that describe a task."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def _named(named: str | None, option: str | None) -> str:
    """Return the named task."""
    if named and option:
        raise click.UsageError(f"name only one task: {named} or --task {option}")
    if not (named or option):
        raise click.UsageError("give the name of a task (`saeval list` lists them) or a spec file")
    return str(named or option)


def _task(named: str | None, option: str | None, flags: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return the named task, or the spec for the flags."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if not (named or option or given):
        raise click.UsageError(
            "give the name of a task (`saeval list` lists them), or --model, --sae, --text and --judge"
        )
    if not (named or option):
        return spec_of(given)
    reference = _named(named, option)
    if given:
        raise click.UsageError(f"{_flag(next(iter(given)))} describes a new task; to change {reference!r} use --set")
    return reference


def _flag(name: str) -> str:
    """Return a flag as typed on the command line."""
    return "--" + {"saes": "sae", "baselines": "baseline"}.get(name, name).replace("_", "-")


def spec_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec for the flags."""
    from saeval.task import TaskFlags, spec_from_flags

    for name in ("model", "saes", "text"):
        if name not in given:
            raise click.UsageError(f"{_flag(name)} is missing; a task needs --model, --sae, --text and --judge")
    chosen = dict(given)
    if "scorers" in chosen:
        chosen["scorers"] = [name.strip() for name in chosen["scorers"].split(",") if name.strip()]
    return spec_from_flags(TaskFlags(**chosen), open_registry())


SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key of the spec, such as latents.n=20."
)
LLMS = click.option("--llm", "llms", multiple=True, metavar="ROLE=MODEL", help="Use another model for a role.")


def _allow(what: str) -> Callable[[click.Context, click.Parameter, Sequence[str]], None]:
    """Return the callback of an option that permits something to specs, in this process and its children."""

    def permit(_context: click.Context, _option: click.Parameter, names: Sequence[str]) -> None:
        if names:
            from saeval._util import allow

            allow(**{what: names})

    return permit


def ALLOW(command: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802 - a decorator like the others here
    """Add the options that grant specs further permissions."""
    env = click.option(
        "--allow-env",
        multiple=True,
        metavar="NAME",
        expose_value=False,
        callback=_allow("variables"),
        help="Let the spec use this environment variable as a key (names ending in _API_KEY are always allowed).",
    )
    host = click.option(
        "--allow-host",
        multiple=True,
        metavar="HOST",
        expose_value=False,
        callback=_allow("hosts"),
        help="Allow sending a provider's key to this host.",
    )
    return env(host(command))


def _only_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    """Leave standard output to `print_json`: what plugins print goes to standard error."""
    if value:
        ctx.meta[_OUTPUT] = sys.stdout
        ctx.with_resource(redirect_stdout(sys.stderr))
    return value


_OUTPUT = "saeval.output"
# Eager, since plugins may print when they are imported, and other arguments import them.
JSON = click.option("--json", "as_json", is_flag=True, is_eager=True, callback=_only_json, help="Print JSON.")
WITHOUT = click.option("--without", multiple=True, metavar="NAMESPACE", help="Skip a plugin package.")


def open_registry(without: Sequence[str] = ()) -> Registry:
    from saeval.plugin.registry import Registry

    return Registry(disabled=without)


def load(
    task: str | Mapping[str, Any],
    assignments: Sequence[str],
    llms: Sequence[str],
    registry: Registry,
    *,
    check: bool = True,
) -> Task:
    from saeval.task import load_task

    return load_task(task, registry=registry, overrides=_overrides(assignments), llms=_roles(llms), check=check)


def load_all(
    task: str | Mapping[str, Any], assignments: Sequence[str], llms: Sequence[str], registry: Registry
) -> tuple[str | None, list[Task]]:
    """Return a group's name and its tasks, or None and the task."""
    from saeval._util import SpecError
    from saeval.task import find_group

    group = find_group(task, registry) if isinstance(task, str) else None
    members: Sequence[str | Mapping[str, Any]] = group.tasks if group else [task]
    tasks = [load(member, assignments, llms, registry) for member in members]
    by_name: dict[str, str] = {}
    for member, built in zip(members, tasks, strict=True):
        if (other := by_name.setdefault(built.name, str(member))) != str(member):
            raise SpecError(
                [f"{task}: {other} and {member} are both called {built.name}; change `task:` in one of them"]
            )
    return group.group if group else None, tasks


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    from saeval.task import parse_assignment

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


def print_json(value: Any) -> None:
    import json

    output = click.get_current_context().meta.get(_OUTPUT)
    click.echo(json.dumps(value, indent=1, default=str), output)  # in ASCII, so quoted text cannot affect a terminal


def print_rows(rows: Sequence[dict[str, str]]) -> None:
    from saeval._util import padded, screen_width

    if not rows:
        click.echo("none")
        return
    widths = [max(screen_width(r[k]) for r in rows) for k in rows[0]]
    for row in rows:
        say("  ".join(padded(v, w) for v, w in zip(row.values(), widths, strict=True)).rstrip())


def print_entries(rows: Sequence[dict[str, str]]) -> None:
    """Print each row's short values on one line, and below it the first sentence of its description."""
    from shutil import get_terminal_size
    from textwrap import fill

    if not rows:
        click.echo("none")
    for row in rows:
        short = [value for key, value in row.items() if key != "description" and value]
        first = re.split(r"(?<=[.?]) ", row["description"], maxsplit=1)[0]
        say("  ".join(short))
        say(fill(first, get_terminal_size().columns, initial_indent="    ", subsequent_indent="    "))


def say(text: str, *, err: bool = False) -> None:
    """Print text without control characters, because it may quote a model, a corpus or a file."""
    click.echo("".join(c for c in text if c.isprintable() or c == "\n"), err=err)
