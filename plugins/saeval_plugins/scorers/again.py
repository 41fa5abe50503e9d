"""Repeats another scorer with uncached answers, to measure its noise."""

from __future__ import annotations

from dataclasses import replace

from pydantic import SerializeAsAny

from saeval.plugin import Context, Examples, Explanation, Metric, Need, Score, Scorer
from saeval_plugins._again import AskedAgain


class Again(Scorer):
    """Repeats another scorer on the same windows in another order, with uncached answers.

    The difference to that scorer's own score is the judge's noise. `variance:` of a spec adds it to each scorer.
    """

    name = "again"

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
        """What the scorer needs."""
        return self.scorer.needs()

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Ask again."""
        return await self.scorer.score(explanation, examples, replace(context, llm=AskedAgain(context.llm)))
