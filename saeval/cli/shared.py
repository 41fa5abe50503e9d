"""What commands share: options, loading tasks, and printing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from saeval.plugin.registry import Registry
    from saeval.task import Task

KINDS = ("source", "coder", "sampler", "explainer", "scorer", "llm", "tracker")
"""Of plugins; `saeval.plugin.registry` has them too, but to import it takes longer than `--help` may."""

TASK = click.option(
    "--task", "-t", required=True, metavar="NAME_OR_FILE", help="A shipped task or group, or a spec file."
)
SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key of the spec: --set latents.n=20."
)
LLM = click.option("--llm", "llms", multiple=True, metavar="ROLE=MODEL", help="Put another model in a role.")


def _allow(what: str) -> Callable[[click.Context, click.Parameter, Sequence[str]], None]:
    """Return what an option does that permits something to specs, in this process and those that it starts."""

    def permit(_context: click.Context, _option: click.Parameter, names: Sequence[str]) -> None:
        if names:
            from saeval._util import allow

            allow(**{what: names})

    return permit


def ALLOW(command: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802 - a decorator like the others here
    """Add the options that permit what a stranger's spec may not do."""
    env = click.option(
        "--allow-env", multiple=True, metavar="NAME", expose_value=False, callback=_allow("variables"),
        help="Let the spec use this environment variable as a key (those ending in _API_KEY it may).",
    )  # fmt: skip
    host = click.option(
        "--allow-host", multiple=True, metavar="HOST", expose_value=False, callback=_allow("hosts"),
        help="Let a provider's key be sent to this host, which is not the provider's.",
    )  # fmt: skip
    return env(host(command))


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
WITHOUT = click.option("--without", multiple=True, metavar="NAMESPACE", help="Leave a plugin package out.")


def open_registry(without: Sequence[str] = ()) -> Registry:
    from saeval.plugin.registry import Registry

    return Registry(disabled=without)


def load(task: str, assignments: Sequence[str], llms: Sequence[str], registry: Registry, *, check: bool = True) -> Task:
    from saeval.task import load_task

    return load_task(task, registry=registry, overrides=_overrides(assignments), llms=_roles(llms), check=check)


def load_all(
    task: str, assignments: Sequence[str], llms: Sequence[str], registry: Registry
) -> tuple[str | None, list[Task]]:
    """Return a group's name and its tasks, or None and the task."""
    from saeval.task import find_group

    group = find_group(task, registry)
    members = group.tasks if group else [task]
    return group.group if group else None, [load(member, assignments, llms, registry) for member in members]


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

    click.echo(json.dumps(value, indent=1, default=str))  # in ASCII: what it quotes can do nothing to a terminal


def print_rows(rows: Sequence[dict[str, str]]) -> None:
    if not rows:
        click.echo("none")
        return
    widths = [max(len(r[k]) for r in rows) for k in rows[0]]
    for row in rows:
        say("  ".join(v.ljust(w) for v, w in zip(row.values(), widths, strict=True)).rstrip())


def say(text: str, *, err: bool = False) -> None:
    """Print text without control characters, since it may quote a model, a corpus or a file."""
    click.echo("".join(c for c in text if c.isprintable() or c == "\n"), err=err)
