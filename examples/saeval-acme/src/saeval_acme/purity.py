"""Purity: do a latent's strongest windows fire on the same word?"""

from __future__ import annotations

from collections import Counter

from saeval.plugin import Context, Examples, Explanation, Metric, Score, Scorer


class Purity(Scorer):
    """Share of a latent's strongest windows whose strongest token is the most common one. Asks no model."""

    name = "purity"
    metrics = (Metric("purity"),)

    top: int = 10
    """Number of windows used, strongest first."""

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Count the words."""
        strongest = sorted(examples.activating, key=lambda e: -e.max_activation)[: self.top]
        words = Counter(e.tokens[int(e.activations.argmax())].strip().lower() for e in strongest)
        if len(strongest) < 3:
            return Score.skipped("fewer than 3 activating windows")
        return Score(values={"purity": words.most_common(1)[0][1] / len(strongest)})
