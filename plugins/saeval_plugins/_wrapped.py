"""What explainers and scorers around another one share: its role, needs and metrics are theirs."""

from __future__ import annotations

from pydantic import SerializeAsAny

from saeval.plugin import Explainer, Metric, Need, Scorer


class OfScorer(Scorer):
    """A scorer around another one."""

    scorer: SerializeAsAny[Scorer]
    """The scorer: `{use: detection}`."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role that the scorer asks."""
        return self.scorer.llm_role

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The scorer's."""
        return self.scorer.metrics

    @property
    def reads_explanation(self) -> bool:  # type: ignore[override]
        """Whether the scorer does."""
        return self.scorer.reads_explanation

    def needs(self) -> frozenset[Need]:
        """Return the scorer's needs."""
        return self.scorer.needs()


class OfExplainer(Explainer):
    """An explainer around another one."""

    explainer: SerializeAsAny[Explainer]
    """The explainer: `{use: default}`."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role that the explainer asks."""
        return self.explainer.llm_role

    def needs(self) -> frozenset[Need]:
        """Return the explainer's needs."""
        return self.explainer.needs()
