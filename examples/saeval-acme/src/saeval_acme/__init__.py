"""Registers the package's plugins with saeval."""

from __future__ import annotations

from pathlib import Path

from saeval.plugin import Sampler, Scorer, hookimpl
from saeval_acme.purity import Purity
from saeval_acme.spread import Spread


@hookimpl
def saeval_scorers() -> list[type[Scorer]]:
    return [Purity]


@hookimpl
def saeval_samplers() -> list[type[Sampler]]:
    return [Spread]


@hookimpl
def saeval_task_dirs() -> list[Path]:
    return [Path(__file__).parent / "tasks"]
