"""Repeats another explainer with uncached answers, to measure its noise."""

from __future__ import annotations

from dataclasses import replace

from pydantic import SerializeAsAny

from saeval.plugin import Context, Examples, Explainer, Explanation
from saeval_plugins._again import AskedAgain


class AgainExplainer(Explainer):
    """Repeats another explainer on the same windows with uncached answers.

    The difference between the scores of both explanations is the explainer's noise. `variance:` of a spec adds it.
    """

    name = "again"

    explainer: SerializeAsAny[Explainer]
    """The explainer: `{use: default}`."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role that the explainer asks."""
        return self.explainer.llm_role

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Ask again."""
        return await self.explainer.explain(examples, replace(context, llm=AskedAgain(context.llm)))
