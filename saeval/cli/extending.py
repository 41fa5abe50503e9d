"""Commands for those who write plugins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from saeval.cli.shared import JSON, KINDS, WITHOUT, open_registry, print_json, say


@click.group(invoke_without_command=True)
@WITHOUT
@JSON
@click.pass_context
def plugins(ctx: click.Context, without: Sequence[str], as_json: bool) -> None:
    """List installed plugin packages, what they add, and why a broken one is left out."""
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
    """Run the contracts of saeval.testing on all that a package adds; exit code 1 if anything breaks one."""
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
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option("--file", "lone", is_flag=True, help="A lone file for `use: ./NAME.py:Class`, instead of a package.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to put it in; this one by default.")
def new(kind: str, name: str, lone: bool, out: Path | None) -> None:
    """Begin a plugin: a package saeval-NAME that installs, keeps its contract and runs, or a lone file."""
    from saeval.plugin import scaffold

    made = scaffold.new(kind, name, lone=lone, out=out)
    say("\n".join(f"made      {file}" for file in made))
    if lone:
        click.echo(f'in a spec beside it:  use: "./{name}.py:{scaffold.class_name(name)}"')
    else:
        say(f"next:  pip install -e {made[0].parent}  and read its README.md")
