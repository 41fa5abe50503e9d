"""Runs another scorer on windows in one half of the corpus."""

from __future__ import annotations

from typing import Literal

from saeval.plugin import Context, Examples, Explanation, Score
from saeval_plugins._halves import in_half
from saeval_plugins._wrapped import OfScorer

_FEWEST = 2  # minimum activating, and minimum non-activating, windows for a score


class Half(OfScorer):
    """Runs another scorer on the latent's windows in one half of the corpus.

    Latents with fewer than two activating or two non-activating windows in it are skipped. The key `variance: {corpus:
    true}` of a spec adds this scorer for both halves.
    """

    name = "half"

    half: Literal[0, 1] = 0
    """The half to use."""
    key: int = 0
    """Key that determines how documents are divided into halves."""

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Score the windows in one half; skip the latent if there are too few."""
        some = in_half(examples, self.half, self.key)
        if min(len(some.activating), len(some.non_activating)) < _FEWEST:
            return Score.skipped("fewer than two activating or two non-activating windows in this half of the corpus")
        return await self.scorer.score(explanation, some, context)
