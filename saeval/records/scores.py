"""Defines what a run records of single latents: explanations, judged windows and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from saeval._util import CleanJson, CleanText, Documented
from saeval.records import metrics

MAIN = "explanation"
"""Variant of a cell's own explanations, beside those of baselines by their names."""

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

    @classmethod
    def skipped(cls, reason: str) -> Explanation:
        """Return the record of an explanation that does not apply to a latent; scorers skip it, too."""
        return cls(text="", status="skipped", reason=reason)


class WrittenText(Documented):
    """A text that was written for a latent, as the live model read it."""

    tokens: tuple[CleanText, ...]
    """Its tokens as text; joined, they are what was read."""
    activations: tuple[float, ...]
    """One value per token, 0 where the latent was silent."""


class Outcome(Documented):
    """One judged window: the truth, the answer, and the status of the question."""

    example: CleanText
    """Address of the window, `context:start`; of a text that was written for the question, its name."""
    active: bool
    """The truth: whether the latent fires (detection), or the marks are right (fuzzing); always true for intruders.
    Of written texts: whether they were written to activate the latent."""
    predicted: bool | None = None
    """The judge's answer, or whether it found the intruder; None unless the status is `ok`."""
    probability: float | None = None
    """The judge's probability, or another value that increases with it; None if there is none."""
    decile: Annotated[int, Field(ge=0, le=9)] | None = None
    """Rank decile of an activating window, 0 the strongest; of the others in the question (intruder)."""
    weight: float | None = None
    """Number of windows drawn at random that a non-activating window stands for; None where that is unknown."""
    written: WrittenText | None = None
    """The text, where it was written for the question; None for windows of the corpus."""
    status: OutcomeStatus = "ok"
    """Status of the question."""
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
