"""Half: the score of another scorer, on windows in one half of the corpus."""

from __future__ import annotations

from typing import Literal

from saeval.plugin import Context, Examples, Explanation, Score
from saeval_plugins._halves import in_half
from saeval_plugins._wrapped import OfScorer

_FEWEST = 2  # windows of each side that a score is made of


class Half(OfScorer):
    """Scores as another scorer does, on those of the latent's windows that are in one half of the corpus.

    Latents with fewer than two activating or two non-activating windows there are skipped. `variance: {corpus: true}`
    of a spec adds it for both halves.
    """

    name = "half"

    half: Literal[0, 1] = 0
    """Which half."""
    key: int = 0
    """Key by which documents are divided into halves."""

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Score on one half."""
        some = in_half(examples, self.half, self.key)
        if min(len(some.activating), len(some.non_activating)) < _FEWEST:
            return Score.skipped("fewer than two windows of a kind are in this half of the corpus")
        return await self.scorer.score(explanation, some, context)
