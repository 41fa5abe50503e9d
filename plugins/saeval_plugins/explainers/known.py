"""Return true explanations of the latents of the source `known`, and known corruptions of them."""

from __future__ import annotations

from saeval.plugin import Context, Examples, Explainer, Explanation
from saeval_plugins._known import N_LATENTS, explanations


class KnownMeaning(Explainer):
    """Returns the true explanation of a latent of the source `known`: the two words on which it fires."""

    name = "known"

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Return the latent's explanation; it fails for latents of other sources."""
        latent = context.latent.index
        if context.latent.hookpoint != "known" or not 0 <= latent < N_LATENTS:
            return Explanation.failed(f"latent {context.latent} does not belong to the source `known`")
        return Explanation(text=explanations(latent)[self.name][0])


class TwiceTooBroad(KnownMeaning):
    """Names the latent's two words and those of the next latent."""

    name = "twice_too_broad"


class TenTimesTooBroad(KnownMeaning):
    """Names the category of the words, such as animals, which covers ten latents."""

    name = "ten_times_too_broad"


class HalfMissing(KnownMeaning):
    """Names one of the two words."""

    name = "half_missing"


class WrongToken(KnownMeaning):
    """Names a word that occurs in the same windows, but on which the latent does not fire."""

    name = "wrong_token"


class NeighbourMeaning(KnownMeaning):
    """Returns the meaning of the next latent, which often fires in the same windows."""

    name = "neighbour"


class Hedged(KnownMeaning):
    """Returns the true explanation with another meaning added by "or"."""

    name = "hedged"


class Negated(KnownMeaning):
    """Returns the opposite of the true explanation."""

    name = "negated"


class Paraphrased(KnownMeaning):
    """Returns the true explanation in other words, so no score should change."""

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
