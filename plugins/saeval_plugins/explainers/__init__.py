"""Explainers: say in words what makes a latent fire."""

from __future__ import annotations

from saeval.plugin import Explainer, hookimpl
from saeval_plugins.explainers.contrastive import Contrastive
from saeval_plugins.explainers.default import Default
from saeval_plugins.explainers.frozen import Frozen, FrozenRandom, FrozenShuffled, FrozenTopTokens
from saeval_plugins.explainers.intervention import Intervention
from saeval_plugins.explainers.lens import Lens
from saeval_plugins.explainers.precomputed import Precomputed
from saeval_plugins.explainers.random import Random
from saeval_plugins.explainers.refine import Refine
from saeval_plugins.explainers.shuffled import Shuffled
from saeval_plugins.explainers.single_token import SingleToken
from saeval_plugins.explainers.top_tokens import TopTokens


@hookimpl
def saeval_explainers() -> list[type[Explainer]]:
    """Add the built-in explainers."""
    return [
        Contrastive,
        Default,
        Intervention,
        Lens,
        Precomputed,
        Random,
        Refine,
        Shuffled,
        SingleToken,
        TopTokens,
        Frozen,
        FrozenShuffled,
        FrozenRandom,
        FrozenTopTokens,
    ]
