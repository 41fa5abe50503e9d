"""Defines the rows of leaderboards and of related tables: scores, floors, rates and comparisons."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from saeval._util import Documented
from saeval.records.columns import NAME_COLUMN, PER_SCORE, TABLES_ONLY, WITH_ROOM, Better, ColumnStyle
from saeval.records.scores import MAIN

Verdict = Literal["pass", "weak", "fail"]
"""Result of a check of a judge: its scores are reliable (`pass`), need care (`weak`), or carry almost no information
(`fail`)."""


def _number_format(specification: str) -> str:
    if specification != "measure":
        try:
            format(1.0, specification)
        except ValueError:
            raise ValueError(f"{specification!r} is not a format specification of a number, such as .3f") from None
    return specification


def _ordered(bounds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = bounds
    if low is not None and high is not None and low >= high:
        raise ValueError(f"the least value, {low:g}, is not below the greatest, {high:g}")
    return bounds


class FloorSample(Documented):
    """A score's floor: the score of uninformed explanations on the same latents, with the same windows and judge."""

    variant: str
    """Kind of the explanations: `shuffled_explanation` (of nearly independent latents), `random_explanation`, …"""
    n: int
    """Number of latents that have both a score and a floor."""
    own: float
    """Mean score of those latents."""
    value: float
    """Mean floor of those latents."""
    covariance: tuple[float, float, float]
    """Over those latents: variance of the scores, variance of the floors, covariance of the two. For pooled seeds,
    times the mean number of seeds that draw a latent."""
    least_error: float
    """Lower bound of the lift's standard error, since a few equal differences are weak evidence."""
    p: float | None
    """One-sided p value of the hypothesis that scores do not depend on the explanation; from sign flips of score −
    floor."""
    same: float | None = None
    """Share of the windows judged under both explanations that got the same answer; None if there are no answers per
    window."""
    answers: int = 0
    """Number of those windows."""
    shared: str = ""
    """Hash of the floor's latents, windows, explanations and scores. Cells with equal hashes, such as several
    explainers of the same latents, share one floor, which counts once. Empty if unknown."""


class NaturalRates(Documented):
    """Precision, F1 and IoU at the latents' firing rate in the corpus, where nearly all windows are non-activating."""

    rate: float
    """Share of the corpus's windows in which a latent fires, mean over latents."""
    n: int
    """Number of latents."""
    recall: float
    """Share of the activating windows that are found."""
    false_positive_rate: float
    """Share of the corpus's non-activating windows judged as activating, pooled over latents with similar firing
    rates."""
    precision: float
    """Share of the windows judged as activating that are activating."""
    precision_ci95: tuple[float, float]
    """Its interval."""
    f1: float
    """Harmonic mean of precision and recall."""
    f1_ci95: tuple[float, float]
    """Its interval."""
    iou: float
    """Intersection over union of the activating windows and those judged as activating."""
    iou_ci95: tuple[float, float]
    """Its interval."""
    ceiling: float | None
    """Precision that perfect explanations get under this judge; None if the judge was not checked."""
    not_identifiable: str = ""
    """Why a low precision may come from the judge and not from the explanations; empty if it cannot."""


class Measure(Documented):
    """A measure of a coder that leaderboards show; saeval defines some, coder and source plugins declare others.

    Example:
        >>> Measure(name="dead", title="dead latents", unit="latents", format=",.0f", better="lower").head
        'dead latents'
    """

    name: str
    """Its name in results, tables and JSON."""
    title: str = ""
    """Its heading on leaderboards; the name if empty."""
    about: str = ""
    """Its meaning, in a sentence."""
    unit: str = ""
    """Unit of its values."""
    format: Annotated[str, AfterValidator(_number_format)] = "measure"
    """Format in narrow output: a Python format specification, or `measure` for four digits."""
    better: Better | None = None
    """Direction; None if neither direction is better."""
    on_board: bool = True
    """Whether narrow leaderboards (terminal, LaTeX) show it, in addition to reports and tables."""

    @property
    def head(self) -> str:
        """Its heading on leaderboards."""
        return self.title or self.name


class ScoreRow(Documented):
    """One number of the leaderboard: a scorer's metric over the latents of a cell, with its uncertainty and quality.

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
    """Direction of the metric; None for a number that is not a score, such as a condition of the measurement."""
    on_board: bool = False
    """Whether leaderboards show the metric although it is not its scorer's headline."""
    range: Annotated[tuple[float | None, float | None], AfterValidator(_ordered)]
    """Lowest and highest possible value of the metric; None if there is no such bound."""
    value: Annotated[float | None, ColumnStyle(format=".3f", where=WITH_ROOM)]
    """Mean over latents; None if no latent was scored."""
    median: Annotated[float | None, ColumnStyle(format=".3f", where=TABLES_ONLY)]
    """Median over latents."""
    ci95: Annotated[tuple[float, float] | None, ColumnStyle("95 % CI", ".3f", kind="interval", where=WITH_ROOM)]
    """95 % interval of the mean (bootstrap over latents). None for a single latent if the metric has no bounds."""
    method: Annotated[str, NAME_COLUMN] = "bootstrap over latents"
    """How the interval was computed."""
    n: Annotated[int, ColumnStyle(unit="latents", kind="int64", where=TABLES_ONLY)]
    """Number of latents scored, for which the metric is defined."""
    tried: Annotated[int, ColumnStyle(unit="latents", kind="int64", where=TABLES_ONLY)]
    """Number of latents on which the scorer was run."""
    failed: Annotated[int, ColumnStyle("fail", unit="latents", better="lower", kind="int64", where=PER_SCORE)]
    """Number of latents without a score because the explanation or the scorer failed; not those for which only this
    metric is undefined."""
    skipped: Annotated[int, ColumnStyle(unit="latents", kind="int64", where=WITH_ROOM)] = 0
    """Number of latents that the scorer skipped for a stated reason, such as no human rating; not failures."""
    off: Annotated[bool, ColumnStyle(kind="bool", where=TABLES_ONLY)] = False
    """Whether a condition of the scorer, such as a target divergence of steering, was missed beyond its tolerance."""
    unparsed: Annotated[int, ColumnStyle("unanswered", unit="windows", better="lower", kind="int64", where=WITH_ROOM)]
    """Number of judged windows without an answer (reply unparsable or refused), over all latents."""
    coverage: Annotated[float, ColumnStyle("cover", ".0%", better="higher", where=WITH_ROOM)]
    """Share of the latents tried that were scored and for which the metric is defined."""
    floor: Annotated[dict[str, float], ColumnStyle(format=".3f", missing="", where=WITH_ROOM)]
    """The same metric for the baselines on the same cell, and the metric's chance level, by name."""
    against: FloorSample | None = None
    """The floor that the lift is relative to; None without one."""
    lift: Annotated[float | None, ColumnStyle(format="+.3f", better="higher", missing="", where=PER_SCORE)]
    """Value minus floor, positive if better, with floors pooled over the cells of the run; None without a floor."""
    lift_ci95: Annotated[
        tuple[float, float] | None, ColumnStyle("lift 95 % CI", "+.3f", kind="interval", missing="", where=WITH_ROOM)
    ] = None
    """Interval of the lift, which includes the floor's error."""
    windows: Annotated[int, ColumnStyle(unit="windows", kind="int64", where=TABLES_ONLY)] = 0
    """Number of windows the judge was asked about, over all latents; 0 for scorers without answers per window. Latents
    that failed before the first question count with the mean number of the others."""
    answered: Annotated[int, ColumnStyle(unit="windows", kind="int64", where=TABLES_ONLY)] = 0
    """Number of windows it answered."""
    bounds: Annotated[tuple[float, float] | None, ColumnStyle(kind="interval", where=TABLES_ONLY)] = None
    """The value if all unanswered windows were judged wrongly, and if all were judged correctly; latents that failed
    count as unanswered. None if unknown, and for other metrics than headlines."""
    corrected: Annotated[float | None, ColumnStyle(where=TABLES_ONLY)] = None
    """Value corrected for the judge's errors on latents of known meaning; None unless requested and known."""
    corrected_ci95: Annotated[tuple[float, float] | None, ColumnStyle(kind="interval", where=TABLES_ONLY)] = None
    """Interval of the corrected value, which includes the uncertainty of the judge's errors."""
    weighted: Annotated[float | None, ColumnStyle(where=TABLES_ONLY)] = None
    """Mean weighted by firing rate or share in reconstructions; None unless the leaderboard requests it."""
    weighted_ci95: Annotated[tuple[float, float] | None, ColumnStyle(kind="interval", where=TABLES_ONLY)] = None
    """Interval of the weighted mean, for latents with these weights."""
    weighted_n: Annotated[float | None, ColumnStyle(unit="latents", where=TABLES_ONLY)] = None
    """Effective number of latents of the weighted mean."""
    prediction95: Annotated[
        tuple[float, float] | None, ColumnStyle("rerun 95 %", ".3f", kind="interval", missing="", where=WITH_ROOM)
    ] = None
    """95 % prediction interval: range of the value in reruns with other latents; wider than `ci95`."""
    reliability: Annotated[float | None, ColumnStyle(format=".2f", better="higher", missing="", where=WITH_ROOM)] = None
    """Share of the variance of the latents' scores that is not sampling noise of their windows; None if unknown."""
    natural: NaturalRates | None = None
    """Precision, F1 and IoU at the firing rate in the corpus; None for other metrics, for scorers that do not measure
    the explanation, and if windows were not drawn with known probabilities."""
    judge: Annotated[str | None, NAME_COLUMN]
    """Model that judged; None for scorers without an LLM."""
    verdict: Annotated[Verdict | None, NAME_COLUMN] = None
    """Verdict of `judge-check` on this judge with this scorer's prompts; None if it was not checked."""
    explanation_words: Annotated[float | None, ColumnStyle("words", ".1f", unit="words", where=PER_SCORE)] = None
    """Mean number of words of the scored explanations; None if unknown."""
    usd: Annotated[float | None, ColumnStyle("$", ".2f", unit="$", better="lower", missing="?", where=PER_SCORE)]
    """Dollars spent on this scorer in this cell; None if a price is unknown."""

    MAX_UNANSWERED: ClassVar[float] = 0.05
    """Share of unanswered windows above which a row is marked."""
    FEW: ClassVar[int] = 20
    """Number of latents below which an interval is marked, since it may be too narrow."""

    @property
    def few(self) -> bool:
        """Whether the interval comes from so few latents that it may be too narrow."""
        return self.n < self.FEW

    @property
    def lift_few(self) -> bool:
        """Whether the floor comes from so few latents that the lift's interval may be too narrow."""
        return self.against is not None and self.against.n < self.FEW

    @property
    def unanswered(self) -> float:
        """Share of the judged windows that have no answer."""
        return (self.windows - self.answered) / self.windows if self.windows else 0.0


class DecileShares(Documented):
    """Share of windows that a scorer judged correctly, by decile of activation; over all answered windows."""

    scorer: str
    """The scorer's label in the spec."""
    right: tuple[float | None, ...]
    """Share of activating windows judged correctly, by rank decile, the strongest first; None if there are none."""
    n: tuple[int, ...]
    """Number of those windows, by decile."""
    negatives_right: float | None
    """Share of windows judged correctly among those whose correct answer is "no": non-activating or wrongly marked."""
    negatives_n: int
    """Number of those windows."""


class Correlation(Documented):
    """Correlation of two scorers' headline metrics over the latents scored by both."""

    scorers: tuple[str, str]
    """Labels of the two scorers."""
    n: int
    """Number of latents scored by both."""
    pearson: float | None
    """Pearson correlation; None for fewer than three latents, or if a scorer gives all latents the same score."""
    spearman: float | None
    """Spearman rank correlation; None in the same cases."""
    corrected: float | None = None
    """Pearson correlation corrected for the noise of both scores (disattenuated); None if a reliability is unknown or
    below 0.1."""


class Power(Documented):
    """Power of a scorer to distinguish a cell's own explanations from those of an informed baseline."""

    scorer: str
    """The scorer's label in the spec."""
    variant: str
    """The baseline."""
    metric: str
    """The scorer's headline metric."""
    n: int
    """Number of latents scored under both."""
    difference: float
    """Mean score of the cell's own explanations minus that of the baseline's, positive if the own are better."""
    latents: int
    """Number of latents per run that the power is computed for."""
    power: float
    """Share of runs with that many latents whose paired test finds the own explanations better (5 %, two-sided)."""
    ci95: tuple[float, float] | None = None
    """The power at both ends of the mean difference's 95 % interval. It is wide if the latents are few."""


ControlOutcome = Literal["above", "below", "null", "too few"]
"""Whether scores of trained latents differ from a control's (5 %, Holm); `too few`: fewer than eight latents on a
side."""


class ControlContrast(Documented):
    """Trained coders against a control (`controls:` of the spec), in one stratum."""

    scorer: str
    """The scorer's label in the spec."""
    metric: str
    """The scorer's headline metric."""
    stratum: str
    """L0 of the trained coders (the control's is similar) and the group of latents: `L0 32, one token`."""
    control: str
    """Name of the control."""
    n: tuple[int, int]
    """Number of latents of the trained coders and of the control."""
    trained: float | None = None
    """Mean score of the trained coders' latents; this and all following fields are None with fewer than eight on a
    side."""
    value: float | None = None
    """Mean score of the control's latents."""
    difference: float | None = None
    """Trained minus control, positive if trained latents are better."""
    ci95: tuple[float, float] | None = None
    """Its interval, uncorrected."""
    p: float | None = None
    """Two-sided p value of no difference."""
    p_holm: float | None = None
    """The p value with Holm's correction over the scorer's controls and strata."""
    detectable: float | None = None
    """Minimum detectable difference (80 % power at 5 %, with that correction)."""

    @property
    def outcome(self) -> ControlOutcome:
        """Result of the test."""
        if self.difference is None or self.p_holm is None:
            return "too few"
        if self.p_holm > 0.05:
            return "null"
        return "above" if self.difference > 0 else "below"


class VarianceParts(Documented):
    """Variance components of a scorer's scores, from repeated steps."""

    scorer: str
    """The scorer's label in the spec."""
    n: int
    """Number of latents on which steps were repeated."""
    latents: float
    """Variance between latents' true scores."""
    windows: float
    """Variance of one latent's score due to the choice of its windows; 0 if unknown."""
    noise: dict[str, float]
    """Variance of one latent's score when a step is repeated (`judge`, `explainer`) or the text differs (`corpus`)."""
    shared: dict[str, float]
    """Variance of a shift common to all latents, by the same sources; it widens the interval for reruns."""
