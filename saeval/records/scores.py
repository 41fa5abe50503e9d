"""Defines the records about single latents: explanations, judged windows and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from saeval._util import CleanJson, CleanText, Documented
from saeval.records import metrics

MAIN = "explanation"
"""Variant name of a cell's own explanations; the other variants are baselines."""

Status = Literal["ok", "failed", "skipped"]
"""Outcome of a step on one latent: an answer, an error, or skipped for a stated reason."""

OutcomeStatus = Literal["ok", "failed", "unparsed", "refused"]
"""Outcome of one judgement: answered, call failed, no answer in the reply, or declined by the judge."""


class Explanation(Documented, ser_json_inf_nan="constants"):
    """An explanation of a latent, or the record that there is none."""

    text: CleanText
    """The explanation; empty only when the status is not `ok`."""
    status: Status = "ok"
    """Whether there is an explanation. A failed one is never scored."""
    reason: CleanText = ""
    """Why there is none."""
    notes: Annotated[dict[str, JsonValue], CleanJson] = {}
    """Further data that the explainer stores, such as the raw reply."""
    asked: str = ""
    """Prompts and raw replies, compressed; set by saeval. `calls.parquet` has them as text."""

    @classmethod
    def failed(cls, reason: str, **notes: JsonValue) -> Explanation:
        """Return the record of a failed explanation."""
        return cls(text="", status="failed", reason=reason, notes=notes)

    @classmethod
    def skipped(cls, reason: str) -> Explanation:
        """Return the record of an explanation that does not apply to a latent; scorers skip it, too."""
        return cls(text="", status="skipped", reason=reason)


class WrittenText(Documented, ser_json_inf_nan="constants"):
    """A text written for a latent, with its tokens and activations in the subject model."""

    tokens: tuple[CleanText, ...]
    """Its tokens as text; joined, they are the text."""
    activations: tuple[float, ...]
    """One value per token, 0 where the latent does not fire."""


class Outcome(Documented, ser_json_inf_nan="constants"):
    """One judged window: the truth, the judge's answer, and the status of the question."""

    example: CleanText
    """Address of the window, `context:start`; for a text written for the question, its name."""
    active: bool
    """The truth: whether the latent fires (detection), or the marks are correct (fuzzing); always true for intruders.
    For written texts: whether they were written to activate the latent."""
    predicted: bool | None = None
    """The judge's answer, or whether it found the intruder; None unless the status is `ok`."""
    probability: float | None = None
    """The judge's probability, or another value that increases with it, if it gives one."""
    decile: Annotated[int, Field(ge=0, le=9)] | None = None
    """Rank decile of an activating window, 0 the strongest; for intruders, of the other windows in the question."""
    weight: float | None = None
    """Number of randomly drawn windows that a non-activating window represents; None if unknown."""
    written: WrittenText | None = None
    """The text, if it was written for the question; None for windows of the corpus."""
    status: OutcomeStatus = "ok"
    """Status of the question."""
    reason: CleanText = ""
    """Why there is no answer."""


class Score(Documented, ser_json_inf_nan="constants"):
    """Result of one scorer for one explanation of one latent."""

    values: dict[str, float] = {}
    """Metrics by name; always contains the scorer's headline metric if the status is `ok`."""
    outcomes: tuple[Outcome, ...] = ()
    """The judged windows, if the scorer judges windows."""
    status: Status = "ok"
    """Whether there is a score."""
    reason: CleanText = ""
    """Why there is none."""
    notes: Annotated[dict[str, JsonValue], CleanJson] = {}
    """Further data that the scorer stores."""
    asked: str = ""
    """Prompts and raw replies, compressed; set by saeval. `calls.parquet` has them as text."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], **notes: JsonValue) -> Score:
        """Compute the classification metrics of judged windows.

        Windows without an answer are kept and counted, but excluded from the metrics. If no window of a class
        (activating or non-activating) has an answer, there is no balanced accuracy, and the score is `failed`.

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
            why = max(dict.fromkeys(reasons), key=reasons.count) if reasons else "no windows of one class"
            return cls(
                status="failed",
                reason=f"{len(answered)} of {len(outcomes)} judged: {why}",
                outcomes=tuple(outcomes),
                notes=notes,
            )
        return cls(values=values, outcomes=tuple(outcomes), notes=notes)

    @classmethod
    def skipped(cls, reason: str) -> Score:
        """Return the record of a skipped score."""
        return cls(status="skipped", reason=reason)

    @classmethod
    def failed(cls, reason: str) -> Score:
        """Return the record of a failed score."""
        return cls(status="failed", reason=reason)

    def count(self, *statuses: OutcomeStatus) -> int:
        """Return the number of judged windows with one of these statuses."""
        return sum(o.status in statuses for o in self.outcomes)


class Latent(Documented):
    """Facts about one latent that do not depend on scores; a row of `latents.parquet`."""

    latent: int
    """Index of the latent in its dictionary."""
    firings: int
    """Number of tokens in the corpus on which it fires."""
    windows: int
    """Number of activating windows in the corpus."""
    density: float
    """Share of tokens on which it fires."""
    max_activation: float
    """Its strongest activation in whole windows of the sampler's length, which omit the remainder of a context."""
    mean_square: float | None = None
    """Mean of its squared activation over all tokens."""
    token_share: float
    """Share of its firings that fall on the token it fires on most often."""
    position_dependence: float
    """Distance between the distributions of its firings and of all tokens over context positions, 0 to 1."""
    explanation_words: int | None
    """Number of words of its explanation; None without one."""
