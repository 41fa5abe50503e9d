"""Half: the explanation of another explainer, from windows in one half of the corpus."""

from __future__ import annotations

from typing import Literal

from pydantic import SerializeAsAny

from saeval.plugin import Context, Examples, Explainer, Explanation, Need
from saeval_plugins._halves import in_half


class HalfExplainer(Explainer):
    """Explains as another explainer does, from those of the latent's windows that are in one half of the corpus.

    `variance: {corpus: true}` of a spec adds it for both halves.
    """

    name = "half"

    explainer: SerializeAsAny[Explainer]
    """The explainer: `{use: default}`."""
    half: Literal[0, 1] = 0
    """Which half."""
    key: int = 0
    """Key by which documents are divided into halves."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role that the explainer asks."""
        return self.explainer.llm_role

    def needs(self) -> frozenset[Need]:
        """What the explainer needs."""
        return self.explainer.needs()

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Explain from one half."""
        some = in_half(examples, self.half, self.key)
        if not some.activating:
            return Explanation.skipped("no window of the latent is in this half of the corpus")
        return await self.explainer.explain(some, context)
