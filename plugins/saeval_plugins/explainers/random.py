"""The random baseline: a plausible explanation drawn from a list, without seeing the latent."""

from __future__ import annotations

from saeval.plugin import Context, Examples, Explainer, Explanation
from saeval_plugins.prompts import load

EXPLANATIONS = load("random_explanations.txt")


class RandomExplainer(Explainer):
    """Returns a random explanation from a fixed list, as a floor for scores (paper §4, `random explanation`)."""

    name = "random"
    uninformed = True
    prompts = (EXPLANATIONS,)

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Draw an explanation; the examples are not used."""
        return Explanation(text=str(context.rng.choice(EXPLANATIONS.text.splitlines())))
