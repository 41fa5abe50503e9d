"""Built-in explainers, which describe in words what makes a latent fire."""

from __future__ import annotations

from saeval.plugin import Explainer, hookimpl
from saeval_plugins.explainers.again import AgainExplainer
from saeval_plugins.explainers.contrastive import Contrastive
from saeval_plugins.explainers.default import Default
from saeval_plugins.explainers.frozen import FrozenExplainer, FrozenRandom, FrozenShuffled, FrozenTopTokens
from saeval_plugins.explainers.half import HalfExplainer
from saeval_plugins.explainers.intervention import InterventionExplainer
from saeval_plugins.explainers.known import KNOWN_MEANINGS
from saeval_plugins.explainers.lens import Lens
from saeval_plugins.explainers.precomputed import Precomputed
from saeval_plugins.explainers.probing import Probing
from saeval_plugins.explainers.random import RandomExplainer
from saeval_plugins.explainers.refine import Refine
from saeval_plugins.explainers.senses import Senses
from saeval_plugins.explainers.shuffled import Shuffled
from saeval_plugins.explainers.single_token import SingleToken
from saeval_plugins.explainers.top_tokens import TopTokens


@hookimpl
def saeval_explainers() -> list[type[Explainer]]:
    """Add the built-in explainers."""
    return [
        AgainExplainer,
        HalfExplainer,
        Contrastive,
        Default,
        InterventionExplainer,
        Lens,
        Precomputed,
        Probing,
        RandomExplainer,
        Refine,
        Senses,
        Shuffled,
        SingleToken,
        TopTokens,
        FrozenExplainer,
        FrozenShuffled,
        FrozenRandom,
        FrozenTopTokens,
        *KNOWN_MEANINGS,
    ]
