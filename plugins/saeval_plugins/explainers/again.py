"""Repeats another explainer with uncached answers, to measure its noise."""

from __future__ import annotations

from dataclasses import replace

from saeval.plugin import Context, Examples, Explanation
from saeval_plugins._again import AskedAgain
from saeval_plugins._wrapped import OfExplainer


class AgainExplainer(OfExplainer):
    """Repeats another explainer on the same windows with uncached answers.

    The difference between the scores of both explanations is the explainer's noise. The key `variance:` of a spec adds
    this explainer.
    """

    name = "again"

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Explain with uncached answers."""
        return await self.explainer.explain(examples, replace(context, llm=AskedAgain(context.llm)))
