"""Runs the contracts on every plugin of an installed package."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from saeval._util import PluginError, SaevalError, SpecError
from saeval.plugin.base import LLM, ActivationSource, Coder, Explainer, Plugin, Sampler, Scorer, Tracker
from saeval.plugin.registry import Loaded, Registry, options_error
from saeval.task import find_group, load_task, shipped_tasks

D_IN = 64
"""Width of the activations in the check of a coder that does not state its own width."""


@dataclass(frozen=True)
class Checked:
    """The result of checking one plugin, or one task of a package.

    Attributes:
        kind: Kind of plugin, or `task`.
        name: Its name in task specs.
        status: Whether it satisfies the contract; `unchecked` if it could not be checked.
        reason: How it violates the contract, why it was not checked, or what is unusual and may be a mistake.
    """

    kind: str
    name: str
    status: Literal["ok", "failed", "unchecked"]
    reason: str = ""


def check_package(registry: Registry, package: str) -> Iterator[Checked]:
    """Check every plugin and every task of a package.

    Plugins are created with their default options, or with those in the class variable `contract_options`.

    Args:
        registry: The plugin registry.
        package: The package's namespace or distribution.

    Raises:
        PluginError: If it is not installed, disabled, or broken.
    """
    listed = (
        [] if package in registry.namespaces else [r.namespace for r in registry.plugins() if r.distribution == package]
    )
    namespace = listed[0] if listed else package
    for _, plugin in sorted(registry.load(namespace).items()):
        yield _check(plugin)
    for name, file in shipped_tasks(registry):
        owner = name.partition("/")[0]
        if namespace == (owner if owner in registry.namespaces else "saeval"):
            yield _check_task(registry, name, file)


def _check(loaded: Loaded) -> Checked:
    def checked(status: Literal["ok", "failed", "unchecked"], reason: str = "") -> Checked:
        return Checked(loaded.kind, loaded.id.removeprefix("saeval/"), status, " ".join(reason.split()))

    try:
        plugin = loaded.cls(**loaded.cls.contract_options)
        plugin.check()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, loc))} {text}" for loc, text in options_error(loaded.cls, error))
        return checked("unchecked", f"requires options; set them in `contract_options`: {problems}")
    except SaevalError as error:
        return checked("unchecked", str(error))
    if lent := sorted(plugin.needs() & {"subject", "coder"}):
        return checked("unchecked", f"needs a source with a {' and a '.join(lent)}; test it with `source=`")
    try:
        notes = _run_contract(plugin)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
        name = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return checked("failed", f"{name}{error}")
    return checked("ok", "; ".join(notes))


def _run_contract(plugin: Plugin) -> list[str]:
    """Run the contract of a plugin's kind; return what may be a mistake."""
    from saeval import testing
    from saeval.testing.contracts import scorer_notes

    if isinstance(plugin, Scorer):
        return scorer_notes(plugin)
    if isinstance(plugin, Explainer):
        testing.check_explainer(plugin)
    elif isinstance(plugin, Sampler):
        testing.check_sampler(plugin)
    elif isinstance(plugin, Coder):
        testing.check_coder(plugin, plugin.width() or D_IN)
    elif isinstance(plugin, ActivationSource):
        with tempfile.TemporaryDirectory() as folder:
            testing.check_source(plugin, Path(folder))
    elif isinstance(plugin, LLM):
        testing.check_llm(plugin)
    elif isinstance(plugin, Tracker):
        testing.check_tracker(plugin)
    return []


def _check_task(registry: Registry, name: str, file: Path) -> Checked:
    try:
        group = find_group(str(file), registry)
        for task in group.tasks if group else [str(file)]:
            load_task(task, registry=registry, check=False)
    except (SpecError, PluginError) as error:
        return Checked("task", name, "failed", " ".join(str(error).split()))
    return Checked("task", name, "ok")
