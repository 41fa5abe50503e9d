"""Commands for plugin authors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from saeval.cli.shared import FLAGS, JSON, WITHOUT, open_registry, print_json, say, spec_of
from saeval.plugin.kinds import KINDS


@click.group(invoke_without_command=True)
@WITHOUT
@JSON
@click.pass_context
def plugins(ctx: click.Context, without: Sequence[str], as_json: bool) -> None:
    """List installed plugin packages with their plugins, and the reason why a broken one is skipped."""
    from dataclasses import asdict

    if ctx.invoked_subcommand:
        return
    rows = open_registry(without).plugins()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    for row in rows:
        say(
            f"{row.namespace:<12} {row.distribution} {row.version}  {row.status}"
            + (f": {row.reason}" if row.reason else "")
        )
        for kind, names in row.provides.items():
            if names:
                click.echo(f"             {kind}s: {', '.join(names)}")


@plugins.command()
@click.argument("package", metavar="PKG")
@JSON
def check(package: str, as_json: bool) -> None:
    """Test the contracts of all plugins of a package. The exit code is 1 if any is broken."""
    from dataclasses import asdict

    from saeval.testing import check_package

    rows = []
    for row in check_package(open_registry(), package):
        rows.append(asdict(row))
        if not as_json:
            say(f"{row.status:<10} {row.kind} {row.name}" + (f": {row.reason}" if row.reason else ""))
    if as_json:
        print_json(rows)
    if any(row["status"] == "failed" for row in rows):
        sys.exit(1)


@click.command()
@click.argument("kind", type=click.Choice(("task", *KINDS)))
@click.argument("called", metavar="NAME")
@click.option("--file", "single", is_flag=True, help="Make a single file for `use: ./NAME.py:Class`, not a package.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write into; default: the current one."
)
@FLAGS
def new(kind: str, called: str, single: bool, out: Path | None, **flags: Any) -> None:
    """Create a task, a plugin package with tests, or a single plugin file (--file).

    `new task` asks for --model, --sae, --text and --judge if they are missing.
    """
    given = {flag: value for flag, value in flags.items() if value not in (None, ())}
    if kind == "task":
        if single:
            raise click.UsageError("--file is for plugins only; a task is always a single file")
        _new_task(called, out or Path(), given)
        return
    if given:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} is for `saeval new task` only")
    from saeval.plugin import scaffold

    made = scaffold.new(kind, called, single_file=single, out=out)
    say("\n".join(f"made      {file}" for file in made))
    if single:
        click.echo(f'in a spec beside it:  use: "./{called}.py:{scaffold.class_name(called)}"')
    else:
        say(f"next:  pip install -e {made[0].parent}  and read its README.md")


_QUESTIONS = {
    "model": "Subject model (hub id, folder or .gguf file)",
    "saes": "SAEs (folders or hub ids, separated by spaces)",
    "text": "Text (file, folder or hub dataset)",
    "judge": "Judge (such as openai/gpt-4o-mini)",
}


def _new_task(name: str, folder: Path, given: dict[str, Any]) -> None:
    """Write a spec from the flags, and from answers to questions about missing ones."""
    import shlex

    import yaml

    from saeval._util import InputError, write_atomic

    file = folder / f"{name}.yaml"
    if file.exists():
        raise InputError(f"{file}: already exists; choose another name, or remove it")
    for fact, question in _QUESTIONS.items():
        if fact not in given:
            answer = click.prompt(question, err=True)
            given[fact] = tuple(shlex.split(answer)) if fact == "saes" else answer
    spec = spec_of({**given, "name": name})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    say(f"made      {file}\nnext:  saeval validate {file}  and  saeval run {file}")
