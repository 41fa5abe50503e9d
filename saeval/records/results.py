"""Defines the results of a run as `results.json` holds them, and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, JsonValue, ValidationError

from saeval._util import Documented, InputError, os_reason, refuse_pipe
from saeval.records.rows import (
    ControlContrast,
    Correlation,
    DecileShares,
    Measure,
    Power,
    ScoreRow,
    VarianceParts,
    Verdict,
)

Ranking = Literal["lift", "raw"]
"""What ranks a leaderboard: scores above their floors, or scores as they are."""


class CellResult(Documented):
    """One cell of the leaderboard: one coder, hookpoint, explainer … and its scores."""

    cell: str
    """The cell's name, its axes joined: `coder=topk,layer=9`; fit for a folder name."""
    axes: dict[str, str]
    """Name and value of every axis of the matrix."""
    baseline: str | None = None
    """Name of the baseline that this whole cell is (`random_sae`, `neurons`); None for a contestant."""
    coder: dict[str, JsonValue]
    """The coder: plugin, architecture, width, hookpoint, checksum."""
    subject: str
    """The subject model."""
    corpus: str = ""
    """Hash of the corpus as the subject's tokens; cells with equal ones share their windows. Empty when unknown."""
    explainer: str
    """Full name and version of the explainer plugin, and its model."""
    measures: dict[str, float]
    """Facts about the coder on this corpus: `l0`, `frac_alive`, `tokens`, `d_sae`, …"""
    counts: dict[str, int]
    """Latents `requested`, `eligible`, `sampled`, `explained`."""
    scores: list[ScoreRow]
    """One row per scorer and metric."""
    deciles: list[DecileShares] = []
    """Share judged right by decile, for each scorer that judges windows one by one; the cell's own explanations."""
    correlations: list[Correlation] = []
    """One for each pair of scorers; the cell's own explanations."""
    powers: list[Power] = []
    """One for each scorer and informed baseline that share 20 latents or more."""
    variance: list[VarianceParts] = []
    """One for each scorer whose model was asked again (`variance:` of the spec)."""
    cautions: list[str] = []
    """What a reader of this row must know of its coder: files that contradict the spec, a fvu of 1 or more, an L0 far
    from that of its files. They appear among the run's `warnings`, too."""


class Ledger(Documented):
    """What the calls to one role's model took, in this run and, apart from it, taken from the cache."""

    role: str
    """Role of the spec."""
    model: str
    """Model as the spec names it."""
    calls: int
    """Calls made."""
    cached: int
    """Calls answered from the response cache."""
    failed: int
    """Calls that ended without an answer."""
    input_tokens: int
    """Tokens of prompts."""
    cached_tokens: int = 0
    """Of these, tokens that the provider took from its own cache."""
    output_tokens: int
    """Tokens generated."""
    usd: float | None
    """Dollars; None when a price is unknown."""


class ScorerCheck(Documented):
    """How often a judge is right on latents of known meaning, under one scorer."""

    scorer: str
    """The scorer's label in the check."""
    asks: str
    """Hash of what the scorer asks: plugin, options and prompts. The check holds for scorers that ask the same."""
    balanced_accuracy: float
    """Mean of sensitivity and specificity, over latents."""
    ci95: tuple[float, float]
    """Its interval."""
    sensitivity: float | None
    """Share of the activating (or rightly marked) windows that the judge finds under the true explanation."""
    specificity: float | None
    """Share of the other windows that it refuses."""
    n: int
    """Latents behind it."""
    windows: int = 0
    """Windows behind the specificity; 0 where unknown."""
    verdict: Verdict
    """`pass` where the interval lies above .8, `fail` where it reaches down to .6, else `weak`."""


class JudgeCheck(Documented):
    """What a check of a judge found: scores on latents whose meaning is known."""

    model: str
    """The model, as the spec of the check named it."""
    task: str
    """Task that checked it."""
    task_version: str
    """Version of that task."""
    when: str
    """Day of the check, `2026-01-31`."""
    latents: int
    """Latents it was checked on."""
    scores: list[ScoreRow]
    """Headline row of each scorer: for the true explanations, and for those of baselines."""
    scorers: list[ScorerCheck] = []
    """Errors and verdict under each scorer that judges windows as right or wrong."""


class JudgeRole(Documented):
    """A model that judged in a run, and what is known of it."""

    role: str
    """Role of the spec."""
    model: str
    """Model as the spec names it."""
    check: JudgeCheck | None
    """Its latest check; None when it was never checked here with these options."""
    command: str = ""
    """Command that checks it as this run uses it."""


FindingOutcome = Literal["shown", "not shown", "contradicted", "cannot be told"]
"""What a run says of a claim: the interval lies on its side, over both sides, on the other; or there is too little
data."""


class Finding(Documented):
    """A claim of the spec, tested on the run's own numbers."""

    claim: str
    """The claim."""
    outcome: FindingOutcome
    """What the numbers say of it."""
    quantity: str
    """What was computed: a quantity, less what it is compared with."""
    difference: float | None
    """Its value; the claim is that this lies above 0, below 0 or near it."""
    ci95: tuple[float, float] | None
    """Its 95 % interval; None where a p value stands for it, or it is counted and not estimated."""
    p: float | None = None
    """Two-sided p value of no effect, where there is no interval."""
    n: tuple[int, ...] = ()
    """Latents (for similarity, cells) behind it; one number for each side where the sides are different latents."""
    margin: float | None = None
    """For a claim that something is near: how far apart it may be."""
    power: float | None = None
    """For such a claim: share of runs like this that would show it if there were no difference at all."""
    reason: str = ""
    """Why it cannot be told."""


class RunResult(Documented):
    """A finished (or interrupted) run: what `results.json` holds and every report is made from."""

    schema_: Literal["saeval.results/1"] = Field(default="saeval.results/1", alias="schema")
    """Format of this document."""
    run_id: str
    """Name of the run directory."""
    task: str
    """Name of the task."""
    task_version: str
    """Version of the task; scores of different versions do not share a table unmarked."""
    description: str = ""
    """What the task is for."""
    spec_sha: str
    """Hash of the resolved spec."""
    saeval_version: str
    """Version of saeval."""
    seed: int
    """Seed of the run."""
    seeds: tuple[int, ...] = ()
    """Seeds whose results are pooled here; none where it is one run's."""
    rank_by: str
    """Column that ranks the leaderboard, `scorer.metric`; `.lift` or `.raw` behind it where the spec asks for one."""
    partial: bool
    """Whether latents were omitted by `--limit` or an interruption."""
    synthetic: bool
    """Whether any part is made up (scripted model, synthetic source)."""
    recorded: bool = False
    """Whether a model's replies were given earlier and are repeated; such results do not rank beside live ones."""
    reproducible: bool
    """Whether every part comes from an installed package, not from a single file."""
    cells: list[CellResult]
    """The leaderboard."""
    measures: list[Measure] = []
    """Measures that plugins declare, by which leaderboards know how to show them."""
    correlations: list[Correlation] = []
    """One for each pair of scorers, over the latents of all contestant cells together."""
    ledger: list[Ledger]
    """Calls by role."""
    judges: list[JudgeRole] = []
    """Models that scorers asked, with what `judge-check` found of them."""
    findings: list[Finding] = []
    """The claims of the spec, each with what this run says of it."""
    controls: list[ControlContrast] = []
    """Trained coders against each control, by scorer and stratum."""
    warnings: list[str] = []
    """What a reader of the numbers must know."""
    components: dict[str, JsonValue] = {}
    """Plugins, their versions, options and prompt hashes; package versions."""
    seconds: dict[str, float] = {}
    """Wall-clock seconds by stage."""


def split_ranking(rank_by: str) -> tuple[str, Ranking | None]:
    """Split `scorer.metric[.lift|.raw]` into the column and what is asked of it; None where nothing is.

    Example:
        >>> split_ranking("fuzzing.balanced_accuracy.lift"), split_ranking("fuzzing.balanced_accuracy")
        (('fuzzing.balanced_accuracy', 'lift'), ('fuzzing.balanced_accuracy', None))
    """
    for ranking in get_args(Ranking):
        if rank_by.endswith(f".{ranking}"):
            return rank_by.removesuffix(f".{ranking}"), ranking
    return rank_by, None


def read_result(path: str | Path) -> RunResult:
    """Read a run's results; no plugin needs to be installed.

    Args:
        path: The run directory, or its `results.json`.

    Raises:
        InputError: If there are no results, they are of a format that this version does not know, or a value lies
            outside its own interval. Files that were changed later are a warning of the results.
    """
    from saeval.records.integrity import refuse_impossible, with_changes

    file = Path(path)
    file = file / "results.json" if file.is_dir() else file
    refuse_pipe(file)
    try:
        result = RunResult.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no results.json there; is it a run directory?") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({os_reason(error)})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ascii(".".join(map(str, first["loc"])))[1:-1]
        raise InputError(f"{file}: not results that this saeval can read ({where}: {first['msg']})") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: is not UTF-8 text") from None
    refuse_impossible(file, result)
    return with_changes(file.parent, result)
