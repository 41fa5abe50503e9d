"""The task spec: reading YAML with the place of every value, merging includes and overrides, and its schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saeval.errors import SpecError, did_you_mean
from saeval.paths import Located

KeyPath = tuple[str | int, ...]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$"  # of a task or a group: fit for a folder
MOST_NODES, MOST_DEPTH = 100_000, 40  # a spec beyond these is a mistake or an attack


# --- The schema ---------------------------------------------------------------------------------------------


class SpecModel(BaseModel):
    """Base of the spec's parts: unknown keys are errors, field docstrings are the schema's text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


class When(SpecModel):
    """Limits a step to part of the latents."""

    latents: int = Field(ge=0)
    """Run on this many of the cell's latents, the first ones in its random order; on none, the step is left out."""


class PartSpec(SpecModel):
    """A plugin and its options."""

    use: str
    """Name of the plugin: a built-in's bare name, `acme/purity` of a package, or `./file.py:Class`."""
    with_: dict[str, Any] = Field(default={}, alias="with")
    """Its options; `saeval show KIND NAME` lists them."""
    llm: str | None = None
    """Role of `llms` that this step asks; the plugin's own default role when left out."""
    when: When | None = None
    """Run on part of the latents only."""
    baselines: list[str] | None = None
    """For a scorer: the explanation baselines it is run on, where not on all."""


class RoleSpec(BaseModel):
    """A language model for a role. Keys that are not listed here are options of the LLM plugin."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    model: str
    """`hf/…`, `openai_compatible/…`, `scripted/…`, `replay/…`, `acme/…`, or else a litellm name such as `openai/gpt-4o-mini`."""


class LatentSelection(SpecModel):
    """Which latents are explained and scored."""

    select: Literal["random", "list"] = "random"
    """`random`: drawn from those with enough windows; `list`: those under `indices`."""
    n: int = Field(default=100, ge=1)
    """Latents drawn."""
    indices: list[int] = []
    """Latents for `select: list`. They alone are collected where that is less work (ReLU, JumpReLU and gated coders), the
    sampler's windows depend on no others, and `measure` asks for none of `l0`, `density`, `frac_alive` and `fvu`."""
    min_windows: int = Field(default=200, ge=2)
    """Activating windows a latent must have in the corpus (paper: 200)."""


class RunOptions(SpecModel):
    """How the run is carried out; nothing here but the seed changes a number."""

    seed: int = 0
    """Seed that all random choices derive from."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    """Dollars to spend at most; the run stops cleanly there and can be resumed."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Share of a scorer's latents that may fail before the exit code is 1."""
    concurrency: Literal["auto"] | int = "auto"
    """Latents in flight at a time."""
    give_up_after: int = Field(default=10, ge=1)
    """Stop when this many latents in a row fail for the same reason, from the first on or because calls fail."""
    hang_after: float = Field(default=1800.0, gt=0)
    """Seconds after which a plugin that neither finishes nor asks a model anything, while nothing else moves, is called off."""
    executor: Literal["local", "ray"] = "local"
    """Where the work is done: `ray` is the cluster at RAY_ADDRESS, or a new one on this machine."""
    trackers: list[PartSpec] = []
    """Experiment trackers that are told of the run when it ends: `wandb`, `mlflow`, `trackio`."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that share the work with `executor: ray`; as many as the cluster has CPUs when left out."""


class LeaderboardOptions(SpecModel):
    """How the leaderboard is shown."""

    rank_by: str | None = None
    """`scorer.metric` that ranks; the first scorer's headline metric when left out."""
    group_by: str | None = None
    """Axis whose values are shown together."""
    x: str = "l0"
    """Measure that scores are plotted against."""


Measure = Literal["l0", "density", "frac_alive", "fvu", "d_sae", "tokens", "ce_recovered"]
_FREE: tuple[Measure, ...] = ("l0", "density", "frac_alive", "fvu", "d_sae", "tokens")  # known once a store is there

OF_ALL_LATENTS: frozenset[Measure] = frozenset({"l0", "density", "frac_alive", "fvu"})
"""Measures that take the activations of the whole dictionary."""

CellFilter = dict[str, str | int | float | list[str | int | float]]
"""Which cells are meant: ids by axis, one or several each, and `baseline: NAME`; contestants where that is left out."""


class FindingSpec(SpecModel):
    """A claim that the run's own numbers show, contradict or leave open; just one of the first four quantities is given."""

    claim: str
    """The claim, as a sentence."""
    score: str | None = None
    """Quantity: a scorer's mean over latents, `LABEL`, `LABEL.METRIC`, or either with ` of EXPLANATION` (a baseline's)."""
    correlation: tuple[str, str] | None = None
    """Quantity: the rank correlation of two scores over latents, each written as `score` is."""
    tokens: tuple[str, str] | None = None
    """Quantity: tokens that the first scorer takes for a latent, over those of the second."""
    similarity: Literal["explanations", "decoder", "encoder"] | None = None
    """Quantity: how alike the latents of pairs of cells are, matched, less what matching makes of random ones."""
    along: str | None = None
    """For `similarity`: an axis of numbers; the quantity is then the rank correlation of similarity and distance on it."""
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """For `similarity: explanations`: the sentence-transformers model."""
    cells: CellFilter = {}
    """Cells that the quantity is taken over."""
    is_: Literal["above", "below", "near"] = Field(alias="is")
    """What is claimed of it."""
    than: float | str | None = None
    """What it is held against: a number, `chance`, or another score; 0 when left out, or 1 for tokens, or the same score in
    `than_cells`."""
    than_cells: CellFilter | None = None
    """Cells of the other score; the same ones when left out."""
    within: float = Field(default=0.05, gt=0)
    """How far apart `near` may be."""

    @model_validator(mode="after")
    def _one_quantity(self) -> FindingSpec:
        quantities = ("score", "correlation", "tokens", "similarity")
        if sum(getattr(self, name) is not None for name in quantities) != 1:
            raise ValueError(f"give just one of {', '.join(quantities)}")
        if self.score is None and (isinstance(self.than, str) or self.than_cells is not None):
            raise ValueError("only a score can be held against a score; give a number as `than`")
        if self.along is not None and self.similarity is None:
            raise ValueError("`along` belongs to `similarity`")
        return self


def score_reference(text: str) -> tuple[str, str | None, str]:
    """Split `LABEL[.METRIC][ of EXPLANATION]` into label, metric (None: the headline) and explanation."""
    name, _, explanation = text.partition(" of ")
    label, _, metric = name.partition(".")
    return label, metric or None, explanation or "explanation"


class TaskSpec(SpecModel):
    """A task: what is compared, how it is explained and scored, and how the result is ranked."""

    saeval: Literal[1]
    """Version of the spec format."""
    task: str = Field(pattern=NAME)
    """Name of the task."""
    version: str
    """Version of the task; raise it when numbers may change."""
    description: str = ""
    """What the task is for."""
    tags: list[str] = []
    """Words to find it by."""
    checks: str | None = None
    """Role whose model this task is a check of; its result is shown beside every leaderboard judged by that model."""
    include: list[str] = []
    """Specs that this one builds on: `saeval://NAME.yaml` of a package's tasks, or paths beside this file."""
    llms: dict[str, RoleSpec] = {}
    """Language models by role."""
    matrix: dict[str, list[Any]] = {}
    """Axes of the leaderboard; a cell for each combination. `${matrix.axis.key}` stands for a value."""
    exclude: list[dict[str, Any]] = []
    """Combinations to leave out, by axis and id."""
    source: PartSpec
    """Where activations come from."""
    latents: LatentSelection = LatentSelection()
    """Which latents."""
    sampler: PartSpec = PartSpec(use="random")
    """Which windows explain and score a latent."""
    explainer: PartSpec
    """What explains."""
    scorers: dict[str, PartSpec]
    """What scores: a label of your own for each; `use` is the label when left out."""
    baselines: list[PartSpec] = []
    """What the scores are held against: `random_explanation`, `shuffled_explanation`, explainers, and coders."""
    measure: list[Measure] = list(_FREE)
    """Facts about the coder to report beside the scores; `ce_recovered` runs the model three times over 2 048 tokens."""
    findings: list[FindingSpec] = []
    """Claims that the report holds against the run's numbers."""
    run: RunOptions = RunOptions()
    """How to run."""
    leaderboard: LeaderboardOptions = LeaderboardOptions()
    """How to show."""


class GroupSpec(SpecModel):
    """A group: tasks that are run one after another, and end on one board."""

    saeval: Literal[1]
    """Version of the spec format."""
    group: str = Field(pattern=NAME)
    """Name of the group."""
    description: str = ""
    """What the tasks have in common."""
    tags: list[str] = []
    """Words to find it by."""
    tasks: list[str] = Field(min_length=1)
    """The tasks: names, or paths beside this file."""


# --- Reading, merging, overriding ---------------------------------------------------------------------------


class Document:
    """A spec as data, with the place where each value stands.

    Attributes:
        data: Mappings, lists and scalars; strings are `Located`.
        places: File (None: command line) and line of each value, by its path of keys.
    """

    def __init__(self, data: dict[str, Any], places: dict[KeyPath, tuple[Path | None, int]]):
        self.data = data
        self.places = places

    def where(self, path: KeyPath) -> str:
        """Return `file:line: a.b.c` for a value, or for the nearest thing around it that has a place."""
        dotted = ".".join(f"{p}" for p in path)
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                file, line = self.places[path[:end]]
                return f"{file.name}:{line}: {dotted}" if file else f"--set {dotted}"
        return dotted

    def merged_over(self, base: Document) -> Document:
        """Return `base` with this document's values over it.

        Mappings merge, everything else replaces; a part whose `use` changes starts clean, so that no option of
        another plugin is left behind.
        """
        data, places = deepcopy(base.data), dict(base.places)

        def merge(into: dict[str, Any], over: Mapping[str, Any], path: KeyPath) -> None:
            if "use" in over and "use" in into and over["use"] != into["use"]:
                into.clear()
            for key, value in over.items():
                if isinstance(value, Mapping) and isinstance(into.get(key), dict):
                    merge(into[key], value, (*path, key))
                else:
                    into[key] = deepcopy(value)

        merge(data, self.data, ())
        places.update(self.places)
        return Document(data, places)


def read_document(path: Path, locate: Callable[[str, Path], Path], _seen: tuple[Path, ...] = ()) -> Document:
    """Read a spec file and everything it includes.

    Args:
        path: The file.
        locate: Finds the file of an include reference, given it and the including file.

    Raises:
        SpecError: If a file is missing, is not YAML, has a key twice, or includes itself.
    """
    if path in _seen:
        raise SpecError([f"{path.name}: includes itself by way of {' > '.join(p.name for p in _seen)}"])
    document = _read_one(path)
    includes = document.data.get("include", [])
    if not isinstance(includes, list) or not all(isinstance(i, str) for i in includes):
        raise SpecError([f"{document.where(('include',))}: should be a list of file names"])
    base = Document({}, {})
    for reference in includes:
        base = read_document(locate(str(reference), path), locate, (*_seen, path)).merged_over(base)
    merged = document.merged_over(base)
    merged.data.pop("include", None)
    return merged


def _read_one(path: Path) -> Document:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot be read ({error})"]) from None
    if len(text) > 2_000_000:
        raise SpecError([f"{path}: {len(text):,} characters is too long for a spec"])
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path.name}:{mark.line + 1}" if mark else path.name
        raise SpecError([f"{place}: not YAML: {getattr(error, 'problem', None) or 'nested too deeply'}"]) from None
    if not isinstance(node, yaml.MappingNode):
        raise SpecError([f"{path.name}:1: a spec is a mapping that begins with `saeval: 1`"])
    return _convert(node, path)


def _convert(root: Any, file: Path) -> Document:
    """Turn YAML nodes into data, noting places, refusing duplicate keys, and bounding size and depth."""
    import yaml

    places: dict[KeyPath, tuple[Path | None, int]] = {}
    problems: list[str] = []
    constructor = yaml.SafeLoader("")
    count = 0

    def walk(node: Any, path: KeyPath) -> Any:
        nonlocal count
        count += 1
        line = node.start_mark.line + 1
        if count > MOST_NODES or len(path) > MOST_DEPTH:
            raise SpecError(
                [f"{file.name}:{line}: more than {MOST_NODES:,} values or {MOST_DEPTH} levels; is an alias repeated?"]
            )
        places.setdefault(path, (file, line))
        if isinstance(node, yaml.CollectionNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            problems.append(f"{file.name}:{line}: {node.tag}: tags are not allowed; a spec is plain data")
            return None
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            first: dict[str, int] = {}
            for key_node, value_node in node.value:
                key, key_line = str(key_node.value), key_node.start_mark.line + 1
                if key in first:
                    problems.append(f"{file.name}:{key_line}: key {key!r} is given twice (first on line {first[key]})")
                    continue
                first[key] = key_line
                places[(*path, key)] = (file, key_line)
                mapping[key] = walk(value_node, (*path, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [walk(item, (*path, i)) for i, item in enumerate(node.value)]
        try:
            value = constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{file.name}:{line}: {getattr(error, 'problem', None) or error}")
            return None
        return Located(value, file, line) if isinstance(value, str) else value

    data = walk(root, ())
    if problems:
        raise SpecError(problems)
    return Document(data, places)


def override(document: Document, assignments: Mapping[str, Any]) -> Document:
    """Return the document with dotted keys set, as `--set a.b=c` does.

    Raises:
        SpecError: If a key leads through something that is not a mapping or list.
    """
    data, places = deepcopy(document.data), dict(document.places)
    for dotted, value in assignments.items():
        keys = _keys(dotted)
        at: Any = data
        for i, key in enumerate(keys[:-1]):
            if isinstance(at, list) and isinstance(key, int) and key < len(at):
                at = at[key]
            elif isinstance(at, dict):
                at = at.setdefault(str(key), {})
            else:
                raise SpecError([f"--set {dotted}: {'.'.join(map(str, keys[: i + 1]))} is not there"])
        last = keys[-1]
        if isinstance(at, dict):
            at[str(last)] = value
        elif isinstance(at, list) and isinstance(last, int) and last < len(at):
            at[last] = value
        else:
            raise SpecError([f"--set {dotted}: its parent is {type(at).__name__}, not a mapping"])
        for known in [p for p in places if p[: len(keys)] == keys]:
            del places[known]
        places[keys] = (None, 0)
    return Document(data, places)


def _keys(dotted: str) -> KeyPath:
    return tuple(int(k) if k.isdigit() else k for k in dotted.split("."))


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `a.b=VALUE`, reading the value as YAML.

    Raises:
        SpecError: If there is no `=`, or the value is not YAML.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SpecError([f"--set {text}: write KEY=VALUE, such as run.seed=1"])
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        raise SpecError([f"--set {text}: the value is not YAML"]) from None
    return key, Located(parsed, None, 0) if isinstance(parsed, str) else parsed


# --- The matrix ---------------------------------------------------------------------------------------------

_SLOT = re.compile(r"\$\{([^}]*)\}")


def cells_of(document: Document) -> Iterator[tuple[dict[str, Any], Document]]:
    """Yield (axis values, document with them filled in) for every combination of the matrix.

    Raises:
        SpecError: If the matrix is malformed, or `${…}` names something that is not in it.
    """
    matrix = document.data.get("matrix", {})
    if not isinstance(matrix, dict) or not all(isinstance(v, list) and v for v in matrix.values()):
        raise SpecError([f"{document.where(('matrix',))}: each axis should be a list of values"])
    excluded = document.data.get("exclude", [])
    if not isinstance(excluded, list) or not all(isinstance(e, dict) and e for e in excluded):
        raise SpecError([f"{document.where(('exclude',))}: should be a list of mappings from axis to id"])
    problems: list[str] = []
    template = {k: v for k, v in document.data.items() if k not in ("matrix", "exclude")}
    yielded = False
    for values in product(*matrix.values()):
        axes = dict(zip(matrix, values, strict=True))
        ids = {axis: axis_id(value) for axis, value in axes.items()}
        if any(all(ids.get(k) == str(v) for k, v in e.items()) for e in excluded):
            continue
        filled = _fill(template, axes, (), document, problems)
        if problems:
            raise SpecError(list(dict.fromkeys(problems)))
        yielded = True
        yield axes, Document(filled, document.places)
    if not yielded:
        raise SpecError([f"{document.where(('exclude',))}: leaves no cell of the matrix"])


def axis_id(value: Any) -> str:
    """Return the name of an axis value: its `id`, or the value itself."""
    return str(value["id"]) if isinstance(value, Mapping) and "id" in value else str(value)


def _slot(expression: str) -> str:
    """Return an expression as it stood in the spec, without what would disturb a terminal."""
    return f"${{{repr(expression)[1:-1]}}}"


def _fill(value: Any, axes: dict[str, Any], path: KeyPath, document: Document, problems: list[str]) -> Any:
    if isinstance(value, dict):
        return {k: _fill(v, axes, (*path, k), document, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, axes, (*path, i), document, problems) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def look_up(expression: str) -> Any:
        root, *keys = expression.split(".")
        at: Any = axes
        if root != "matrix" or not keys:
            problems.append(f"{document.where(path)}: only ${{matrix.AXIS}} can be filled in (got {_slot(expression)})")
            return ""
        for key in keys:
            if not isinstance(at, Mapping) or key not in at:
                have = ", ".join(map(str, at)) if isinstance(at, Mapping) else "no keys"
                problems.append(f"{document.where(path)}: {_slot(expression)}: no {key!r} there; it has {have}")
                return ""
            at = at[key]
        return deepcopy(at) if not isinstance(at, str) else at

    if whole := _SLOT.fullmatch(value):
        return look_up(whole[1])
    text = _SLOT.sub(lambda m: axis_id(look_up(m[1])), value)
    return Located(text, value.file, value.line) if isinstance(value, Located) else text


# --- Checking -----------------------------------------------------------------------------------------------


def parse(document: Document) -> TaskSpec:
    """Check a (filled) document against the schema.

    Raises:
        SpecError: With every mistake, its place, the value seen, and a suggestion.
    """
    data = dict(document.data)
    for key in ("source", "sampler", "explainer"):
        if key in data:
            data[key] = _named(data[key])
    if isinstance(scorers := data.get("scorers"), dict):
        data["scorers"] = {k: {"use": k, **(v or {})} if isinstance(v, dict | None) else v for k, v in scorers.items()}
    if isinstance(baselines := data.get("baselines"), list):
        data["baselines"] = [_named(b) for b in baselines]
    if isinstance(run := data.get("run"), dict) and isinstance(trackers := run.get("trackers"), list):
        data["run"] = {**run, "trackers": [_named(t) for t in trackers]}
    problems = [f"{document.where(path)}: {_KEY_ADVICE}" for path in _secrets(document.data, ())]
    try:
        spec = TaskSpec.model_validate(data)
    except ValidationError as error:
        problems += [explain_error(e, document.where, TaskSpec) for e in error.errors()]
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return spec


def _named(part: Any) -> Any:
    """Return a part that is given by its name alone in full."""
    return {"use": part} if isinstance(part, str) else part


_SECRET = re.compile(
    r"(^|[_-])(api[_-]?key|secret|password|access[_-]?token|auth[_-]?token|credentials?|authorization)$", re.IGNORECASE
)
_KEY_ADVICE = "keys and passwords do not belong in a spec, which is shared and copied into results; set the provider's environment variable"


def _secrets(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if _SECRET.search(str(key)):
                yield (*path, key)
            yield from _secrets(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _secrets(inner, (*path, i))


def explain_error(error: Any, where: Callable[[KeyPath], str], model: type[BaseModel], prefix: KeyPath = ()) -> str:
    """Turn one pydantic error into a sentence: place, what is wrong, the value seen, what to do."""
    loc: KeyPath = tuple(error["loc"])
    place = where((*prefix, *loc))
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return f"{place}: no such key{did_you_mean(str(loc[-1]), known)}; it can have: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input (should|must)", r"\1", message)
    shown = repr(error["input"])
    if loc and not isinstance(error["input"], Mapping) and len(shown) <= 80:
        message += f" (got {shown})"
    return f"{place}: {message}"


def _fields_at(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Names of the fields that may stand at a place inside a model."""
    at: Any = model
    for key in loc:
        field = next((f for n, f in at.model_fields.items() if key in (n, f.alias)), None) if _is_model(at) else None
        annotation = field.annotation if field else at
        at = next((a for a in (annotation, *_flatten(annotation)) if _is_model(a)), at)
    return [f.alias or n for n, f in at.model_fields.items()] if _is_model(at) else []


def _flatten(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        yield argument
        yield from _flatten(argument)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def plain(value: Any, *, absolute: bool = False) -> Any:
    """Return spec data as plain YAML-able values.

    Args:
        value: Data of a document.
        absolute: Whether strings that name something beside their spec file become absolute paths, so that the
            result can be run from anywhere.
    """
    if isinstance(value, dict):
        return {str(k): plain(v, absolute=absolute) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v, absolute=absolute) for v in value]
    if isinstance(value, Located):
        if absolute and value.file and "/" in value:
            path, colon, rest = value.partition(":")
            beside = value.file.parent / path
            if beside.exists():
                return f"{beside.resolve()}{colon}{rest}"
        return str(value)
    return value
