"""Example embedding measures whether activating windows are closer to each other than to others (arXiv 2507.08473)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.plugin import Context, Examples, Explanation, Outcome, Score, one_line
from saeval_plugins.scorers.embedding import Embeddings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ExampleEmbedding(Embeddings):
    """Ranks the windows by their mean cosine to activating windows minus that to non-activating ones.

    Both means exclude the window itself. For the AUROC, an activating and a non-activating window are compared by means
    that exclude both, or the score of windows that are all of a kind would be below .5. The explanation is not used.
    The score measures how similar a latent's windows are to an embedding model, which sees whole windows but not which
    tokens fire. A latent's score has no interval, and the scorer no reliability: every window is in all means, so the
    noise of windows is not that of independent judgements.
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
        # The values are notes and not the outcomes' probabilities. DeLong's variance of those would be too small by a
        # factor of about 2 where windows hardly differ; a jackknife's is too large by as much.
        outcomes = tuple(Outcome(example=w.id, active=w.active, decile=w.decile) for w in windows)
        values = {"auroc": _auroc(cosines, len(examples.activating))}
        return Score(values=values, outcomes=outcomes, notes={"nearer": (near - far).tolist()})


def _auroc(cosines: NDArray[np.float64], n: int) -> float:
    """Return the share of pairs of an activating and another window in which the activating one is nearer its own kind.

    Args:
        cosines: Cosines of all pairs of windows, the n activating ones first; 0 on the diagonal.  [windows, windows]
        n: Number of activating windows.
    """
    m = len(cosines) - n
    nearer = cosines[:, :n].sum(axis=1) / (n - 1) - cosines[:, n:].sum(axis=1) / (m - 1)
    each_other = cosines[:n, n:] * (1 / (n - 1) + 1 / (m - 1))  # removes each window of a pair from the other's means
    apart = (nearer[:n, None] - nearer[n:] + each_other).round(9)  # so that equal windows are ties
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())
