"""Defines the parts of a task: plugins with options, steps, roles and cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import JsonValue

from saeval._util import content_hash
from saeval.llm import Asker, RoleSettings
from saeval.plugin.base import LLM, ActivationSource, Explainer, Plugin, Sampler, Scorer, Step, Tracker
from saeval.plugin.registry import BUILT_IN, Loaded
from saeval.records import MAIN, Measure
from saeval.task.spec import FindingSpec, plain
from saeval.task.spec.models import LatentSelection, RunOptions

P = TypeVar("P", bound=Plugin)
S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Part(Generic[P]):
    """A plugin with its options and its metadata."""

    plugin: P
    loaded: Loaded
    nested: tuple[Part[Any], ...] = ()
    """Parts in its options, such as a source's coder."""

    @property
    def label(self) -> str:
        """Full name and version, `saeval/detection 0.1.0`."""
        return f"{self.loaded.id} {self.loaded.version}"

    @property
    def measures(self) -> list[Measure]:
        """Measures that the plugin and those in its options declare."""
        return [measure for part in (self, *self.nested) for measure in getattr(part.plugin, "measures", ())]

    @cached_property
    def sha(self) -> str:
        """Hash of plugin, options, prompts, and contents of files that the options name; without the plugin's code."""
        return content_hash(self.loaded.id, self.plugin.fingerprint())

    @property
    def code(self) -> dict[str, str]:
        """Hash of the source files of this plugin and of those in its options, by full name and version.

        Empty text for plugins whose version stands for their code: built-in ones, and those from a package index.
        """
        built_in = self.loaded.distribution == BUILT_IN
        found = {self.label: "" if built_in else self.loaded.code or self.loaded.sha or ""}
        for part in self.nested:
            found |= part.code
        return found

    @property
    def identity(self) -> JsonValue:
        """Everything about this part that results depend on; part of cache keys."""
        inside = [part.identity for part in self.nested]
        code: JsonValue = [self.loaded.sha, self.loaded.code] if self.loaded.code else self.loaded.sha
        return [self.loaded.id, self.loaded.version, code, self.plugin.fingerprint(), inside]


@dataclass(frozen=True)
class StepPart(Generic[S]):
    """An explainer or scorer of a cell, with its language-model role and its number of latents."""

    part: Part[S]
    role: str | None
    latents: int | None
    baselines: frozenset[str] | None = None
    """Explanation baselines that a scorer scores; None for all."""
    own: bool = True
    """Whether a scorer scores the cell's own explanations."""


@dataclass(frozen=True)
class RolePart:
    """A language model for a role."""

    role: str
    model: str
    part: Part[LLM]
    settings: RoleSettings

    @property
    def asker(self) -> Asker:
        """The role as the gateway to its model uses it."""
        return Asker(self.role, self.part.plugin, self.model, self.settings)

    @property
    def identity(self) -> JsonValue:
        """Everything that this model's answers depend on; part of cache keys."""
        basis: list[JsonValue] = [
            self.model,
            self.part.identity,
            self.settings.temperature,
            self.settings.max_tokens,
        ]
        return [*basis, "structured"] if self.settings.structured else basis


@dataclass(frozen=True)
class Cell:
    """One row of the leaderboard: a source, with sampler, explainers and scorers for its latents."""

    name: str
    axes: dict[str, str]
    baseline: str | None
    source: Part[ActivationSource]
    sampler: Part[Sampler]
    latents: LatentSelection
    explainer: StepPart[Explainer]
    scorers: dict[str, StepPart[Scorer]]
    alternatives: dict[str, StepPart[Explainer] | None]
    """Explanation baselines by name; None for shuffled explanations, which need no plugin."""
    shuffled_latents: int | None = None
    alone: bool = False
    """Whether only the listed latents' activations are needed."""

    @cached_property
    def explainers(self) -> dict[str, StepPart[Explainer]]:
        """Explainers by kind of explanation, the cell's own first; without shuffled explanations."""
        return {MAIN: self.explainer, **{k: s for k, s in self.alternatives.items() if s is not None}}

    @cached_property
    def floors(self) -> tuple[str, ...]:
        """Names of uninformed explanation baselines; lifts are relative to the first that has scores."""
        made = [name for name, step in self.alternatives.items() if step is not None and step.part.plugin.uninformed]
        return (*(name for name, step in self.alternatives.items() if step is None), *made)

    @cached_property
    def collected(self) -> Part[ActivationSource]:
        """The source to collect: restricted to the listed latents if nothing needs the others and it is cheaper.

        Its store has a separate name, but results from a latent's windows are cached under the unrestricted source.
        """
        return replace(self.source, plugin=self.source.plugin.only(self.latents.indices)) if self.alone else self.source


@dataclass(frozen=True)
class Task:
    """A task ready to run."""

    name: str
    version: str
    description: str
    resolved: dict[str, Any]
    cells: tuple[Cell, ...]
    roles: dict[str, RolePart]
    run: RunOptions
    rank_by: str
    measures: tuple[str, ...]
    checks: str | None = None
    """Role whose model is checked by the task."""
    trackers: tuple[Part[Tracker], ...] = ()
    findings: tuple[FindingSpec, ...] = ()
    """Claims to test on the results."""
    correct_for_judge: bool = False
    """Whether to report scores corrected for the judge's errors, too."""
    controls: tuple[str, ...] = ()
    """Names of the baselines with which the report compares trained coders, by stratum."""
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # Of `run`, only the seed changes results, so that a run can be resumed with another executor.
        comparable = {
            k: v for k, v in plain(self.resolved).items() if k not in ("description", "tags", "findings", "run")
        }
        object.__setattr__(self, "sha", content_hash(comparable, self.run.seed))

    def roles_asked(self) -> set[str | None]:
        """Return the roles that steps use, except steps on 0 latents; contains None if a step has no role."""
        steps: list[StepPart[Any]] = []
        for cell in self.cells:
            steps += [*cell.explainers.values(), *cell.scorers.values()]
        return {step.role for step in steps if step.latents != 0}

    def parts(self) -> Iterator[Part[Any]]:
        """Yield every plugin that results depend on, including language models."""
        for cell in self.cells:
            yield cell.source
            yield cell.sampler
            yield cell.explainer.part
            yield from (s.part for s in cell.scorers.values())
            yield from (a.part for a in cell.alternatives.values() if a)
            yield from cell.source.nested
        yield from (role.part for role in self.roles.values())
