"""Scaffolds a plugin: a package (installable, tested, runnable), or a single file."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path

from saeval._util import InputError

_BASES = {
    "scorer": ("Scorer", "A scorer"),
    "explainer": ("Explainer", "An explainer"),
    "sampler": ("Sampler", "A sampler"),
    "source": ("ActivationSource", "A source of activations"),
    "coder": ("Coder", "A sparse coder"),
    "llm": ("LLM", "A way to reach language models"),
    "tracker": ("Tracker", "An experiment tracker"),
}
"""Base class and words for each kind of plugin."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SAMPLER = "{use: random, with: {explain: 10, score: 20, non_activating: {n: 20}}}"
_JUDGE = r"""llms:
  judge: # a rule in a model's place: 1 for a window that holds a word which the explanation names
    model: scripted/rule
    rules: [{match: 'Explanation: .*?(?:''|: )(\w+)[\s\S]*Window 1: .*\b\1\b', reply: "[1]"}]
    reply: "[0]"
"""


def new(kind: str, name: str, *, single_file: bool = False, out: Path | None = None) -> list[Path]:
    """Make a plugin package, `saeval-NAME`, or a single file, `NAME.py`.

    Args:
        kind: One of `saeval.plugin.kinds.KINDS`.
        name: What specs will call the plugin.
        single_file: Whether to make a single file, for `use: ./NAME.py:Class`.
        out: Folder to put it in; default: the current one.

    Returns:
        The files made.

    Raises:
        InputError: If the name will not do, or there is such a file or folder already.
    """
    slots = _slots(kind, name)
    if single_file:
        if kind == "llm":
            raise InputError("a language model is named by its package, so it cannot be a single file; omit --file")
        _refuse_taken(name, (out or Path()) / f"{name}.py")
        return _write(out or Path(), {f"{name}.py": _fill(f"{kind}.py", slots)})
    package, distribution = slots["package"], slots["distribution"]
    _refuse_taken(package, (out or Path()) / distribution)
    if slots["namespace"] in ("saeval", "local"):
        raise InputError(
            f"name {name!r}: it would be the package's namespace, which saeval itself uses; choose another"
        )
    contents = {
        "pyproject.toml": _fill("pyproject.toml", slots),
        "README.md": _fill("README.md", slots),
        f"src/{package}/__init__.py": _fill("init.py" if "source" in slots else "init_without_task.py", slots),
        f"src/{package}/{name}.py": _fill(f"{kind}.py", slots),
        "tests/test_contract.py": _fill(f"{kind}_test.py", slots),
    }
    if "source" in slots:
        contents[f"src/{package}/tasks/{name}.yaml"] = _fill("task.yaml", slots)
    return _write(out or Path(), {f"{distribution}/{path}": text for path, text in contents.items()})


def class_name(name: str) -> str:
    """Return what the class of a plugin is called: `WordCount` for `word_count`."""
    return "".join(part.capitalize() for part in name.split("_"))


def _slots(kind: str, name: str) -> dict[str, str]:
    """Check the name, and return the values of the templates' slots."""
    if not _NAME.fullmatch(name):
        raise InputError(f"name {name!r}: use lower-case letters, digits and single underscores, as in 'word_count'")
    if keyword.iskeyword(name):
        raise InputError(
            f"name {name!r}: it is a keyword of Python, so its module could not be imported; choose another"
        )
    cls, dashed = class_name(name), name.replace("_", "-")
    if keyword.iskeyword(cls) or re.search(rf"\b{cls}\b", _template(f"{kind}.py")):
        raise InputError(f"name {name!r}: its class would be called {cls}, which is taken; choose another name")
    base, words = _BASES[kind]
    slots = {
        "name": name, "kind": kind, "class": cls, "base": base, "a_kind": words, "namespace": dashed,
        "package": f"saeval_{name}", "distribution": f"saeval-{dashed}", "id": f"{dashed}/{name}", "task": dashed,
        "requirement": _requirement(),
    }  # fmt: skip
    if kind == "coder":
        return {**slots, "try_it": f"# in a spec:   coder: {{use: {slots['id']}}}"}
    if kind == "tracker":
        return {**slots, "try_it": f"# in a spec:   run: {{trackers: [{slots['id']}]}}"}
    if kind == "llm":
        return {**slots, "try_it": f"# in a spec:   llms: {{judge: {{model: {slots['id']}/MODEL}}}}"}
    task = {
        "llms": _JUDGE, "source": "{use: synthetic, with: {n_latents: 8, documents: 60}}", "sampler": _SAMPLER,
        "explainer": "{use: top_tokens, with: {k: 1}}", "scorers": "detection: {with: {batch: 1}}",
    }  # fmt: skip
    mine = {
        "scorer": {"llms": "", "scorers": f"{name}: {{use: {slots['id']}}}"},
        "sampler": {"sampler": f"{{use: {slots['id']}, with: {{n: 10}}}}"},
    }.get(kind, {kind: slots["id"]})
    return {**slots, **task, **mine, "try_it": f"saeval run {slots['id']}"}


def _requirement() -> str:
    """Return the versions of saeval that a package made now fits: up to the next one that may break it."""
    from saeval import __version__

    major, minor = (int(part) for part in __version__.split(".")[:2])
    return f"saeval>={major}.{minor},<{major + 1}" if major else f"saeval>=0.{minor},<0.{minor + 1}"


def _template(name: str) -> str:
    return files(__name__).joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")


def _fill(template: str, slots: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: slots[slot[1]], _template(template))


def _refuse_taken(module: str, place: Path) -> None:
    """Make sure that nothing is overwritten, nor hidden by the new module's name."""
    if place.exists():
        raise InputError(f"{place} already exists; choose another name or --out")
    if importlib.util.find_spec(module) is not None:
        raise InputError(f"a module {module} is installed already; choose another name")


def _write(folder: Path, contents: dict[str, str]) -> list[Path]:
    try:
        for path, text in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror})") from None
    return [folder / path for path in contents]
