"""Defines what a run records: explanations, judged windows, scores and results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from saeval._util import CleanJson, CleanText, Documented, InputError, os_reason, refuse_pipe
from saeval.records import metrics
from saeval.records.columns import NAME_COLUMN, PER_SCORE, TABLES_ONLY, WITH_ROOM, Better, ColumnStyle

MAIN = "explanation"
"""Variant of a cell's own explanations, beside those of baselines by their names."""

Ranking = Literal["lift", "raw"]
"""What ranks a leaderboard: scores above their floors, or scores as they are."""

Status = Literal["ok", "failed", "skipped"]
"""How a step on one latent ended: with an answer, with an error, or not tried for a stated reason."""

OutcomeStatus = Literal["ok", "failed", "unparsed", "refused"]
"""How one judgement ended: answered; the call failed; the reply held no answer; the judge declined."""


class Explanation(Documented):
    """What a latent means, in words."""

    text: CleanText
    """The explanation; empty only when the status is not `ok`."""
    status: Status = "ok"
    """Whether there is an explanation. A failed one is never scored."""
    reason: CleanText = ""
    """Why there is none."""
    notes: Annotated[dict[str, JsonValue], CleanJson] = {}
    """What else the explainer wants kept, such as the raw reply."""
    asked: str = ""
    """Prompts and raw replies, packed; saeval fills it in, and `calls.parquet` holds them as text."""

    @classmethod
    def failed(cls, reason: str, **notes: JsonValue) -> Explanation:
        """Return the record of an explanation that could not be made."""
        return cls(text="", status="failed", reason=reason, notes=notes)


class WrittenText(Documented):
    """A text that was written for a latent, as the live model read it."""

    tokens: tuple[CleanText, ...]
    """Its tokens as text; joined, they are what was read."""
    activations: tuple[float, ...]
    """One value per token, 0 where the latent was silent."""


class Outcome(Documented):
    """One judged window: the truth, the answer, and what became of the question."""

    example: CleanText
    """Address of the window, `context:start`; of a text that was written for the question, its name."""
    active: bool
    """The truth: whether the latent fires (detection), or the marks are right (fuzzing); always true for intruders.
    Of written texts: whether they were written to activate the latent."""
    predicted: bool | None = None
    """The judge's answer, or whether it found the intruder; None unless the status is `ok`."""
    probability: float | None = None
    """The judge's probability, or another value that rises with it, when it gives one."""
    decile: Annotated[int, Field(ge=0, le=9)] | None = None
    """Rank decile of an activating window, 0 the strongest; of the others in the question (intruder)."""
    weight: float | None = None
    """Number of windows drawn at random that a non-activating window stands for; None where that is unknown."""
    written: WrittenText | None = None
    """The text, where it was written for the question; None for windows of the corpus."""
    status: OutcomeStatus = "ok"
    """What became of the question."""
    reason: CleanText = ""
    """Why there is no answer."""


class Score(Documented):
    """How well one explanation did under one scorer on one latent."""

    values: dict[str, float] = {}
    """Metrics by name; the scorer's headline metric is there whenever the status is `ok`."""
    outcomes: tuple[Outcome, ...] = ()
    """The judged windows, where the scorer judges windows."""
    status: Status = "ok"
    """Whether there is a score."""
    reason: CleanText = ""
    """Why there is none."""
    notes: Annotated[dict[str, JsonValue], CleanJson] = {}
    """What else the scorer wants kept."""
    asked: str = ""
    """Prompts and raw replies, packed; saeval fills it in, and `calls.parquet` holds them as text."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], **notes: JsonValue) -> Score:
        """Compute the classification metrics of judged windows.

        Windows without an answer are kept, counted, and excluded from the metrics. When a whole side
        (activating or not) has no answer there is no balanced accuracy, and the score is `failed`.

        Example:
            >>> windows = [
            ...     Outcome(example="0:1", active=True, predicted=True),
            ...     Outcome(example="0:33", active=False, predicted=True),
            ... ]
            >>> Score.of(windows).values["balanced_accuracy"]
            0.5
            >>> Score.of(windows[:1]).status
            'failed'
        """
        answered = [o for o in outcomes if o.status == "ok" and o.predicted is not None]
        probabilities = [o.probability for o in answered if o.probability is not None]
        complete = answered and len(probabilities) == len(answered)
        actives, predicted = [o.active for o in answered], [bool(o.predicted) for o in answered]
        values = metrics.classification(actives, predicted, probabilities if complete else None)
        if "balanced_accuracy" not in values:
            reasons = [o.reason for o in outcomes if o.reason]
            why = max(dict.fromkeys(reasons), key=reasons.count) if reasons else "no window of one side was given"
            return cls(
                status="failed",
                reason=f"{len(answered)} of {len(outcomes)} judged: {why}",
                outcomes=tuple(outcomes),
                notes=notes,
            )
        return cls(values=values, outcomes=tuple(outcomes), notes=notes)

    @classmethod
    def skipped(cls, reason: str) -> Score:
        """Return the record of a score that was not tried."""
        return cls(status="skipped", reason=reason)

    @classmethod
    def failed(cls, reason: str) -> Score:
        """Return the record of a score that could not be made."""
        return cls(status="failed", reason=reason)

    def count(self, *statuses: OutcomeStatus) -> int:
        """Number of judged windows with one of these statuses."""
        return sum(o.status in statuses for o in self.outcomes)


class Latent(Documented):
    """What is known of one latent before it is scored; a row of `latents.parquet`."""

    latent: int
    """Number of the latent in its dictionary."""
    firings: int
    """Tokens of the corpus on which it fires."""
    windows: int
    """Activating windows in the corpus."""
    density: float
    """Share of tokens on which it fires."""
    max_activation: float
    """Its strongest activation."""
    mean_square: float | None = None
    """Its squared activation, on average over all tokens."""
    token_share: float
    """Share of its firings that fall on the token it fires on most often."""
    position_dependence: float
    """How far its firings are from being spread over the context as the text is, 0 to 1."""
    explanation_words: int | None
    """Words of its explanation; None without one."""


def _number_format(specification: str) -> str:
    if specification != "measure":
        try:
            format(1.0, specification)
        except ValueError:
            raise ValueError(f"{specification!r} is no format specification of a number, such as .3f") from None
    return specification


def _ordered(bounds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = bounds
    if low is not None and high is not None and low >= high:
        raise ValueError(f"the least value, {low:g}, is not below the greatest, {high:g}")
    return bounds


class FloorSample(Documented):
    """A score's floor: the same latents, windows and judge, under uninformed explanations."""

    variant: str
    """Whose explanations these are: `shuffled_explanation` (of near-independent latents), `random_explanation`, …"""
    n: int
    """Latents that have both a score and a floor."""
    own: float
    """Mean score of those latents."""
    value: float
    """Mean floor of those latents."""
    covariance: tuple[float, float, float]
    """Over those latents: variance of the scores, variance of the floors, covariance of the two."""
    least_error: float
    """What the standard error of the lift is at least, since few equal differences prove little."""
    p: float | None
    """One-sided p value of scores that do not depend on the explanation: signs of score − floor flipped."""
    same: float | None = None
    """Share of the windows judged twice that got the same answer under both; None where there are no answers by
    window."""
    answers: int = 0
    """Number of those windows."""


class NaturalRates(Documented):
    """Precision, F1 and IoU at the rate at which latents fire in the corpus, where nearly every window is silent."""

    rate: float
    """Share of the corpus's windows in which a latent fires, mean over latents."""
    n: int
    """Latents behind it."""
    recall: float
    """Share of the activating windows found."""
    false_positive_rate: float
    """Share of the corpus's silent windows taken for activating, pooled over latents of like rate."""
    precision: float
    """Share of the windows called activating that are."""
    precision_ci95: tuple[float, float]
    """Its interval."""
    f1: float
    """Harmonic mean of precision and recall."""
    f1_ci95: tuple[float, float]
    """Its interval."""
    iou: float
    """Windows that fire and are called activating, of those that do either."""
    iou_ci95: tuple[float, float]
    """Its interval."""
    ceiling: float | None
    """Precision of explanations without fault under this judge; None where the judge was not checked."""
    not_identifiable: str = ""
    """Why a low precision may come from the judge and not from the explanations; empty where it cannot."""


class Measure(Documented):
    """A fact about a coder that leaderboards show: saeval measures some, coder and source plugins declare others.

    Example:
        >>> Measure(name="dead", title="dead latents", unit="latents", format=",.0f", better="lower").head
        'dead latents'
    """

    name: str
    """Its name in results, tables and JSON."""
    title: str = ""
    """Its head on leaderboards; the name when empty."""
    about: str = ""
    """What it says, in a sentence."""
    unit: str = ""
    """Unit of its values."""
    format: Annotated[str, AfterValidator(_number_format)] = "measure"
    """How it is written where there is little room: a Python format specification; `measure` for four digits."""
    better: Better | None = None
    """Direction; None where neither is better."""
    on_board: bool = True
    """Whether narrow leaderboards (terminal, LaTeX) show it, too, not reports and tables alone."""

    @property
    def head(self) -> str:
        """Its head on leaderboards."""
        return self.title or self.name


class ScoreRow(Documented):
    """One number of the leaderboard: a scorer's metric over the latents of a cell, with all that it takes to trust it.

    A field annotated with `ColumnStyle` is a column of leaderboards, and its docstring says what the column means. To
    add one, add the field here and compute it in `_compare/score_rows.py`: every board, table and page shows it.
    """

    scorer: Annotated[str, NAME_COLUMN]
    """The scorer's label in the spec."""
    variant: Annotated[str, NAME_COLUMN] = MAIN
    """What was scored: the cell's own explanations, or those of a baseline, by its name (`random_explanation`)."""
    plugin: Annotated[str, NAME_COLUMN]
    """Full name and version of the plugin, `saeval/detection 0.1.0`."""
    metric: Annotated[str, NAME_COLUMN]
    """Name of the metric; the scorer's headline comes first."""
    higher_is_better: Annotated[bool | None, ColumnStyle(kind="bool", where=TABLES_ONLY)]
    """Direction of the metric; None for a condition of scores, which is no score."""
    on_board: bool = False
    """Whether leaderboards show the metric although it is not its scorer's headline."""
    range: Annotated[tuple[float | None, float | None], AfterValidator(_ordered)]
    """Least and greatest value the metric can take; None where there is no such bound."""
    value: Annotated[float | None, ColumnStyle(format=".3f", where=WITH_ROOM)]
    """Mean over latents; None when no latent was scored."""
    median: Annotated[float | None, ColumnStyle(format=".3f", where=TABLES_ONLY)]
    """Median over latents."""
    ci95: Annotated[tuple[float, float] | None, ColumnStyle("95 % CI", ".3f", kind="interval", where=WITH_ROOM)]
    """Interval for the mean: bootstrap over latents. None, too, for one latent under a metric without bounds."""
    method: Annotated[str, NAME_COLUMN] = "bootstrap over latents"
    """How the interval was made."""
    n: Annotated[int, ColumnStyle(unit="latents", kind="int64", where=TABLES_ONLY)]
    """Latents scored."""
    tried: Annotated[int, ColumnStyle(unit="latents", kind="int64", where=TABLES_ONLY)]
    """Latents the scorer was to be run on."""
    failed: Annotated[int, ColumnStyle("fail", unit="latents", better="lower", kind="int64", where=PER_SCORE)]
    """Latents without a score although tried: explanation or scorer failed."""
    skipped: Annotated[int, ColumnStyle(unit="latents", kind="int64", where=WITH_ROOM)] = 0
    """Latents that the scorer passed over for a stated reason, such as no human rating; they are not failures."""
    off: Annotated[bool, ColumnStyle(kind="bool", where=TABLES_ONLY)] = False
    """Whether a condition of the scorer, such as a divergence to steer at, was missed by more than its tolerance."""
    unparsed: Annotated[int, ColumnStyle("unanswered", unit="windows", better="lower", kind="int64", where=WITH_ROOM)]
    """Judged windows whose reply held no answer, or was refused, over all latents."""
    coverage: Annotated[float, ColumnStyle("cover", ".0%", better="higher", where=WITH_ROOM)]
    """Share of the latents tried that were scored."""
    floor: Annotated[dict[str, float], ColumnStyle(format=".3f", missing="", where=WITH_ROOM)]
    """The same metric for baselines on the same cell, and for the metric's chance level, by name."""
    against: FloorSample | None = None
    """The floor that the lift is measured from; None without one."""
    lift: Annotated[float | None, ColumnStyle(format="+.3f", better="higher", missing="", where=PER_SCORE)]
    """Value above the floor, positive where better, with floors pooled over the cells of the run; None without a
    floor."""
    lift_ci95: Annotated[
        tuple[float, float] | None, ColumnStyle("lift 95 % CI", "+.3f", kind="interval", missing="", where=WITH_ROOM)
    ] = None
    """Interval of the lift, which holds the floor's error."""
    windows: Annotated[int, ColumnStyle(unit="windows", kind="int64", where=TABLES_ONLY)] = 0
    """Windows the judge was asked about, over all latents; 0 for scorers that give no answers window by window."""
    answered: Annotated[int, ColumnStyle(unit="windows", kind="int64", where=TABLES_ONLY)] = 0
    """Windows it answered."""
    bounds: Annotated[tuple[float, float] | None, ColumnStyle(kind="interval", where=TABLES_ONLY)] = None
    """The value if everything unanswered were judged wrong, and if it were judged right; None where that is unknown."""
    corrected: Annotated[float | None, ColumnStyle(where=TABLES_ONLY)] = None
    """Value corrected for the judge's errors on latents of known meaning; None unless asked for and known."""
    corrected_ci95: Annotated[tuple[float, float] | None, ColumnStyle(kind="interval", where=TABLES_ONLY)] = None
    """Interval of the corrected value, which holds the uncertainty of the judge's errors."""
    weighted: Annotated[float | None, ColumnStyle(where=TABLES_ONLY)] = None
    """Mean weighted by what latents do; None unless requested of a leaderboard."""
    weighted_ci95: Annotated[tuple[float, float] | None, ColumnStyle(kind="interval", where=TABLES_ONLY)] = None
    """Interval of the weighted mean, for latents with these weights."""
    weighted_n: Annotated[float | None, ColumnStyle(unit="latents", where=TABLES_ONLY)] = None
    """Effective number of latents of the weighted mean."""
    prediction95: Annotated[
        tuple[float, float] | None, ColumnStyle("rerun 95 %", ".3f", kind="interval", missing="", where=WITH_ROOM)
    ] = None
    """Where the value of a rerun with other latents lies in 95 % of reruns; wider than the interval for the mean."""
    reliability: Annotated[float | None, ColumnStyle(format=".2f", better="higher", missing="", where=WITH_ROOM)] = None
    """Share of the variance of the latents' scores that is not noise of their windows; None where that is unknown."""
    natural: NaturalRates | None = None
    """Breadth: precision, F1 and IoU at the corpus's own rate; None for other metrics, and where windows were not drawn
    with known probabilities."""
    judge: Annotated[str | None, NAME_COLUMN]
    """Model that judged; None for scorers without an LLM."""
    verdict: Annotated[Verdict | None, NAME_COLUMN] = None
    """What `judge-check` says of this judge under this scorer's prompts; None where it was not checked."""
    explanation_words: Annotated[float | None, ColumnStyle("words", ".1f", unit="words", where=PER_SCORE)] = None
    """Mean number of words of the explanations scored; None when unknown."""
    usd: Annotated[float | None, ColumnStyle("$", ".2f", unit="$", better="lower", missing="?", where=PER_SCORE)]
    """Dollars spent on this scorer in this cell; None when a price is unknown."""

    MAX_UNANSWERED: ClassVar[float] = 0.05
    """Share of unanswered windows above which a row is marked."""
    FEW: ClassVar[int] = 20
    """Latents below which an interval is marked, since it may be too narrow."""

    @property
    def few(self) -> bool:
        """Whether the interval comes from so few latents that it may be too narrow."""
        return self.n < self.FEW

    @property
    def unanswered(self) -> float:
        """Share of the windows asked about that have no answer."""
        return 1 - self.answered / self.windows if self.windows else 0.0


class DecileShares(Documented):
    """How often a scorer judged right, by how strongly the latent fires; over the answered windows of all latents."""

    scorer: str
    """The scorer's label in the spec."""
    right: tuple[float | None, ...]
    """Share of the activating windows judged right, by rank decile, the strongest first; None where there are none."""
    n: tuple[int, ...]
    """Number of those windows, by decile."""
    negatives_right: float | None
    """Share judged right of the windows for which "no" is right: non-activating, or wrongly marked."""
    negatives_n: int
    """Number of those windows."""


class Correlation(Documented):
    """How alike two scorers rank latents: correlations of their headline metrics over the latents scored by both."""

    scorers: tuple[str, str]
    """Labels of the two."""
    n: int
    """Latents scored by both."""
    pearson: float | None
    """Linear correlation; None for fewer than three latents, or when either scorer gives all the same score."""
    spearman: float | None
    """Rank correlation; None likewise."""
    corrected: float | None = None
    """Linear correlation corrected for the noise of both scores; None where a reliability is unknown or below .1."""


class Power(Documented):
    """How surely a scorer tells a cell's own explanations from those of an informed baseline."""

    scorer: str
    """The scorer's label in the spec."""
    variant: str
    """The baseline."""
    metric: str
    """The scorer's headline metric."""
    n: int
    """Latents scored under both."""
    difference: float
    """Mean score of the cell's own explanations minus that of the baseline's, positive where the own are better."""
    latents: int
    """Latents of a run for which the power is stated."""
    power: float
    """Share of runs with so many latents whose paired test finds the own explanations better (5 %, two-sided)."""


ControlOutcome = Literal["above", "below", "null", "too few"]
"""Whether trained latents are told apart from a control's (5 %, Holm); too few: fewer than eight on a side."""


class ControlContrast(Documented):
    """Trained coders against a control (`controls:` of the spec), in one stratum."""

    scorer: str
    """The scorer's label in the spec."""
    metric: str
    """The scorer's headline metric."""
    stratum: str
    """L0 of the trained coders, to which that of the control is like, and which latents: `L0 32, one token`."""
    control: str
    """Name of the control."""
    n: tuple[int, int]
    """Latents of the trained coders and of the control."""
    trained: float | None = None
    """Mean score of the trained coders' latents; None, as all that follows, with fewer than eight on a side."""
    value: float | None = None
    """Mean score of the control's latents."""
    difference: float | None = None
    """Trained minus control, positive where trained latents are better."""
    ci95: tuple[float, float] | None = None
    """Its interval, uncorrected."""
    p: float | None = None
    """Two-sided p value of no difference."""
    p_holm: float | None = None
    """The same, corrected for the controls and strata of the scorer."""
    detectable: float | None = None
    """Minimum detectable difference: found with 80 % power at 5 % after that correction."""

    @property
    def outcome(self) -> ControlOutcome:
        """What the test says."""
        if self.difference is None or self.p_holm is None:
            return "too few"
        if self.p_holm > 0.05:
            return "null"
        return "above" if self.difference > 0 else "below"


class VarianceParts(Documented):
    """Where the variance of a scorer's scores comes from, as far as steps were repeated."""

    scorer: str
    """The scorer's label in the spec."""
    n: int
    """Latents on which steps were repeated."""
    latents: float
    """Variance between latents' true scores."""
    windows: float
    """Variance of one latent's score by the choice of its windows; 0 where unknown."""
    noise: dict[str, float]
    """Variance of one latent's score when a step asks again: `judge`, `explainer`."""
    shared: dict[str, float]
    """Variance of a shift that all latents share when that step asks again; it widens the interval for reruns."""


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
    """One row a scorer and metric."""
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


Verdict = Literal["pass", "weak", "fail"]
"""What a check says of a judge: its scores can be read as they are, need care, or carry nearly no information."""


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
