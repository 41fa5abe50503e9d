"""Defines the rows of leaderboards and the tables beside them: scores of cells, their floors, rates and comparisons."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from saeval._util import Documented
from saeval.records.columns import NAME_COLUMN, PER_SCORE, TABLES_ONLY, WITH_ROOM, Better, ColumnStyle
from saeval.records.scores import MAIN

Verdict = Literal["pass", "weak", "fail"]
"""What a check says of a judge: its scores can be read as they are, need care, or carry nearly no information."""


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
    """Share of the corpus's silent windows that are judged as activating, pooled over latents with similar rates."""
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
        return (self.windows - self.answered) / self.windows if self.windows else 0.0


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
"""Whether trained latents are distinguished from a control's (5 %, Holm); too few: fewer than eight on a side."""


class ControlContrast(Documented):
    """Trained coders against a control (`controls:` of the spec), in one stratum."""

    scorer: str
    """The scorer's label in the spec."""
    metric: str
    """The scorer's headline metric."""
    stratum: str
    """L0 of the trained coders (the control's is similar), and which latents: `L0 32, one token`."""
    control: str
    """Name of the control."""
    n: tuple[int, int]
    """Latents of the trained coders and of the control."""
    trained: float | None = None
    """Mean score of the trained coders' latents; None, as all that follows, with fewer than eight on a side."""
    value: float | None = None
    """Mean score of the control's latents."""
    difference: float | None = None
    """Trained minus control, positive if trained latents are better."""
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
    """Variance of one latent's score when a step asks again (`judge`, `explainer`) or with other text (`corpus`)."""
    shared: dict[str, float]
    """Variance of a shift that all latents share likewise; it widens the interval for reruns."""
