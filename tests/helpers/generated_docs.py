"""Writes the pages of docs/ that are made from the code: `python tests/helpers/generated_docs.py`."""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from root import ROOT

import saeval.testing
from saeval._util.field_docs import attribute_docstrings, descriptions
from saeval.cli.group import main
from saeval.plugin import ActivationWriter, Plugin, Scorer, Step, base as interfaces, hookspecs, scaffold
from saeval.plugin.kinds import KINDS
from saeval.plugin.registry import Registry
from saeval.task.files import shipped_tasks

DOCS = ROOT / "docs"


def pages() -> dict[Path, str]:
    """The generated pages, by file."""
    made = {"cli.md": cli_page(), "plugins.md": plugins_page(), "decisions/README.md": decisions_page()}
    made["tasks.md"] = tasks_page()
    made |= {f"hooks/{kind}s.md": hook_page(kind, base) for kind, base in interfaces.BASE_CLASSES.items()}
    return {DOCS / name: "\n".join(lines).rstrip() + "\n" for name, lines in made.items()}


def table(head: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table, or nothing when it has no rows."""
    lines = [" | ".join(" ".join(cell.split()) for cell in row) for row in rows]
    if lines:
        yield f"| {head} |"
        yield "|" + "---|" * (head.count("|") + 1)
        yield from (f"| {line} |" for line in lines)
        yield ""


# --- the command line ---------------------------------------------------------------------------------------


def cli_page() -> Iterator[str]:
    yield from (
        "# Command line", "",
        "This page is generated from the commands; `saeval COMMAND --help` prints the same. `--json` prints a command's output",
        "as JSON. [Exit codes](task-reference.md#exit-codes) are documented separately.", "",
    )  # fmt: skip
    yield from table(
        "command | what it does",
        ((f"[`{name}`](#{anchor(name)})", first_line(command)) for name, command in commands(main)),
    )
    for name, command in commands(main):
        context = click.Context(command, info_name=name)
        usage = " ".join([name, *(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")])
        yield from (
            f"## {name}",
            "",
            inspect.cleandoc(command.help or ""),
            "",
            f"`{usage} …`" if options(command) else f"`{usage}`",
            "",
        )
        yield from table("option | meaning", (option(o, context) for o in options(command)))


def commands(group: click.Group, prefix: str = "saeval") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


def anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def first_line(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").split("\n")[0]


def options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


def option(o: click.Option, context: click.Context) -> tuple[str, str]:
    metavar = "" if o.is_flag else " " + o.make_metavar(context).strip("[]").replace("|", " or ").removesuffix(" RANGE")
    names = ", ".join(f"`{name}{metavar if name == o.opts[0] else ''}`" for name in o.opts)
    notes = ["required"] * o.required + ["may be repeated"] * o.multiple
    default = o.get_default(context)
    if not (o.is_flag or o.multiple or default is None or type(default).__name__ == "Sentinel"):
        notes.append(f"default `{default}`")
    return names, (o.help or "") + (f" ({', '.join(notes)})" if notes else "")


# --- shipped tasks ------------------------------------------------------------------------------------------


def tasks_page() -> Iterator[str]:
    yield from (
        "# Shipped tasks", "",
        "This page is generated from the specs. `saeval run NAME` runs a task, `saeval show task NAME` prints its full spec,",
        "`saeval plan` estimates its cost, and `saeval list tasks --tag TAG` lists tasks by tag, including those of installed",
        "packages. Your own spec can [extend one](task-reference.md#keys) with `include: [saeval://NAME.yaml]`.", "",
    )  # fmt: skip
    heads = {name: yaml.safe_load(file.read_text()) for name, file in shipped_tasks(Registry(disabled=["*"]))}
    for title, chosen in (
        ("Tasks", lambda name: "/" not in name and "group" not in heads[name]),
        ("Pretrained SAEs of the hub", lambda name: name.startswith("hub/")),
        ("Recurrent networks", lambda name: name.startswith("rnn/")),
        ("The paper", lambda name: name.startswith("paper/") and not name.endswith("-small")),
        ("The paper, small", lambda name: name.startswith("paper/") and name.endswith("-small")),
        ("Groups", lambda name: "group" in heads[name]),
    ):
        yield from (f"## {title}", "")
        if title == "The paper":
            yield from ("[Reproducing the paper](reproducing.md) compares each with the paper.", "")
        rows = (
            (f"`{n}`", ", ".join(f"`{t}`" for t in h["tags"]), h["description"]) for n, h in heads.items() if chosen(n)
        )
        yield from table("task | tags | description", rows)


# --- plugins ------------------------------------------------------------------------------------------------


def plugins_page() -> Iterator[str]:
    yield from (
        "# Built-in plugins and their options", "",
        "This page is generated from the classes. `saeval list scorers` and `saeval show scorer detection` print the same, and",
        "include installed packages. [Task reference](task-reference.md) explains how to combine parts,",
        "[Writing a plugin](writing-a-plugin.md) how to add one.", "",
    )  # fmt: skip
    registry = Registry(disabled=["*"])
    nested: dict[type[BaseModel], None] = {}
    for kind in KINDS:
        found = [loaded.cls for loaded in registry.names(kind)]
        title = "Language models" if kind == "llm" else f"{kind.capitalize()}s"
        yield from (f"## {title}", "", " · ".join(f"[`{cls.name}`](#{kind}-{cls.name})" for cls in found), "")
        for cls in found:
            yield from (f"### {kind.upper() if kind == 'llm' else kind.capitalize()} `{cls.name}`", "")
            yield from (inspect.cleandoc(cls.__doc__ or ""), "", *facts(cls))
            yield from fields(cls)
            nested |= {model: None for f in cls.model_fields.values() for model in mappings(f.annotation)}
    yield from ("## Options that are mappings", "")
    for model in nested:
        yield from (f"### `{model.__name__}`", "", inspect.cleandoc(model.__doc__ or ""), "")
        yield from fields(model)


def fields(model: type[BaseModel]) -> Iterator[str]:
    meanings = descriptions(model)
    rows = ((*field(name, found), meanings.get(name, "")) for name, found in model.model_fields.items())
    return table("option | type | default | meaning", rows)


def facts(cls: type[Plugin]) -> Iterator[str]:
    """Yield the role that a step asks, and the metrics of a scorer."""
    said = []
    if issubclass(cls, Step) and not isinstance(cls.llm_role, property):  # where it is one, options decide
        said.append(f"Asks the role `{cls.llm_role}`." if cls.llm_role else "Asks no language model.")
    if issubclass(cls, Scorer):
        if not isinstance(cls.metrics, property):
            said.append(f"Returns {', '.join(f'`{metric.name}`' for metric in cls.metrics)}.")
        if not cls.reads_explanation:
            said.append("Does not measure the explanation.")
    if text := " ".join(said):
        yield from (text, "")


def field(name: str, found: FieldInfo) -> tuple[str, ...]:
    return f"`{name}`", f"`{type_name(found.annotation)}`", default(found)


def type_name(annotation: Any) -> str:
    """Return a type's name for a table, which may contain no bar."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (list, tuple, dict):
        return f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    if arguments:
        return " or ".join(map(type_name, arguments))
    names = {type(None): "null", ...: "…"}
    return names.get(annotation) or getattr(annotation, "__name__", str(annotation))


def default(found: FieldInfo) -> str:
    if found.is_required():
        return "required"
    value = found.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"`{text if len(text) <= 50 else text[:40] + ' …'}`"


def mappings(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models among an option's types that are no plugins themselves: mappings with keys of their own."""
    for argument in get_args(annotation):
        yield from mappings(argument)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, Plugin):
        yield annotation
        for found in annotation.model_fields.values():
            yield from mappings(found.annotation)


# --- hooks --------------------------------------------------------------------------------------------------

HINTS = {
    "source": "`begin = writer.start(dataset, n_latents)` returns the context to begin at, which is not 0 when a run "
    "resumes; `writer.add` takes activations, `writer.advance` says that those of the first contexts are complete, and "
    "`writer.note` keeps facts.",
    "coder": "`saeval.plugin.LinearCoder` takes matrices, `saeval.plugin.ModuleCoder` a function that returns dense "
    "activations; other coders derive from `saeval.plugin.SparseCoder`.",
    "sampler": "`store.windows` returns the activating windows, `store.silent_windows` verified non-activating ones, "
    "`store.examples` their texts and activations.",
    "llm": "Specs name a package's model as `model: namespace/name/rest`; the option `model` then contains `rest`. saeval "
    "handles time-outs, attempts, the cache, the ledger and the spending limit.",
    "tracker": "An exception becomes a warning, and saeval waits two minutes at most: a tracker never fails a run.",
}


def hook_page(kind: str, base: type[Plugin]) -> Iterator[str]:
    """Hook, base class, what to fill in, contract, and a whole plugin."""
    hook, contract = getattr(hookspecs, f"saeval_{kind}s"), getattr(saeval.testing, f"check_{kind}")
    yield from (
        f"# `saeval_{kind}s`",
        "",
        f"`{hook.__name__}{signature(hook)}`",
        "",
        inspect.getdoc(hook) or "",
        "",
    )
    yield from (f"## `saeval.plugin.{base.__name__}`", "", inspect.getdoc(base) or "", "")
    yield from ([HINTS[kind], ""] if kind in HINTS else [])
    yield from ("In addition to what [all plugins](../hooks.md#what-all-plugins-share) have:", "")
    classes = [cls for cls in base.__mro__ if cls.__module__.startswith("saeval.") and cls is not Plugin]
    members = {
        name: value for cls in classes for name, value in vars(cls).items() if not name.startswith(("_", "model_"))
    }
    methods = {name: inspect.unwrap(getattr(m, "__func__", m)) for name, m in members.items() if inspect.isroutine(m)}
    needed = [name for name, method in methods.items() if getattr(method, "__isabstractmethod__", False)]
    yield from ("## Methods to implement", "")
    for name in needed:
        yield from described(methods[name])
    if kind == "source":
        yield from ("## Writing activations with `writer.add`", "", *described(ActivationWriter.add))
    said = {name: text for cls in classes for name, text in attribute_docstrings(cls).items() if name != "model"}
    said |= {name: inspect.getdoc(m) or "" for name, m in members.items() if isinstance(m, property)}
    if said or len(methods) > len(needed):
        yield from ("## Optional", "")
    yield from table("attribute | meaning", ((f"`{name}`", text) for name, text in said.items()))
    for name in (name for name in methods if name not in needed):
        yield from described(methods[name])
    yield from ("## The contract", "", *described(contract))
    yield from (
        "## Example",
        "",
        f"`saeval new {kind} example` makes a package that can be installed and tested. Its plugin:",
        "",
    )
    with tempfile.TemporaryDirectory() as folder:
        made = scaffold.new(kind, "example", out=Path(folder))
        (module,) = (file for file in made if file.name == "example.py")
        yield from ("```python", module.read_text().rstrip(), "```")


def signature(function: Any) -> str:
    return str(inspect.signature(function)).replace("'", "")


def described(function: Any) -> Iterator[str]:
    """A function's signature, and its docstring with sections as lists."""
    word = "async def" if inspect.iscoroutinefunction(function) else "def"
    yield from (f"### `{word} {function.__name__}`", "", f"`{function.__name__}{signature(function)}`", "")
    text = (inspect.getdoc(function) or "").partition("\n\nExample:")[0]
    for line in text.split("\n"):
        if line.rstrip(":") in ("Args", "Returns", "Raises"):
            yield from (f"**{line.rstrip(':')}**", "")
        elif found := re.match(r" {4}(\*{0,2}\w+): (.*)", line):
            yield f"- `{found[1]}`: {found[2]}"
        else:
            yield line.removeprefix("    ")
    yield ""


# --- decisions ----------------------------------------------------------------------------------------------


def decisions_page() -> Iterator[str]:
    yield from ("# Decisions", "", "Design decisions that are not obvious, with their reasons.", "")
    for file in sorted((DOCS / "decisions").glob("0*.md")):
        number, _, title = file.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        yield f"{number}. [{title}]({file.name})"


if __name__ == "__main__":
    for file, text in pages().items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
