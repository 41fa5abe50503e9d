"""Defines the keys of task specs, with types and descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from saeval._util import Documented, plain_values
from saeval.llm import Concurrency

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$"  # name of a task or group; valid as a folder name


class SpecModel(Documented):
    """Base of the spec's parts."""

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """Accept numbers and arrays of numpy and torch, which could be neither written nor hashed."""
        return plain_values(given) if isinstance(given, Mapping) else given


class When(SpecModel):
    """Limits a step to some of the latents."""

    latents: int = Field(ge=0)
    """Run only on the first N of the cell's latents, which are in random order; 0 skips the step."""


class PartSpec(SpecModel):
    """A plugin and its options."""

    use: str
    """Name of the plugin: a built-in's bare name, `acme/purity` of a package, or `./file.py:Class`."""
    with_: dict[str, Any] = Field(default={}, alias="with")
    """Its options; `saeval show KIND NAME` lists them."""
    llm: str | None = None
    """Role of `llms` that this step uses; default: the plugin's default role."""
    when: When | None = None
    """Run on some of the latents only."""
    baselines: list[str] | None = None
    """For a scorer: the explanation baselines to score; default: all."""


PART_KEYS = frozenset(field.alias or name for name, field in PartSpec.model_fields.items())

OPTION_KEYS = frozenset({"use", "with"})
"""Keys that have an effect on every part; on sources, samplers, trackers, and parts in options only these."""

STEP_KEYS: dict[str, frozenset[str]] = {"scorer": PART_KEYS, "explainer": PART_KEYS - {"baselines"}}
"""Keys that have an effect on steps, by kind."""

SHUFFLED = "shuffled_explanation"

BASELINE_KEYS: dict[str, frozenset[str]] = {
    "explainer": STEP_KEYS["explainer"],
    "coder": frozenset({"use", "with", "when"}),
    SHUFFLED: frozenset({"use", "when"}),
}
"""Keys that have an effect on entries of `baselines`, by kind or name."""


class RoleSpec(SpecModel):
    """A language model for a role. Keys that are not listed here are options of the LLM plugin."""

    model_config = ConfigDict(extra="allow")

    model: str
    """`hf/…`, `openai_compatible/…`, `scripted/…`, `replay/…`, `acme/…`, or else a litellm name such as
    `openai/gpt-4o-mini`."""


class LatentSelection(SpecModel):
    """Which latents are explained and scored."""

    select: Literal["random", "list"] = "random"
    """`random`: drawn from the latents with enough windows; `list`: those in `indices`."""
    n: int = Field(default=100, ge=1)
    """Number of latents to draw."""
    indices: list[Annotated[int, Field(ge=0)]] = []
    """Latents for `select: list`. Only these are collected if that is cheaper (ReLU, JumpReLU and gated coders), the
    sampler needs no other latents, and `measure` contains none of `l0`, `density`, `frac_alive` and `fvu`."""
    min_windows: int = Field(default=200, ge=2)
    """Minimum activating windows per latent (paper: 200)."""


class RunOptions(SpecModel):
    """How the run is executed; only the seed changes results."""

    seed: int = 0
    """Seed of all random choices."""
    seeds: int = Field(default=1, ge=1)
    """Number of runs with consecutive seeds, starting at `seed`; their results are pooled."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    """Spending limit in dollars; the run stops there and can be resumed."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Largest share of a scorer's latents that may fail; beyond it, the exit code is 1."""
    max_unanswered: float = Field(default=0.05, ge=0, le=1)
    """Largest share of a scorer's windows without an answer; beyond it, the row is marked and the exit code is 1."""
    concurrency: Concurrency = "auto"
    """Latents in flight at once."""
    give_up_after: int = Field(default=10, ge=1)
    """Stop if this many latents in a row fail for the same reason, at the start of a step or in calls."""
    patience: float = Field(default=600.0, ge=0)
    """Seconds to wait per call for a busy server (rate limit, overload, loading), from its first failed attempt on,
    without the time that the call is queued in saeval."""
    hang_after: float = Field(default=1800.0, gt=0)
    """Seconds without progress until a plugin is cancelled; calls to models and other latents count as progress."""
    executor: Literal["local", "ray"] = "local"
    """Where the work runs: `ray` is the cluster at RAY_ADDRESS, or a new one on this machine."""
    trackers: list[PartSpec] = []
    """Experiment trackers that log the run when it ends: `wandb`, `mlflow`, `trackio`."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that share the work with `executor: ray`; default: one per GPU if models are loaded and there are GPUs,
    else one per CPU."""
    screen: bool | Literal["bf16", "tf32"] = False
    """Whether linear coders find the latents that may fire in low precision (`true` is bf16) and compute only those in
    float32: faster on a GPU, not yet tested on one. The same latents fire; values differ by rounding."""
    gpus_per_worker: float | None = Field(default=None, gt=0)
    """GPUs per worker, a whole number or a fraction of one GPU; default: 1 if models are loaded."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"{value:g} is neither a whole number of GPUs nor a fraction of one, as Ray requires")
        return value


class LeaderboardOptions(SpecModel):
    """How the leaderboard is ranked."""

    rank_by: str | None = None
    """`scorer.metric` that ranks; default: the first scorer's headline metric. Its lift ranks if floors are judged;
    append `.lift` to require the lift, or `.raw` to rank by raw scores."""
    correct_for_judge: bool = False
    """Also report scores corrected for the judge's error rates on latents of known meaning, from `judge-check`."""


MeasureName = Literal["l0", "density", "frac_alive", "fvu", "d_sae", "tokens", "ce_recovered"]
_FREE: tuple[MeasureName, ...] = (
    "l0",
    "density",
    "frac_alive",
    "fvu",
    "d_sae",
    "tokens",
)  # available from the store

OF_ALL_LATENTS: frozenset[MeasureName] = frozenset({"l0", "density", "frac_alive", "fvu"})
"""Measures that need the activations of the whole dictionary."""

CellFilter = dict[str, str | int | float | list[str | int | float]]
"""Selects cells by axis (one or several ids each) and `baseline: NAME`; default: contestants."""


class VarianceSpec(SpecModel):
    """Steps repeated on some latents, to estimate variance components of scores."""

    latents: int = Field(default=20, ge=2)
    """Number of latents on which judge and explainer are asked a second time."""
    corpus: bool = False
    """Whether to explain and score these latents twice more, each time from one half of the corpus."""


class FindingSpec(SpecModel):
    """A claim to test on the run's results; give one of `score`, `correlation`, `tokens` and `similarity`."""

    claim: str
    """The claim, as a sentence."""
    score: str | None = None
    """Quantity: a scorer's mean over latents, `LABEL` or `LABEL.METRIC`; append ` of EXPLANATION` for a baseline."""
    correlation: tuple[str, str] | None = None
    """Quantity: the rank correlation of two scores over latents, each written like `score`."""
    tokens: tuple[str, str] | None = None
    """Quantity: tokens per latent that the first scorer uses, divided by those of the second."""
    similarity: Literal["explanations", "decoder", "encoder"] | None = None
    """Quantity: similarity of matched latents between pairs of cells, minus that of random ones."""
    along: str | None = None
    """For `similarity`: an axis of numbers; the quantity is then the rank correlation of similarity and distance on
    it."""
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """For `similarity: explanations`: the sentence-transformers model."""
    cells: CellFilter = {}
    """Cells for which the quantity is computed."""
    is_: Literal["above", "below", "near"] = Field(alias="is")
    """The claim about the quantity."""
    than: float | str | None = None
    """Reference value: a number, `chance`, or another score; default: 0, or 1 for tokens, or the same
    score in `than_cells`."""
    than_cells: CellFilter | None = None
    """Cells of the other score; default: the same cells."""
    within: float | None = Field(default=None, gt=0)
    """Margin of `near`; default: the share `of_lift` of the lift if two scores are compared, else 0.05."""
    of_lift: float = Field(default=0.25, gt=0, le=1)
    """For `near` without `within`: the margin, as a share of the reference score's lift above its floor or chance."""

    @model_validator(mode="after")
    def _one_quantity(self) -> FindingSpec:
        quantities = ("score", "correlation", "tokens", "similarity")
        if sum(getattr(self, name) is not None for name in quantities) != 1:
            raise ValueError(f"give exactly one of {', '.join(quantities)}")
        if self.score is None and (isinstance(self.than, str) or self.than_cells is not None):
            raise ValueError("only a score can be compared with a score; give a number as `than`")
        if self.along is not None and self.similarity is None:
            raise ValueError("`along` requires `similarity`")
        return self


def score_reference(text: str) -> tuple[str, str | None, str]:
    """Split `LABEL[.METRIC][ of EXPLANATION]` into label, metric (None: the headline) and explanation."""
    name, _, explanation = text.partition(" of ")
    label, _, metric = name.partition(".")
    return label, metric or None, explanation or "explanation"


class Spec(SpecModel):
    """A task: what is compared, how latents are explained and scored, and how results are ranked."""

    saeval: Literal[1]
    """Version of the spec format."""
    task: str = Field(pattern=NAME_PATTERN)
    """Name of the task."""
    version: str
    """Version of the task; increase it when results may change."""
    description: str = ""
    """Purpose of the task."""
    tags: list[str] = []
    """Tags for searching."""
    checks: str | None = None
    """Role whose model is checked by this task; leaderboards that this model judges show the result."""
    include: list[str] = []
    """Specs that this one builds on: `saeval://NAME.yaml` of a package's tasks, or paths beside this file."""
    llms: dict[str, RoleSpec] = {}
    """Language models by role."""
    matrix: dict[str, list[Any]] = {}
    """Axes of the leaderboard, with one cell per combination. Use a value with `${matrix.axis.key}`."""
    exclude: list[dict[str, Any]] = []
    """Combinations to omit, by axis and id."""
    source: PartSpec
    """Source of the activations."""
    latents: LatentSelection = LatentSelection()
    """Selection of latents."""
    sampler: PartSpec = PartSpec(use="random")
    """Chooses the windows for explaining and scoring a latent."""
    explainer: PartSpec
    """The explainer."""
    scorers: dict[str, PartSpec]
    """Scorers by label; `use` defaults to the label."""
    baselines: list[PartSpec] = []
    """Baselines for comparison: `random_explanation`, `shuffled_explanation`, explainers, and coders."""
    controls: list[str] = []
    """Control coders, which should score lower: ids on an axis of the matrix (whose cells become baselines) or baseline
    coders. The report compares the other cells with each of them, by L0 and for latents of one or several tokens."""
    measure: list[MeasureName] = list(_FREE)
    """Measures of the coder to report with the scores; `ce_recovered` runs the model three times over 2,048 tokens."""
    variance: VarianceSpec | None = None
    """Ask judge and explainer a second time on some latents, and report variance components; default: no."""
    findings: list[FindingSpec] = []
    """Claims that the report tests on the run's results."""
    run: RunOptions = RunOptions()
    """Options of the run."""
    leaderboard: LeaderboardOptions = LeaderboardOptions()
    """Options of the leaderboard."""

    @model_validator(mode="before")
    @classmethod
    def _expand_short_forms(cls, given: Any) -> Any:
        return expand_short_forms(given) if isinstance(given, Mapping) else given

    @classmethod
    def read(cls, task: str | Path) -> Spec:
        """Read the spec of a shipped task or a file, with its includes merged and its paths absolute.

        Raises:
            SpecError: If it is invalid, or uses `${matrix.…}` for a typed value (outside of plugins' options).
        """
        from saeval.plugin.registry import Registry
        from saeval.task.files import find_include, find_spec
        from saeval.task.spec.document import SpecDocument, plain, read_document
        from saeval.task.spec.validation import parse

        registry = Registry()
        document = read_document(find_spec(str(task), registry), lambda name, file: find_include(name, file, registry))
        return parse(SpecDocument(plain(document.data, absolute=True), document.places))

    def changed(self, changes: Mapping[str, Any]) -> Spec:
        """Return a copy with dotted keys set, as with `--set`.

        Raises:
            SpecError: If a key or value is wrong.

        Example:
            >>> spec = saeval.Spec.read("mine.yaml")
            >>> spec.changed({"latents.n": 2, "run.seed": 1}).latents.n
            2
        """
        from saeval.task.spec.document import SpecDocument, override
        from saeval.task.spec.validation import parse

        return parse(override(SpecDocument(self.as_mapping(), {}), changes))

    def as_mapping(self) -> dict[str, Any]:
        """Return the spec as a mapping for YAML, with only the keys that were set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def expand_short_forms(given: Mapping[str, Any]) -> dict[str, Any]:
    """Expand parts given by name only, and scorers whose label is their name, to mappings with `use`."""
    data = dict(given)
    for key in ("source", "sampler", "explainer"):
        if key in data:
            data[key] = as_part(data[key])
    if isinstance(scorers := data.get("scorers"), dict):
        data["scorers"] = {label: _labelled(label, part) for label, part in scorers.items()}
    if isinstance(baselines := data.get("baselines"), list):
        data["baselines"] = [as_part(baseline) for baseline in baselines]
    if isinstance(run := data.get("run"), dict) and isinstance(trackers := run.get("trackers"), list):
        data["run"] = {**run, "trackers": [as_part(tracker) for tracker in trackers]}
    return data


def as_part(part: Any) -> Any:
    """Return a part given by name only as a mapping with `use`; other values as they are."""
    return {"use": part} if isinstance(part, str) else part


def _labelled(label: str, part: Any) -> Any:
    return {"use": label, **(part or {})} if isinstance(part, dict | None) else part


class GroupSpec(SpecModel):
    """A group: tasks that run one after another and share a leaderboard."""

    saeval: Literal[1]
    """Version of the spec format."""
    group: str = Field(pattern=NAME_PATTERN)
    """Name of the group."""
    description: str = ""
    """Purpose of the group."""
    tags: list[str] = []
    """Tags for searching."""
    tasks: list[str] = Field(min_length=1)
    """The tasks: names, or paths beside this file."""
