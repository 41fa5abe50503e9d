"""Builds a task from its spec: finds plugins, checks options, expands the matrix; loads no model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import JsonValue, ValidationError

from saeval._util import InputError, Located, PluginError, SpecError, did_you_mean
from saeval.plugin.base import ActivationSource, Explainer, Need, Plugin, Sampler, Scorer, Step
from saeval.plugin.registry import Loaded, Registry
from saeval.task.files import find_include, find_spec
from saeval.task.names import ranking, wrong_names
from saeval.task.part_maker import PartMaker
from saeval.task.parts import Cell, Part, RolePart, StepPart, Task
from saeval.task.spec import OF_ALL_LATENTS
from saeval.task.spec.document import KeyPath, SpecDocument, from_python, override, read_document
from saeval.task.spec.matrix import axis_id, cells_of
from saeval.task.spec.models import (
    BASELINE_KEYS,
    SHUFFLED,
    LatentSelection,
    MeasureName,
    PartSpec,
    RoleSpec,
    Spec,
    When,
    expand_short_forms,
)
from saeval.task.spec.validation import parse, refuse_secrets

AGAIN = "again"
"""Name of the steps whose model is asked a second time, for variance components."""
HALVES = ("half_0", "half_1")
"""Names of explanations, and suffixes of scorer labels, for one half of the corpus, for variance components."""
REPEATED = (f"_{AGAIN}", *(f"_{name}" for name in HALVES))
"""Label suffixes of scorers that repeat others."""
_EXPLANATION_BASELINES = {"random_explanation": "random"}
"""Explainers of explanation baselines whose name in specs differs from the explainer's."""
_BASELINE_KINDS: tuple[Literal["explainer", "coder"], ...] = ("explainer", "coder")
_NEED_NAMES: dict[Need, str] = {
    "subject": "the live model",
    "coder": "the coder's weights",
    "text": "a model that reads any text",
}


def load_task(
    reference: str | Path | Mapping[str, Any] | Spec,
    *,
    registry: Registry,
    overrides: Mapping[str, Any] | None = None,
    llms: Mapping[str, str] | None = None,
    check: bool = True,
) -> Task:
    """Read a spec and build the task, reporting all mistakes together.

    Args:
        reference: Name of a shipped task, path of a spec file, or the spec itself, as an object or a mapping.
        registry: The plugin registry.
        overrides: Dotted keys to set, as with `--set`.
        llms: Models that replace those of roles, as with `--llm ROLE=MODEL`.
        check: Whether each plugin checks that the files and models in its options exist.

    Raises:
        SpecError: If anything in the spec is wrong.
    """
    if isinstance(reference, Spec):
        reference = reference.as_mapping()
    if isinstance(reference, Mapping):
        document = SpecDocument(from_python(reference), {})
    else:
        document = read_document(
            find_spec(str(reference), registry), lambda name, file: find_include(name, file, registry)
        )
    if "group" in document.data:
        raise SpecError(
            [
                f"{reference}: is a group of tasks, which only `saeval run`, `plan` and `validate` accept; name one of "
                "its tasks"
            ]
        )
    if llms:
        for role, model in llms.items():
            if role not in document.data.get("llms", {}):
                have = ", ".join(document.data.get("llms", {})) or "none"
                raise SpecError([f"--llm {role}={model}: the task has no role {role!r}; it has: {have}"])
            # Drops the options of the previous model, which may not apply to this one.
            document = override(document, {f"llms.{role}": {"model": Located(model)}})
    if overrides:  # last, so that they can set options of these models
        document = override(document, overrides)
    refuse_secrets(document)
    return _Builder(document, registry, check).task()


class _Baselines(NamedTuple):
    """The entries of `baselines`, by the part that they replace."""

    alternatives: dict[str, StepPart[Explainer] | None]
    shuffled_latents: int | None
    coders: list[tuple[PartSpec, KeyPath]]


class _Builder(PartMaker):
    """Builds the parts of every cell of the matrix, and checks that they fit together."""

    def __init__(self, document: SpecDocument, registry: Registry, check: bool):
        super().__init__(document, registry, check)
        self.template = document

    def task(self) -> Task:
        cells: list[Cell] = []
        spec: Spec | None = None
        roles: dict[str, RolePart] = {}
        try:
            for axes, document in cells_of(self.document):
                self.document = document
                try:
                    spec = parse(document)
                except SpecError as error:
                    self.problems += error.problems
                    self.check_parts()
                    continue
                if document.unfilled:  # the matrix reports it
                    self.check_parts()
                    continue
                if not roles:
                    roles = self.roles(spec.llms)
                cells += self.cells(spec, axes, roles)
        except SpecError as error:  # of the matrix itself
            self.problems += error.problems
        trackers = self.trackers(spec) if spec is not None else ()
        rank_by = self.check_names(spec, cells) if spec is not None else ""
        if self.problems:
            raise SpecError(list(dict.fromkeys(self.problems)))
        assert spec is not None  # cells_of yields at least one
        cells = _merge_baseline_cells(cells)
        return Task(
            spec.task,
            spec.version,
            spec.description,
            self.template.data,
            tuple(cells),
            roles,
            spec.run,
            rank_by,
            tuple(spec.measure),
            spec.checks,
            trackers,
            tuple(spec.findings),
            spec.leaderboard.correct_for_judge,
            tuple(spec.controls),
        )

    def check_names(self, spec: Spec, cells: Sequence[Cell]) -> str:
        """Report names in a spec that its cells do not have; return what ranks the leaderboard."""
        for path, mistake in wrong_names(spec, cells):
            self.fail(path, mistake)
        if not cells:
            return ""
        rank_by, mistake = ranking(spec, cells[0])
        if mistake:
            self.fail(("leaderboard", "rank_by"), mistake)
        return rank_by

    def check_parts(self) -> None:
        """If a spec is invalid, report the mistakes in each part that can be parsed."""
        data = expand_short_forms(self.document.data)
        scorers = data.get("scorers")
        places: list[tuple[str, KeyPath, Any]] = [(k, (k,), data.get(k)) for k in ("source", "sampler", "explainer")]
        places += [("scorer", ("scorers", k), v) for k, v in (scorers if isinstance(scorers, dict) else {}).items()]
        for kind, path, value in places:
            with suppress(ValidationError):
                self.plugin(kind, PartSpec.model_validate(value), path)
        llms = data.get("llms")
        for role, value in (llms if isinstance(llms, dict) else {}).items():
            with suppress(ValidationError):
                self.roles({role: RoleSpec.model_validate(value)})

    def check_latents(self, latents: LatentSelection) -> None:
        """Report `select: list` without latents, and latents that would not be used."""
        if latents.select == "list" and not latents.indices:
            self.fail(("latents",), "`select: list` requires `indices`; list the latents, or omit `select`")
        if latents.select != "list" and latents.indices:
            self.fail(("latents", "indices"), "is used only with `select: list`; add it, or omit `indices`")

    def check_needs(self, source: Part[ActivationSource], part: Part[Any], path: KeyPath) -> None:
        """Report needs of a part that the source does not provide."""
        for need in sorted(part.plugin.needs() & _NEED_NAMES.keys() - source.plugin.offers()):
            self.fail(
                path,
                f"{part.loaded.id} needs {_NEED_NAMES[need]}, which the source {source.loaded.id} does not provide; "
                "use the source transformers, or drop this part",
            )

    def check_marks(self, scorers: Mapping[str, StepPart[Any] | None]) -> None:
        """Report scorers that share decoys, but mark tokens from different shares of a window's maximum on."""
        steps = {label: step.part.plugin for label, step in scorers.items() if step}
        marks = {label: step.marks_from() for label, step in steps.items() if "decoy" in step.needs()}
        first = next(iter(marks), "")
        for label, threshold in marks.items():
            if threshold != marks[first]:
                self.fail(
                    ("scorers", label),
                    f"marks tokens at the threshold {threshold:g}, but {first} at {marks[first]:g}, and wrong marks of "
                    "both are on the same other latent; use one threshold, or an axis of the matrix for the threshold",
                )

    def check_measures(self, source: Part[ActivationSource], explainer: Part[Explainer]) -> None:
        """Report measures of an explainer with the name of a fact about the coder."""
        taken = {*get_args(MeasureName), *(measure.name for measure in source.measures)}
        for name in sorted(taken & {measure.name for measure in explainer.plugin.measures}):
            self.fail(
                ("explainer",),
                f"{explainer.loaded.id} has a measure {name!r}, which is a fact about the coder; rename it",
            )

    def cells(self, spec: Spec, axes: Mapping[str, Any], roles: Mapping[str, RolePart]) -> list[Cell]:
        self.check_latents(spec.latents)
        source = self.plugin("source", spec.source, ("source",))
        sampler = self.plugin("sampler", spec.sampler, ("sampler",))
        explainer = self.step("explainer", spec.explainer, ("explainer",), roles)
        if not spec.scorers:
            self.fail(("scorers",), "give at least one scorer")
        scorers = {k: self.step("scorer", s, ("scorers", k), roles) for k, s in spec.scorers.items()}
        alternatives, shuffled_latents, coders = self.baselines(spec, scorers, roles)
        if not (source and sampler and explainer and scorers and all(scorers.values())):
            return []
        if spec.variance is not None:
            repeated = self.add_repeats(spec, spec.variance.latents, explainer, scorers, roles)
            added = {AGAIN: repeated} if repeated is not None else {}
            if spec.variance.corpus:
                added |= self.add_halves(spec, spec.variance.latents, [*alternatives, *added], scorers, roles)
            alternatives |= added
        if self.check:
            try:
                source.plugin.check_window(sampler.plugin.window)
            except InputError as error:
                self.fail(("sampler",), str(error))
        needing: dict[KeyPath, Part[Any]] = {("sampler",): sampler, ("explainer",): explainer.part}
        needing |= {("scorers", k): s.part for k, s in scorers.items() if s}
        needing |= {("baselines", i): a.part for i, b in enumerate(spec.baselines) if (a := alternatives.get(b.use))}
        for place, part in needing.items():
            self.check_needs(source, part, place)
        self.check_measures(source, explainer.part)
        self.check_marks(scorers)
        steps: list[StepPart[Any] | None] = [explainer, *alternatives.values(), *scorers.values()]
        names = {axis: axis_id(value) for axis, value in axes.items()}
        control = next((name for name in spec.controls if name in names.values()), None)
        cell = Cell(
            _cell_name(names),
            names,
            control,
            source,
            sampler,
            spec.latents,
            explainer,
            {k: s for k, s in scorers.items() if s},
            alternatives,
            shuffled_latents,
            _needs_only_listed(spec, sampler.plugin, [step.part.plugin for step in steps if step]),
        )
        return [cell, *(self.coder_baselines(cell, coders, axes) if control is None else ())]

    def add_repeats(
        self,
        spec: Spec,
        n: int,
        explainer: StepPart[Explainer],
        scorers: dict[str, StepPart[Any] | None],
        roles: Mapping[str, RolePart],
    ) -> StepPart[Explainer] | None:
        """Add scorers `LABEL_again` that ask the model a second time, on n latents; return such an explainer."""
        around = partial(self._around, AGAIN, n, roles)
        for label, scorer in list(scorers.items()):
            if scorer is None or scorer.role is None:
                continue
            made = around("scorer", spec.scorers[label], ("scorers", label))
            scorers[f"{label}_{AGAIN}"] = made and replace(made, baselines=frozenset())
            if scorer.baselines is not None:
                scorers[label] = replace(scorer, baselines=scorer.baselines | {AGAIN})
        return around("explainer", spec.explainer, ("explainer",)) if explainer.role is not None else None

    def add_halves(
        self,
        spec: Spec,
        n: int,
        others: Sequence[str],
        scorers: dict[str, StepPart[Any] | None],
        roles: Mapping[str, RolePart],
    ) -> dict[str, StepPart[Explainer]]:
        """Add scorers `LABEL_half_0` and `LABEL_half_1` on the two halves of the corpus; return their explainers.

        Args:
            spec: The spec.
            n: Number of latents.
            others: Names of the other explanations, besides the cell's own.
            scorers: Dictionary to add scorers to, which score explanations from their half only; those in it do not.
            roles: Language models.
        """
        explainers: dict[str, StepPart[Explainer]] = {}
        own = {label: spec.scorers[label] for label in spec.scorers if scorers[label] is not None}
        for label in list(scorers):
            if (scorer := scorers[label]) is not None and scorer.baselines is None:
                scorers[label] = replace(scorer, baselines=frozenset(others))
        for half, name in enumerate(HALVES):
            of_half = partial(self._around, "half", n, roles, half=half, key=spec.run.seed)
            for label, part in own.items():
                made = of_half("scorer", part, ("scorers", label))
                scorers[f"{label}_{name}"] = made and replace(made, baselines=frozenset({name}), own=False)
            if (explainer := of_half("explainer", spec.explainer, ("explainer",))) is not None:
                explainers[name] = explainer
        return explainers

    def _around(
        self,
        use: str,
        n: int,
        roles: Mapping[str, RolePart],
        kind: str,
        part: PartSpec,
        path: KeyPath,
        **options: JsonValue,
    ) -> StepPart[Any] | None:
        """Return a plugin that wraps an explainer or scorer of the spec, on n latents."""
        inner: dict[str, JsonValue] = {kind: {"use": part.use, "with": part.with_}}
        return self.step(
            kind, PartSpec(use=use, with_=inner | options, llm=part.llm, when=When(latents=n)), path, roles
        )

    def baselines(
        self, spec: Spec, scorers: Mapping[str, StepPart[Scorer] | None], roles: Mapping[str, RolePart]
    ) -> _Baselines:
        """Split the baselines into explanations and coders, and check the names of baselines in scorers."""
        alternatives: dict[str, StepPart[Explainer] | None] = {}
        shuffled_latents = None
        coders: list[tuple[PartSpec, KeyPath]] = []
        for i, baseline in enumerate(spec.baselines):
            path: KeyPath = ("baselines", i)
            if baseline.use == SHUFFLED:
                self.check_keys(baseline, path, BASELINE_KEYS[SHUFFLED], SHUFFLED)
                alternatives[SHUFFLED] = None
                shuffled_latents = baseline.when.latents if baseline.when else None
                continue
            named = baseline.model_copy(update={"use": _EXPLANATION_BASELINES.get(baseline.use, baseline.use)})
            kind = self.baseline_kind(named.use, path)
            if kind == "coder":
                coders.append((baseline, path))
            elif kind == "explainer" and (step := self.step("explainer", named, path, roles)) is not None:
                name = _baseline_name(baseline.use, step.part.plugin)
                if name in alternatives:
                    self.fail(path, f"two baselines have the name {name!r}; remove one, or change the class's `name`")
                alternatives[name] = step
        for label, scorer in spec.scorers.items():
            path = ("scorers", label, "baselines")
            step = scorers[label]
            if scorer.baselines and step is not None and not step.part.plugin.reads_explanation:
                self.fail(path, f"{label} does not measure the explanation, so it scores no baselines; remove this key")
            for name in scorer.baselines or ():
                if name not in alternatives:
                    there = ", ".join(alternatives) or "none"
                    self.fail(path, f"{name!r} is not an explanation baseline of this task; available: {there}")
        return _Baselines(alternatives, shuffled_latents, coders)

    def baseline_kind(self, use: str, path: KeyPath) -> Literal["explainer", "coder"] | None:
        """Return the kind of plugin of a baseline; None if there is no such plugin, after reporting it."""
        reasons = []
        for kind in _BASELINE_KINDS:
            try:
                self.registry.get(kind, use, base=self.document.folder((*path, "use")))
            except PluginError as error:
                reasons.append(str(error))
            else:
                return kind
        if "/" in use or ".py" in use:  # a package or a file, so report what is wrong with it
            self.fail(path, f"neither an explainer nor a coder: {'; '.join(reasons)}")
            return None
        built_in = [p.cls.name for kind in _BASELINE_KINDS for p in self.registry.names(kind) if _is_built_in(p)]
        known = [SHUFFLED, *_EXPLANATION_BASELINES, *built_in]
        self.fail(path, f"no baseline {use!r}{did_you_mean(use, known)}; available: {', '.join(known)}")
        return None

    def coder_baselines(
        self, cell: Cell, coders: Sequence[tuple[PartSpec, KeyPath]], axes: Mapping[str, Any]
    ) -> Iterator[Cell]:
        """Yield the cell with its coder replaced by each baseline coder."""
        for spec, path in coders:
            part = self.plugin("coder", spec, path, BASELINE_KEYS["coder"])
            if part is None:
                continue
            try:
                source = cell.source.plugin.with_coder(part.plugin)
                if self.check:
                    source.check()
            except InputError as error:
                self.fail(path, str(error))
                continue
            name = _baseline_name(spec.use, part.plugin)
            # Axes that only select the coder do not distinguish baseline cells.
            options = self.template.data["source"]["with"]
            others = {key: value for key, value in options.items() if key != "coder"}
            moved = [a for a in axes if _uses(options.get("coder"), a) and not _uses(others, a)] or ["coder"]
            names = {**{a: n for a, n in cell.axes.items() if a not in moved}, **dict.fromkeys(moved, name)}
            names = {axis: names[axis] for axis in dict.fromkeys([*cell.axes, *moved])}
            latents = cell.latents
            if spec.when is not None:
                latents = latents.model_copy(update={"n": min(latents.n, spec.when.latents)})
            yield Cell(
                _cell_name(names),
                names,
                name,
                Part(source, cell.source.loaded, (part,)),
                cell.sampler,
                latents,
                cell.explainer,
                cell.scorers,
                cell.alternatives,
                cell.shuffled_latents,
                cell.alone,
            )


def _baseline_name(use: str, plugin: Plugin) -> str:
    """Return the name of a baseline in results: the class's `name` if it comes from a package or a file."""
    return plugin.name if "/" in use or ".py:" in use else use


def _is_built_in(loaded: Loaded) -> bool:
    return loaded.id.startswith("saeval/")


def _uses(template: Any, axis: str) -> bool:
    """Return whether a part of a spec refers to an axis of the matrix."""
    return re.search(rf"\$\{{matrix\.{re.escape(axis)}[.}}]", str(template)) is not None


def _needs_only_listed(spec: Spec, sampler: Sampler, steps: Iterable[Step]) -> bool:
    """Return whether only the activations of listed latents are needed."""
    if spec.latents.select != "list" or OF_ALL_LATENTS & {*spec.measure}:
        return False
    return sampler.reads_one_latent() and not any({"decoy", "cofiring"} & step.needs() for step in steps)


def _cell_name(axes: Mapping[str, str]) -> str:
    """Join the axes to a name that is valid as a folder name: `coder=topk,layer=9`."""
    name = ",".join(f"{axis}={value}" for axis, value in axes.items()) or "all"
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", name)[:150]


def _renamed_for(baseline: Cell, contestant: Cell) -> Cell:
    """Return a baseline's cell with the name of its contestant added."""
    axes = {
        axis: f"{value}-{contestant.axes.get(axis, contestant.name)}" if value == baseline.baseline else value
        for axis, value in baseline.axes.items()
    }
    return replace(baseline, name=_cell_name(axes), axes=axes)


def _merge_baseline_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Keep one copy of baseline cells that several contestants share.

    Raises:
        SpecError: If two contestants have the same name.
    """
    kept: dict[str, Cell] = {}
    contestant: Cell | None = None
    for cell in cells:
        contestant = contestant if cell.baseline else cell
        twin = kept.get(cell.name, cell)
        if contestant is not None and cell.baseline and twin.source.plugin != cell.source.plugin:
            cell = _renamed_for(cell, contestant)
        twin = kept.setdefault(cell.name, cell)
        if twin is not cell and not (cell.baseline and twin.source.plugin == cell.source.plugin):
            raise SpecError([f"matrix: two cells have the name {cell.name!r}; give their axis values different ids"])
    return list(kept.values())
