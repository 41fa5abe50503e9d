"""Repeats another scorer with uncached answers, to measure its noise."""

from __future__ import annotations

from dataclasses import replace

from saeval.plugin import Context, Examples, Explanation, Score
from saeval_plugins._again import AskedAgain
from saeval_plugins._wrapped import OfScorer


class Again(OfScorer):
    """Repeats another scorer on the same windows in another order, with uncached answers.

    The difference from that scorer's own score is the judge's noise. The key `variance:` of a spec adds this scorer for
    each of the spec's scorers.
    """

    name = "again"

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Score with uncached answers."""
        return await self.scorer.score(explanation, examples, replace(context, llm=AskedAgain(context.llm)))
