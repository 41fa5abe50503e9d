"""Makes outcomes for scorers that give each window a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import JsonValue

from saeval import LLMError
from saeval._util import ParseError, Refused
from saeval.records import Example, Outcome, Score


def valued(window: Example, value: float) -> Outcome:
    """Record a window's value."""
    return Outcome(example=window.id, active=window.active, decile=window.decile, probability=value)


def unanswered(window: Example, error: ParseError | LLMError) -> Outcome:
    """Record why a window has no value."""
    status: Literal["unparsed", "refused", "failed"] = (
        "unparsed" if isinstance(error, ParseError) else "refused" if isinstance(error, Refused) else "failed"
    )
    return Outcome(example=window.id, active=window.active, decile=window.decile, status=status, reason=str(error))


def failed(outcomes: Sequence[Outcome], otherwise: str, **notes: JsonValue) -> Score:
    """Return a failed score with the most frequent reason of the windows, or else another."""
    reasons = [outcome.reason for outcome in outcomes if outcome.reason]
    why = max(dict.fromkeys(reasons), key=reasons.count) if reasons else otherwise
    answered = sum(outcome.status == "ok" for outcome in outcomes)
    reason = f"{answered} of {len(outcomes)} windows answered: {why}"
    return Score(status="failed", reason=reason, outcomes=tuple(outcomes), notes=notes)
