"""The hooks of plugin packages; each takes nothing and returns what the package adds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from saeval.plugin.base import LLM, ActivationSource, Coder, Explainer, Sampler, Scorer, Tracker

hookspec = pluggy.HookspecMarker("saeval")
hookimpl = pluggy.HookimplMarker("saeval")


@hookspec
def saeval_sources() -> Iterable[type[ActivationSource]]:
    """Return the activation sources this package adds."""
    return ()


@hookspec
def saeval_coders() -> Iterable[type[Coder]]:
    """Return the sparse-coder loaders this package adds."""
    return ()


@hookspec
def saeval_samplers() -> Iterable[type[Sampler]]:
    """Return the samplers this package adds."""
    return ()


@hookspec
def saeval_explainers() -> Iterable[type[Explainer]]:
    """Return the explainers this package adds."""
    return ()


@hookspec
def saeval_scorers() -> Iterable[type[Scorer]]:
    """Return the scorers this package adds."""
    return ()


@hookspec
def saeval_llms() -> Iterable[type[LLM]]:
    """Return the ways to reach language models this package adds."""
    return ()


@hookspec
def saeval_trackers() -> Iterable[type[Tracker]]:
    """Return the experiment trackers this package adds."""
    return ()


@hookspec
def saeval_task_dirs() -> Iterable[Path]:
    """Return the folders of task specs this package ships."""
    return ()
