"""Example embedding measures whether activating windows are closer to each other than to others (arXiv 2507.08473)."""

from __future__ import annotations

from saeval.plugin import Context, Examples, Explanation, Score, one_line
from saeval_plugins.scorers.embedding import Embeddings


class ExampleEmbedding(Embeddings):
    """Ranks the windows by their mean cosine to activating windows minus that to non-activating ones.

    Both means exclude the window itself. The explanation is not used. The score measures how similar a latent's windows
    are to an embedding model, which sees whole windows but not which tokens fire.
    """

    name = "example_embedding"
    reads_explanation = False

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Compute the cosines of all pairs, and how well their means separate the windows."""
        import numpy as np

        windows = (*examples.activating, *examples.non_activating)
        if min(len(examples.activating), len(examples.non_activating)) < 2:
            return Score.skipped("fewer than two activating or two non-activating windows, so there is no comparison")
        vectors = (await self.embed([one_line(window.text) for window in windows], context)).astype(np.float64)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, 0.0)
        active = np.array([window.active for window in windows], dtype=np.float64)
        near = cosines @ active / (active.sum() - active)
        far = cosines @ (1 - active) / ((1 - active).sum() - (1 - active))
        return self.separation(windows, (near - far).tolist())
