"""Judged windows of a score as columns, in which journal, summaries and tables take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from saeval.records.scores import Outcome, OutcomeStatus


class JudgedWindows(NamedTuple):
    """Judged windows as columns with one entry per window; see `Outcome`.

    Hundreds of windows per latent take several times as long one by one as in columns.
    """

    example: Sequence[str]
    active: Sequence[bool]
    predicted: Sequence[bool | None]
    probability: Sequence[float | None]
    decile: Sequence[int | None]
    weight: Sequence[float | None]
    written: Sequence[dict[str, Any] | None]
    status: Sequence[OutcomeStatus]
    reason: Sequence[str]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> JudgedWindows:
        """Return windows as columns; written texts as JSON."""
        rows = [vars(outcome) for outcome in outcomes]
        columns = {name: [row[name] for row in rows] for name in cls._fields}
        columns["written"] = [text and text.model_dump(mode="json") for text in columns["written"]]
        return cls(**columns)

    def __bool__(self) -> bool:
        return bool(self.example)
