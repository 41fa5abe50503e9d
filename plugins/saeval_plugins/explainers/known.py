"""True explanations of the source `known`'s latents, and known corruptions of them."""

from __future__ import annotations

from saeval.plugin import Context, Examples, Explainer, Explanation
from saeval_plugins._known import N_LATENTS, explanations


class KnownMeaning(Explainer):
    """Gives the true explanation of a latent of the source `known`: the two words on which it fires."""

    name = "known"

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Look the latent up."""
        latent = context.latent.index
        if context.latent.hookpoint != "known" or not 0 <= latent < N_LATENTS:
            return Explanation.failed(f"latent {context.latent} is not one of the source `known`")
        return Explanation(text=explanations(latent)[self.name][0])


class TwiceTooBroad(KnownMeaning):
    """Names two words of the next latent, too."""

    name = "twice_too_broad"


class TenTimesTooBroad(KnownMeaning):
    """Names the category of ten latents' words, such as animals."""

    name = "ten_times_too_broad"


class HalfMissing(KnownMeaning):
    """Names one of the two words."""

    name = "half_missing"


class WrongToken(KnownMeaning):
    """Names a word from the same windows on which the latent does not fire."""

    name = "wrong_token"


class NeighbourMeaning(KnownMeaning):
    """Gives the meaning of the next latent, which often fires in the same windows."""

    name = "neighbour"


class Hedged(KnownMeaning):
    """Adds another meaning with "or"."""

    name = "hedged"


class Negated(KnownMeaning):
    """Says the opposite."""

    name = "negated"


class Paraphrased(KnownMeaning):
    """Says the same in other words, so no score should change."""

    name = "paraphrased"


KNOWN_MEANINGS: list[type[Explainer]] = [
    KnownMeaning,
    TwiceTooBroad,
    TenTimesTooBroad,
    HalfMissing,
    WrongToken,
    NeighbourMeaning,
    Hedged,
    Negated,
    Paraphrased,
]
"""The true explanation and its corruptions."""
