"""Defines the results of a run (`results.json`), and reads them."""

from __future__ import annotations

import json
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
"""What ranks a leaderboard: `lift` (score minus floor) or `raw` (the score)."""


class PartSettings(Documented):
    """Plugin and options of one part of a cell."""

    plugin: str
    """Full name and version of the plugin, `saeval/detection 0.1.0`."""
    options: dict[str, JsonValue]
    """Its options, defaults included."""
    sha: str
    """Hash of plugin, options, prompts, and contents of files that the options name."""
    code: dict[str, str] = {}
    """Hash of the source files of the plugin and of those in its options, by full name and version; empty text for a
    plugin whose version stands for its code (built in, or from a package index). Runs of earlier versions have none."""


class CellResult(Documented):
    """Results of one cell of the matrix (one coder, hookpoint, explainer …): measures, counts and scores."""

    cell: str
    """The cell's name, made of its axes: `coder=topk,layer=9`; valid as a folder name."""
    axes: dict[str, str]
    """Name and value of every axis of the matrix."""
    baseline: str | None = None
    """Name of the baseline if the whole cell is one (`random_sae`, `neurons`); None for a contestant."""
    coder: dict[str, JsonValue]
    """The coder: plugin, architecture, width, hookpoint, and what its files say of its training; `components` has the
    hashes of the files."""
    subject: str
    """The subject model."""
    corpus: str = ""
    """Hash of the corpus as tokens of the subject model; cells with equal hashes share windows. Empty if unknown."""
    text_options: dict[str, JsonValue] = {}
    """Options about the text that the spec leaves to the coder's files, with their values: `corpus.context`, …"""
    explainer: str
    """Full name and version of the explainer plugin, and its model."""
    settings: dict[str, PartSettings] = {}
    """Settings of `sampler`, `explainer` and each scorer (`scorers.detection`); empty if unknown."""
    measures: dict[str, float]
    """Facts about the coder on this corpus: `l0`, `frac_alive`, `tokens`, `d_sae`, …"""
    counts: dict[str, int]
    """Latents `requested`, `eligible`, `sampled`, `explained`."""
    scores: list[ScoreRow]
    """One row per scorer and metric."""
    deciles: list[DecileShares] = []
    """Share of correct judgements by decile, for each scorer that judges single windows; own explanations only."""
    correlations: list[Correlation] = []
    """Correlation of each pair of scorers; the cell's own explanations."""
    powers: list[Power] = []
    """Power of each scorer against each informed baseline, if both scored 20 or more common latents."""
    variance: list[VarianceParts] = []
    """Variance components of each scorer whose model was asked repeatedly (`variance:` of the spec)."""
    cautions: list[str] = []
    """Warnings about this row's coder: files that contradict the spec, an FVU of 1 or more, an L0 far from the one in
    its files. They are also among the run's `warnings`."""


class Ledger(Documented):
    """Calls, tokens and cost of one role's model in this run; answers from the cache are counted separately."""

    role: str
    """Role of the spec."""
    model: str
    """Model as the spec names it."""
    calls: int
    """Number of calls made."""
    cached: int
    """Number of answers from the cache."""
    failed: int
    """Number of calls that ended without an answer."""
    input_tokens: int
    """Number of prompt tokens."""
    cached_tokens: int = 0
    """Number of prompt tokens that the provider read from its own cache."""
    output_tokens: int
    """Number of generated tokens."""
    usd: float | None
    """Cost in dollars; None if a price is unknown."""
    earlier: bool = False
    """Whether only an earlier spec in this run directory asked this model for this role."""


class ScorerCheck(Documented):
    """Accuracy of a judge on latents of known meaning, under one scorer."""

    scorer: str
    """The scorer's label in the check."""
    asks: str
    """Hash of the scorer's plugin, options and prompts. The check is valid for scorers with the same hash."""
    balanced_accuracy: float
    """Mean of sensitivity and specificity, over latents."""
    ci95: tuple[float, float]
    """Its interval."""
    sensitivity: float | None
    """Share of the activating (or correctly marked) windows that the judge accepts under the true explanation."""
    specificity: float | None
    """Share of the other windows that it rejects."""
    n: int
    """Number of latents."""
    windows: int = 0
    """Number of windows of the specificity; 0 if unknown."""
    verdict: Verdict
    """`pass` if the interval lies above 0.8, `fail` if its lower end is 0.6 or less, else `weak`."""


class JudgeCheck(Documented):
    """Result of a check of a judge: its scores on latents of known meaning."""

    model: str
    """The model, as the spec of the check named it."""
    task: str
    """Task that made the check."""
    task_version: str
    """Version of that task."""
    when: str
    """Date of the check, `2026-01-31`."""
    latents: int
    """Number of latents in the check."""
    scores: list[ScoreRow]
    """Headline row of each scorer, for the true explanations and for those of baselines."""
    scorers: list[ScorerCheck] = []
    """Error rates and verdict under each scorer that judges windows as correct or wrong."""


class JudgeRole(Documented):
    """A model that judged in a run, with the latest check of it."""

    role: str
    """Role of the spec."""
    model: str
    """Model as the spec names it."""
    check: JudgeCheck | None
    """Its latest check; None if it was never checked here with these options."""
    command: str = ""
    """Command that checks it with the options of this run."""


FindingOutcome = Literal["shown", "not shown", "contradicted", "cannot be told"]
"""Result of testing a claim: the interval lies on the claimed side (`shown`), on both sides (`not shown`), or on the
opposite side (`contradicted`); or there is too little data (`cannot be told`)."""


class Finding(Documented):
    """A claim of the spec, tested on the run's own numbers."""

    claim: str
    """The claim."""
    outcome: FindingOutcome
    """Result of the test."""
    quantity: str
    """The computed difference: a quantity minus the one that it is compared with."""
    difference: float | None
    """Value of the difference; the claim is that it is above 0, below 0 or near 0."""
    ci95: tuple[float, float] | None
    """Its 95 % interval; None if there is a p value instead, or the value is counted and not estimated."""
    p: float | None = None
    """Two-sided p value of no effect, if there is no interval."""
    n: tuple[int, ...] = ()
    """Number of latents (for similarity, cells); one number per side if the sides are different latents."""
    margin: float | None = None
    """For a claim that two values are near each other: the largest difference that counts as near."""
    power: float | None = None
    """For such a claim: share of runs like this that would show it if the true difference were 0."""
    reason: str = ""
    """Why the claim could not be tested."""


class RunResult(Documented):
    """Results of a finished or interrupted run: the content of `results.json`, from which all reports are made."""

    schema_: Literal["saeval.results/1"] = Field(default="saeval.results/1", alias="schema")
    """Format of this document."""
    run_id: str
    """Name of the run directory."""
    task: str
    """Name of the task."""
    task_version: str
    """Version of the task; tables mark scores of different versions."""
    description: str = ""
    """Purpose of the task."""
    spec_sha: str
    """Hash of the resolved spec."""
    saeval_version: str
    """Version of saeval."""
    seed: int
    """Seed of the run."""
    seeds: tuple[int, ...] = ()
    """Seeds whose results are pooled here; empty for the results of one run."""
    rank_by: str
    """Column that ranks the leaderboard: `scorer.metric`, with `.lift` or `.raw` appended if the spec sets it."""
    partial: bool
    """Whether latents were omitted by `--limit` or an interruption."""
    synthetic: bool
    """Whether any part is synthetic (scripted model, synthetic source)."""
    recorded: bool = False
    """Whether a model's replies were played back from a recording; such results are not ranked with live ones."""
    reproducible: bool
    """Whether no part is synthetic, and every part comes from an installed package, not from a single file."""
    cells: list[CellResult]
    """The leaderboard."""
    measures: list[Measure] = []
    """Measures that plugins declare, which define how leaderboards show them."""
    correlations: list[Correlation] = []
    """Correlation of each pair of scorers, over the latents of all contestant cells together."""
    ledger: list[Ledger]
    """Calls by role."""
    judges: list[JudgeRole] = []
    """Models that scorers asked, with the results of `judge-check`."""
    findings: list[Finding] = []
    """The claims of the spec, each with the result of its test."""
    controls: list[ControlContrast] = []
    """Trained coders against each control, by scorer and stratum."""
    warnings: list[str] = []
    """Warnings that apply to the numbers."""
    components: dict[str, JsonValue] = {}
    """Plugins, their versions, options and prompt hashes; package versions."""
    seconds: dict[str, float] = {}
    """Wall-clock seconds by stage."""


def split_ranking(rank_by: str) -> tuple[str, Ranking | None]:
    """Split `scorer.metric[.lift|.raw]` into the column and the ranking; None if no ranking is given.

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
        InputError: If there are no results, their format is unknown to this version, or a value lies outside its own
            interval. If files were changed later, the results get a warning.
    """
    from saeval.records.integrity import refuse_impossible, with_changes

    file = Path(path)
    file = file / "results.json" if file.is_dir() else file
    refuse_pipe(file)
    try:
        text = file.read_text(encoding="utf-8")
        result = RunResult.model_validate_json(text)
    except FileNotFoundError:
        if (file.parent / "run.json").is_file():
            raise InputError(f"{path}: this run has no results yet; rerun its command to resume it") from None
        raise InputError(f"{path}: no results.json there; is it a run directory?") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({os_reason(error)})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = f"{ascii('.'.join(map(str, first['loc'])))[1:-1]}: " if first["loc"] else ""
        how = _remedy(file, text)
        raise InputError(f"{file}: not results that this saeval can read ({where}{first['msg']}){how}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: is not UTF-8 text") from None
    refuse_impossible(file, result)
    return with_changes(file.parent, result)


def _remedy(file: Path, text: str) -> str:
    """Return what to do about results that cannot be read: upgrade if a newer saeval wrote them, else rerun."""
    from packaging.version import Version

    from saeval import __version__

    try:
        written = Version(json.loads(text)["saeval_version"])
        if written > Version(__version__):
            return f"; saeval {written} wrote them, and this is {__version__}: upgrade saeval"
    except (ValueError, TypeError, KeyError, RecursionError):
        pass  # it does not say which version wrote it
    return "; rerun the run's command to write them again" if (file.parent / "journal.jsonl").is_file() else ""
