"""The shuffled baseline: each latent gets the explanation of another latent."""

from __future__ import annotations

from functools import cached_property

from saeval.plugin import Context, Examples, Explanation, content_hash
from saeval_plugins.explainers.precomputed import FromFile


class Shuffled(FromFile):
    """Returns another latent's explanation from a file, to measure how well style alone scores (paper §4).

    Each explanation is used once. The baseline `shuffled_explanation` does the same with the cell's own explanations.
    """

    name = "shuffled"
    uninformed = True

    seed: int = 0
    """Seed of the assignment, which does not depend on the order of the file's rows."""

    @cached_property
    def others(self) -> dict[int, int]:
        """For each latent, the latent whose explanation it gets: the next in a ring ordered by a keyed hash."""
        ring = sorted(self.explanations, key=lambda latent: content_hash(self.seed, latent))
        return dict(zip(ring, ring[1:] + ring[:1], strict=True))

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Return the explanation of another latent."""
        other = self.others.get(context.latent.index)
        if other is None:
            return self._missing(context.latent.index)
        if other == context.latent.index:
            return Explanation.failed(f"{self.path.name} explains no other latent to swap with")
        return Explanation(text=self.explanations[other], notes={"latent": other})
