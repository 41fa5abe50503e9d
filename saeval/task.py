"""From a task spec to a task: plugins found and their options checked, cells laid out, nothing loaded yet."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import JsonValue, ValidationError

from saeval.errors import InputError, PluginError, SpecError, did_you_mean
from saeval.gateway import RoleSettings
from saeval.interfaces import LLM, ActivationSource, Explainer, Need, Plugin, Sampler, Scorer, Step, Tracker, kind_of
from saeval.plugins import Loaded, Registry, options_error
from saeval.seeding import content_hash
from saeval.spec import (
    OF_ALL_LATENTS,
    Document,
    FindingSpec,
    KeyPath,
    LatentSelection,
    PartSpec,
    RunOptions,
    TaskSpec,
    axis_id,
    cells_of,
    override,
    parse,
    plain,
    read_document,
    score_reference,
)
from saeval.task_files import find_include, find_spec

P = TypeVar("P", bound=Plugin)
S = TypeVar("S", bound=Step)

SHUFFLED = "shuffled_explanation"
_EXPLANATION_BASELINES = {"random_explanation": "random"}
"""Names of explanation baselines in specs that differ from the explainer's own name."""


@dataclass(frozen=True)
class Part(Generic[P]):
    """A plugin with its options, and what it is called in results."""

    plugin: P
    loaded: Loaded
    nested: tuple[Part[Any], ...] = ()
    """Parts that stand inside its options, such as a source's coder."""

    @property
    def label(self) -> str:
        """Full name and version, `saeval/detection 0.1.0`."""
        return f"{self.loaded.id} {self.loaded.version}"

    @property
    def identity(self) -> JsonValue:
        """What results made with this part depend on."""
        inside = [part.identity for part in self.nested]
        return [self.loaded.id, self.loaded.version, self.loaded.sha, self.plugin.fingerprint(), inside]


@dataclass(frozen=True)
class StepPart(Generic[S]):
    """An explainer or scorer of a cell, with the role it asks and the number of latents it runs on."""

    part: Part[S]
    role: str | None
    latents: int | None
    baselines: frozenset[str] | None = None
    """Explanation baselines that a scorer is run on; None for all."""


@dataclass(frozen=True)
class RolePart:
    """A language model for a role."""

    role: str
    model: str
    part: Part[LLM]
    settings: RoleSettings

    @property
    def identity(self) -> JsonValue:
        """What this model's answers depend on."""
        return [self.model, self.part.identity, self.settings.temperature, self.settings.max_tokens]


@dataclass(frozen=True)
class Cell:
    """One row of the leaderboard: a source with everything that is done to its latents."""

    name: str
    axes: dict[str, str]
    baseline: str | None
    source: Part[ActivationSource]
    sampler: Part[Sampler]
    latents: LatentSelection
    explainer: StepPart[Explainer]
    scorers: dict[str, StepPart[Scorer]]
    alternatives: dict[str, StepPart[Explainer] | None]
    """Explanation baselines by name; None for shuffled explanations, which no plugin makes."""
    shuffled_latents: int | None = None
    alone: bool = False
    """Whether nothing is wanted that takes other latents' activations than those of the listed ones."""

    @cached_property
    def collected(self) -> Part[ActivationSource]:
        """The source as it is collected: the listed latents alone, where nothing takes the others and that is less work.

        Its store has a name of its own; what is computed from a latent's windows is kept by that of the whole source.
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
    """Role whose model the task is a check of."""
    trackers: tuple[Part[Tracker], ...] = ()
    findings: tuple[FindingSpec, ...] = ()
    """Claims to hold against the results."""
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # Of `run`, the seed alone changes a number: a run begun on one machine goes on in the same place on a cluster.
        comparable = {
            k: v for k, v in plain(self.resolved).items() if k not in ("description", "tags", "findings", "run")
        }
        object.__setattr__(self, "sha", content_hash(comparable, self.run.seed))

    def parts(self) -> Iterator[Part[Any]]:
        """Yield every plugin that results depend on, language models included."""
        for cell in self.cells:
            yield cell.source
            yield cell.sampler
            yield cell.explainer.part
            yield from (s.part for s in cell.scorers.values())
            yield from (a.part for a in cell.alternatives.values() if a)
            yield from cell.source.nested
        yield from (role.part for role in self.roles.values())


# --- Building -----------------------------------------------------------------------------------------------


def load_task(
    reference: str | Path | Mapping[str, Any],
    *,
    registry: Registry,
    overrides: Mapping[str, Any] | None = None,
    llms: Mapping[str, str] | None = None,
    check: bool = True,
) -> Task:
    """Read a spec and build the task, reporting every mistake at once.

    Args:
        reference: Name of a shipped task, path of a spec file, or the spec itself as a mapping.
        registry: Where plugins are found.
        overrides: Dotted keys to set, as `--set` does.
        llms: Models to put in place of roles', as `--llm ROLE=MODEL` does.
        check: Whether each plugin looks if what its options name is there.

    Raises:
        SpecError: If anything in the spec is wrong.
    """
    if isinstance(reference, Mapping):
        document = Document(dict(reference), {})
    else:
        document = read_document(
            find_spec(str(reference), registry), lambda name, file: find_include(name, file, registry)
        )
    if "group" in document.data:
        raise SpecError(
            [f"{reference}: is a group of tasks, which `saeval run`, `plan` and `validate` take; name one of its tasks"]
        )
    if llms:
        for role, model in llms.items():
            if role not in document.data.get("llms", {}):
                have = ", ".join(document.data.get("llms", {})) or "none"
                raise SpecError([f"--llm {role}={model}: the task has no role {role!r}; it has: {have}"])
            # Options of the model that stood there before need not make sense for this one.
            document = override(document, {f"llms.{role}": {"model": model}})
    if overrides:  # last, so that they can give such a model its own options
        document = override(document, overrides)
    return _Builder(document, registry, check).task()


class _Builder:
    def __init__(self, document: Document, registry: Registry, check: bool):
        self.template = document
        self.document = document
        self.registry = registry
        self.check = check
        self.problems: list[str] = []

    def task(self) -> Task:
        cells: list[Cell] = []
        spec: TaskSpec | None = None
        roles: dict[str, RolePart] = {}
        for axes, document in cells_of(self.document):
            self.document = document
            spec = parse(document)
            if not roles:
                roles = self.roles(spec)
            cells += self.cells(spec, axes, roles)
        if spec is not None and spec.checks is not None and spec.checks not in spec.llms:
            self.fail(("checks",), f"there is no role {spec.checks!r} under llms")
        trackers = self.trackers(spec) if spec is not None else ()
        if spec is not None and cells:
            self.check_findings(spec.findings, cells[0])
        if self.problems:
            raise SpecError(list(dict.fromkeys(self.problems)))
        assert spec is not None  # cells_of yields at least one
        cells = _without_twins(cells)
        return Task(
            spec.task, spec.version, spec.description, self.template.data, tuple(cells), roles, spec.run,
            self.rank_by(spec, cells[0]), tuple(spec.measure), spec.checks, trackers, tuple(spec.findings),
        )  # fmt: skip

    def trackers(self, spec: TaskSpec) -> tuple[Part[Tracker], ...]:
        parts = [self.plugin("tracker", t, ("run", "trackers", i)) for i, t in enumerate(spec.run.trackers)]
        return tuple(part for part in parts if part is not None)

    def check_findings(self, findings: Sequence[FindingSpec], cell: Cell) -> None:
        """Report scores and axes that findings name and the task does not have."""
        known = ["baseline", *cell.axes]
        for i, finding in enumerate(findings):
            names: list[tuple[KeyPath, object]] = [(("score",), finding.score), (("than",), finding.than)]
            names += [(("correlation", k), name) for k, name in enumerate(finding.correlation or ())]
            names += [(("tokens", k), name) for k, name in enumerate(finding.tokens or ())]
            for place, name in names:
                if isinstance(name, str) and name != "chance" and (trouble := _no_such_score(name, cell)):
                    self.fail(("findings", i, *place), trouble)
            axes: list[KeyPath] = [("cells", axis) for axis in finding.cells]
            axes += [("than_cells", axis) for axis in finding.than_cells or {}]
            axes += [("along", finding.along)] if finding.along is not None else []
            for place in axes:
                axis = str(place[-1])
                if axis not in known:
                    hint = did_you_mean(axis, known)
                    self.fail(("findings", i, place[0]), f"no axis {axis!r}{hint}; there are: {', '.join(known)}")

    def fail(self, path: KeyPath, message: str) -> None:
        self.problems.append(f"{self.document.where(path)}: {message}")

    def plugin(self, kind: str, spec: PartSpec, path: KeyPath) -> Part[Any] | None:
        """Find a plugin, fill in its options, and let it look whether what they name is there."""
        try:
            file, _ = self.document.places.get((*path, "use"), (None, 0))
            loaded = self.registry.get(kind, spec.use, base=file.parent if file else None)
        except PluginError as error:
            self.fail((*path, "use"), str(error))
            return None
        return self.instance(loaded, spec.with_, (*path, "with"))

    def instance(self, loaded: Loaded, options: Mapping[str, Any], path: KeyPath) -> Part[Any] | None:
        before = len(self.problems)
        nested = {k: part for k, v in options.items() if (part := self.nested(loaded.cls, k, v, path)) is not None}
        if len(self.problems) > before:
            return None
        values = {k: nested[k].plugin if k in nested else v for k, v in options.items()}
        try:
            plugin = loaded.cls(**values)
            if self.check:
                plugin.check()
        except ValidationError as error:
            for loc, message in options_error(loaded.cls, error):
                self.fail((*path, *loc), message)
            return None
        except InputError as error:
            self.fail(path[:-1], str(error))
            return None
        return Part(plugin, loaded, tuple(nested.values()))

    def nested(self, cls: type[Plugin], key: str, value: Any, path: KeyPath) -> Part[Any] | None:
        """Build the part under an option that holds a plugin (a source's `coder`); None for any other option."""
        kind = _kind_of_option(cls, key)
        if kind is None or isinstance(value, Plugin):
            return None
        try:
            spec = PartSpec.model_validate({"use": value} if isinstance(value, str) else value)
        except ValidationError:
            self.fail((*path, key), f"write `{{use: NAME, with: {{…}}}}` for a {kind}")
            return None
        return self.plugin(kind, spec, (*path, key))

    def roles(self, spec: TaskSpec) -> dict[str, RolePart]:
        roles = {}
        for role, role_spec in spec.llms.items():
            path: KeyPath = ("llms", role)
            options = dict(role_spec.model_extra or {})
            known = set(RoleSettings.model_fields)
            try:
                settings = RoleSettings.model_validate({k: v for k, v in options.items() if k in known})
            except ValidationError as error:
                for e in error.errors():
                    self.fail((*path, *e["loc"]), e["msg"])
                continue
            loaded, rest = self.llm(role_spec.model, (*path, "model"))
            if loaded is None:
                continue
            others = {k: v for k, v in options.items() if k not in known}
            part = self.instance(loaded, {"model": rest, **others}, path)
            if part is not None:
                roles[role] = RolePart(role, str(role_spec.model), part, settings)
        return roles

    def llm(self, model: str, path: KeyPath) -> tuple[Loaded | None, str]:
        """Pick the LLM plugin by the model's prefix; a name that no plugin claims is a litellm name.

        An installed package claims only the names of its own LLM plugins: one called `saeval-openai` leaves
        `openai/gpt-4o-mini` what it was.
        """
        first, _, rest = model.partition("/")
        if rest and (loaded := self.registry.find("llm", first)):
            return loaded, rest
        if rest and first in self.registry.namespaces:
            second, _, others = rest.partition("/")
            try:
                if any(kind == "llm" for kind, _ in self.registry.load(first)):
                    return self.registry.get("llm", f"{first}/{second}"), others
            except PluginError as error:
                self.fail(path, str(error))
                return None, ""
        return self.registry.get("llm", "litellm"), model

    def step(self, kind: str, spec: PartSpec, path: KeyPath, roles: Mapping[str, RolePart]) -> StepPart[Any] | None:
        part = self.plugin(kind, spec, path)
        if part is None:
            return None
        step: Step = part.plugin
        role = spec.llm or step.llm_role
        if spec.llm and step.llm_role is None:
            self.fail((*path, "llm"), f"{part.loaded.id} asks no language model; leave `llm` out")
        if role is not None and role not in self.document.data.get("llms", {}):
            have = ", ".join(self.document.data.get("llms", {})) or "none"
            self.fail(path, f"{part.loaded.id} asks the role {role!r}, which is not under llms (there: {have})")
            return None
        asked = roles.get(role) if role else None
        if asked and "logprobs" in step.needs() and not asked.part.plugin.can_score:
            self.fail(
                path,
                f"{part.loaded.id} needs a model that scores continuations, and {asked.model} cannot; use an hf/… model for the role {role!r}",
            )
        baselines = None if spec.baselines is None else frozenset(spec.baselines)
        return StepPart(part, role, spec.when.latents if spec.when else None, baselines)

    def lends(self, source: Part[ActivationSource], part: Part[Any], path: KeyPath) -> None:
        """Report what a part needs and the source cannot lend."""
        for need in sorted(part.plugin.needs() & _LENT.keys() - source.plugin.offers()):
            self.fail(path, f"{part.loaded.id} needs {_LENT[need]}, which the source {source.loaded.id} does not have")

    def cells(self, spec: TaskSpec, axes: Mapping[str, Any], roles: Mapping[str, RolePart]) -> list[Cell]:
        source = self.plugin("source", spec.source, ("source",))
        sampler = self.plugin("sampler", spec.sampler, ("sampler",))
        explainer = self.step("explainer", spec.explainer, ("explainer",), roles)
        if not spec.scorers:
            self.fail(("scorers",), "give at least one scorer")
        scorers = {k: self.step("scorer", s, ("scorers", k), roles) for k, s in spec.scorers.items()}
        alternatives: dict[str, StepPart[Explainer] | None] = {}
        shuffled_latents = None
        coders: list[tuple[PartSpec, KeyPath]] = []
        for i, baseline in enumerate(spec.baselines):
            path: KeyPath = ("baselines", i)
            if baseline.use == SHUFFLED:
                alternatives[SHUFFLED] = None
                shuffled_latents = baseline.when.latents if baseline.when else None
            elif self.registry.find("explainer", _EXPLANATION_BASELINES.get(baseline.use, baseline.use)):
                named = baseline.model_copy(update={"use": _EXPLANATION_BASELINES.get(baseline.use, baseline.use)})
                if (step := self.step("explainer", named, path, roles)) is not None:
                    alternatives[baseline.use] = step
            elif self.registry.find("coder", baseline.use):
                coders.append((baseline, path))
            else:
                known = [SHUFFLED, *_EXPLANATION_BASELINES, "top_tokens", "random_sae", "neurons"]
                self.fail(
                    path,
                    f"no baseline {baseline.use!r}{did_you_mean(baseline.use, known)}; there are: {', '.join(known)}",
                )
        for label, scorer in spec.scorers.items():
            for name in scorer.baselines or ():
                if name not in alternatives:
                    there = ", ".join(alternatives) or "none"
                    self.fail(
                        ("scorers", label, "baselines"),
                        f"{name!r} is not an explanation baseline of this task; there are: {there}",
                    )
        if not (source and sampler and explainer and all(scorers.values())):
            return []
        needing: dict[KeyPath, Part[Any]] = {("sampler",): sampler, ("explainer",): explainer.part}
        needing |= {("scorers", k): s.part for k, s in scorers.items() if s}
        needing |= {("baselines", i): a.part for i, b in enumerate(spec.baselines) if (a := alternatives.get(b.use))}
        for place, part in needing.items():
            self.lends(source, part, place)
        names = {axis: axis_id(value) for axis, value in axes.items()}
        cell = Cell(
            _cell_name(names), names, None, source, sampler, spec.latents, explainer,
            {k: s for k, s in scorers.items() if s}, alternatives, shuffled_latents, _alone(spec, sampler.plugin),
        )  # fmt: skip
        return [cell, *self.coder_baselines(cell, coders, axes)]

    def coder_baselines(
        self, cell: Cell, coders: Sequence[tuple[PartSpec, KeyPath]], axes: Mapping[str, Any]
    ) -> Iterator[Cell]:
        """Yield the cell with its coder replaced by each baseline coder."""
        for spec, path in coders:
            part = self.plugin("coder", spec, path)
            if part is None:
                continue
            try:
                source = cell.source.plugin.with_coder(part.plugin)
                if self.check:
                    source.check()
            except InputError as error:
                self.fail(path, str(error))
                continue
            # The axes that only choose the coder do not tell baseline cells apart.
            options = self.template.data["source"]["with"]
            others = {key: value for key, value in options.items() if key != "coder"}
            moved = [a for a in axes if _uses(options.get("coder"), a) and not _uses(others, a)] or ["coder"]
            names = {**{a: n for a, n in cell.axes.items() if a not in moved}, **dict.fromkeys(moved, spec.use)}
            names = {axis: names[axis] for axis in dict.fromkeys([*cell.axes, *moved])}
            latents = cell.latents
            if spec.when is not None:
                latents = latents.model_copy(update={"n": min(latents.n, spec.when.latents)})
            yield Cell(
                _cell_name(names), names, spec.use, Part(source, cell.source.loaded, (part,)), cell.sampler, latents,
                cell.explainer, cell.scorers, cell.alternatives, cell.shuffled_latents, cell.alone,
            )  # fmt: skip

    def rank_by(self, spec: TaskSpec, cell: Cell) -> str:
        label, step = next(iter(cell.scorers.items()))
        wanted = spec.leaderboard.rank_by
        if wanted is None:
            return f"{label}.{step.part.plugin.metrics[0].name}"
        label, _, metric = wanted.partition(".")
        if label not in cell.scorers:
            raise SpecError(
                [
                    f"{self.document.where(('leaderboard', 'rank_by'))}: no scorer {label!r}{did_you_mean(label, list(cell.scorers))}"
                ]
            )
        known = [m.name for m in cell.scorers[label].part.plugin.metrics]
        metric = metric or known[0]
        if metric not in known:
            raise SpecError(
                [
                    f"{self.document.where(('leaderboard', 'rank_by'))}: {label} has no metric {metric!r}; it has: {', '.join(known)}"
                ]
            )
        return f"{label}.{metric}"


def _no_such_score(name: str, cell: Cell) -> str:
    """Say what part of `LABEL.METRIC of EXPLANATION` a cell does not have; nothing when it has all."""
    label, metric, explanation = score_reference(name)
    if label not in cell.scorers:
        return f"no scorer {label!r}{did_you_mean(label, list(cell.scorers))}; there are: {', '.join(cell.scorers)}"
    metrics = [m.name for m in cell.scorers[label].part.plugin.metrics]
    if metric is not None and metric not in metrics:
        return f"{label} has no metric {metric!r}{did_you_mean(metric, metrics)}; it has: {', '.join(metrics)}"
    explanations = ["explanation", *cell.alternatives]
    if explanation not in explanations:
        have = ", ".join(explanations)
        return f"no explanation baseline {explanation!r}{did_you_mean(explanation, explanations)}; there are: {have}"
    return ""


_LENT: dict[Need, str] = {"subject": "the live model", "coder": "the coder's weights"}


def _kind_of_option(cls: type[Plugin], key: str) -> str | None:
    """Return the kind of plugin that an option holds, if it holds one."""
    field = cls.model_fields.get(key)
    if field is None:
        return None
    candidates = [field.annotation, *typing.get_args(field.annotation)]
    return next((kind for candidate in candidates if (kind := kind_of(candidate))), None)


def _uses(template: Any, axis: str) -> bool:
    """Whether a part of a spec names an axis of the matrix."""
    return re.search(rf"\$\{{matrix\.{re.escape(axis)}[.}}]", str(template)) is not None


def _alone(spec: TaskSpec, sampler: Sampler) -> bool:
    """Whether listed latents are wanted, and nothing that takes the activations of others."""
    return spec.latents.select == "list" and not OF_ALL_LATENTS & {*spec.measure} and sampler.reads_one_latent()


def _cell_name(axes: Mapping[str, str]) -> str:
    """Join the axes to a name that is fit for a folder: `coder=topk,layer=9`."""
    name = ",".join(f"{axis}={value}" for axis, value in axes.items()) or "all"
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", name)[:150]


def _without_twins(cells: Sequence[Cell]) -> list[Cell]:
    """Leave out baseline cells that several contestants share.

    Raises:
        SpecError: If two contestants have the same name.
    """
    kept: dict[str, Cell] = {}
    for cell in cells:
        twin = kept.setdefault(cell.name, cell)
        if twin is not cell and not (cell.baseline and twin.source.identity == cell.source.identity):
            raise SpecError([f"matrix: two cells are called {cell.name!r}; give their axis values different ids"])
    return list(kept.values())
