"""Half: the explanation of another explainer, from windows in one half of the corpus."""

from __future__ import annotations

from typing import Literal

from saeval.plugin import Context, Examples, Explanation
from saeval_plugins._halves import in_half
from saeval_plugins._wrapped import OfExplainer


class HalfExplainer(OfExplainer):
    """Explains as another explainer does, from those of the latent's windows that are in one half of the corpus.

    `variance: {corpus: true}` of a spec adds it for both halves.
    """

    name = "half"

    half: Literal[0, 1] = 0
    """Which half."""
    key: int = 0
    """Key by which documents are divided into halves."""

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Explain from one half."""
        some = in_half(examples, self.half, self.key)
        if not some.activating:
            return Explanation.skipped("no window of the latent is in this half of the corpus")
        return await self.explainer.explain(some, context)
