"""Judged windows of a score as columns, in which journal, summaries and tables take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, get_args

from saeval.records.scores import Outcome, OutcomeStatus

_PLAIN: Final[dict[str, frozenset[type]]] = {
    "example": frozenset({str}), "active": frozenset({bool}), "predicted": frozenset({bool, type(None)}),
    "probability": frozenset({float, type(None)}), "decile": frozenset({int, type(None)}),
    "weight": frozenset({float, type(None)}), "written": frozenset({type(None)}), "status": frozenset({str}),
    "reason": frozenset({str}),
}  # fmt: skip
_DECILES: Final = frozenset({None, *range(10)})
_STATUSES: Final = frozenset(get_args(OutcomeStatus))


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

    @property
    def plain(self) -> bool:
        """Whether all windows are valid outcomes that JSON certainly returns as they are: ASCII, no written texts."""
        typed = all({*map(type, column)} <= _PLAIN[name] for name, column in self._asdict().items())
        return (
            typed
            and _DECILES.issuperset(self.decile)
            and _STATUSES.issuperset(self.status)
            and "".join([*self.example, *self.reason]).isascii()
        )

    def __bool__(self) -> bool:
        return bool(self.example)
