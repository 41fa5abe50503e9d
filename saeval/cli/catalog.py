"""Commands that list and show tasks, plugins, runs, and the environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import click

from saeval.cli.shared import JSON, LLMS, SET, WITHOUT, load, open_registry, print_entries, print_json, print_rows, say
from saeval.plugin.kinds import KINDS

if TYPE_CHECKING:
    from saeval.plugin.registry import Registry


@click.command(name="list")
@click.argument("kind", type=click.Choice(("tasks", *(f"{kind}s" for kind in KINDS), "runs")), default="tasks")
@click.argument("place", metavar="[FOLDER]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--tag", "wanted", multiple=True, metavar="TAG", help="Only tasks with this tag (repeatable: all must match)."
)
@WITHOUT
@JSON
def list_(kind: str, place: Path | None, wanted: Sequence[str], without: Sequence[str], as_json: bool) -> None:
    """List tasks, plugins of a kind, or runs in FOLDER (default: saeval-runs), latest first."""
    if wanted and kind != "tasks":
        raise click.UsageError("--tag is for tasks only")
    if place is not None and kind != "runs":
        raise click.UsageError("a folder is for runs only: saeval list runs FOLDER")
    if kind == "runs":
        _show_runs(place or Path("saeval-runs"), as_json)
        return
    rows: list[dict[str, Any]]
    if kind == "tasks":
        rows = [row for row in _list_tasks(open_registry(without)) if set(wanted) <= set(row["tags"])]
        if not as_json:
            rows = [{**row, "tags": " ".join(row["tags"])} for row in rows]
    else:
        rows = [
            {
                "name": _short(loaded.id),
                "description": _first_line(loaded.cls),
                "package": f"{loaded.distribution} {loaded.version}",
            }
            for loaded in open_registry(without).names(kind.removesuffix("s"))
        ]
    if as_json:
        print_json(rows)
    else:
        print_entries(rows)


def _short(plugin_id: str) -> str:
    return plugin_id.removeprefix("saeval/")


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def _list_tasks(registry: Registry) -> list[dict[str, Any]]:
    import yaml

    from saeval.task import shipped_tasks

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


def _show_runs(place: Path, as_json: bool) -> None:
    from dataclasses import asdict
    from shutil import get_terminal_size

    from saeval.results import lines, list_runs

    runs = list_runs(place)
    if as_json:
        print_json([{**asdict(run), "path": str(run.path)} for run in runs])
        return
    say("\n".join(lines(runs, get_terminal_size().columns)) or f"no runs in {place}")


@click.command()
@click.argument("kind", type=click.Choice(("task", *KINDS)))
@click.argument("name")
@SET
@LLMS
@WITHOUT
@JSON
def show(
    kind: str, name: str, assignments: Sequence[str], llms: Sequence[str], without: Sequence[str], as_json: bool
) -> None:
    """Show a task's resolved spec, or a plugin's options."""
    from saeval._util import counted, descriptions

    registry = open_registry(without)
    if kind == "task":
        import yaml

        from saeval.task import plain

        built = load(name, assignments, llms, registry, check=False)
        data = plain(built.resolved)
        if as_json:
            print_json(data)
        else:
            click.echo(f"# {built.name} {built.version}  sha {built.sha[:12]}  {counted(len(built.cells), 'cell')}")
            click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
        return
    loaded = registry.get(kind, name)
    schema = loaded.cls.model_json_schema()
    if as_json:
        print_json({"name": loaded.id, "version": loaded.version, "package": loaded.distribution, "schema": schema})
        return
    about = (loaded.cls.__doc__ or "no docstring").strip()
    options = loaded.cls.model_fields
    click.echo(f"{kind} {loaded.id}  ({loaded.distribution} {loaded.version})\n\n{about}\n")
    click.echo("options:" if options else "no options")
    meanings = descriptions(loaded.cls)
    for option, field in options.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        meaning = meanings.get(option, "no docstring")
        click.echo(f"  {option}: {_type_name(field.annotation)}  ({default})\n      {meaning}")


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return " | ".join(map(_type_name, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: standard output.")
@WITHOUT
def schema(out: Path | None, without: Sequence[str]) -> None:
    """Write the JSON Schema of task specs for editors, with the options of all installed plugins."""
    import json

    from saeval._util import write_atomic
    from saeval.task import task_schema

    text = json.dumps(task_schema(open_registry(without)), indent=1, ensure_ascii=False)
    if out is None:
        click.echo(text)
        return
    write_atomic(out, text + "\n")
    say(f"written   {out}; begin specs with `# yaml-language-server: $schema={out}`")


@click.command()
@click.option("--store", type=click.Path(path_type=Path), help="Read an activation store and compare its checksums.")
@JSON
def doctor(store: Path | None, as_json: bool) -> None:
    """Check packages, device, cache, plugins and API-key variables (by name only). Makes no network calls."""
    from dataclasses import asdict

    from saeval.cli.doctor import examine

    found = list(examine(store))
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        print_rows([{"status": f.status, "what": f.what, "text": f.text} for f in found])
    if any(finding.status == "wrong" for finding in found):
        sys.exit(1)
