"""Runs another explainer on windows in one half of the corpus."""

from __future__ import annotations

from typing import Literal

from saeval.plugin import Context, Examples, Explanation
from saeval_plugins._halves import in_half
from saeval_plugins._wrapped import OfExplainer


class HalfExplainer(OfExplainer):
    """Runs another explainer on the latent's windows in one half of the corpus.

    The key `variance: {corpus: true}` of a spec adds this explainer for both halves.
    """

    name = "half"

    half: Literal[0, 1] = 0
    """The half to use."""
    key: int = 0
    """Key that determines how documents are divided into halves."""

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Explain from the windows in one half; skip the latent if there are none."""
        some = in_half(examples, self.half, self.key)
        if not some.activating:
            return Explanation.skipped("no window of the latent is in this half of the corpus")
        return await self.explainer.explain(some, context)
