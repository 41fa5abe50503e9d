"""Base classes of explainers and scorers that wrap another one and take over its role, needs and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SerializeAsAny

from saeval.plugin import Explainer, Metric, Need, Scorer


class NeedsOfScorer(Scorer):
    """Base class of scorers with an option `scorer`, declared by subclasses: it determines needs and marks."""

    if TYPE_CHECKING:

        @property
        def scorer(self) -> Scorer: ...

    def needs(self) -> frozenset[Need]:
        """Return the needs of the wrapped scorer."""
        return self.scorer.needs()

    def marks_from(self) -> float:
        """Return the threshold of marks of the wrapped scorer."""
        return self.scorer.marks_from()


class OfScorer(NeedsOfScorer):
    """Base class of scorers that wrap another scorer."""

    scorer: SerializeAsAny[Scorer]
    """The wrapped scorer: `{use: detection}`."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role of the wrapped scorer."""
        return self.scorer.llm_role

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The metrics of the wrapped scorer."""
        return self.scorer.metrics

    @property
    def reads_explanation(self) -> bool:  # type: ignore[override]
        """Whether the wrapped scorer reads the explanation."""
        return self.scorer.reads_explanation


class OfExplainer(Explainer):
    """Base class of explainers that wrap another explainer."""

    explainer: SerializeAsAny[Explainer]
    """The wrapped explainer: `{use: default}`."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role of the wrapped explainer."""
        return self.explainer.llm_role

    def needs(self) -> frozenset[Need]:
        """Return the needs of the wrapped explainer."""
        return self.explainer.needs()
