"""Explainers: say in words what makes a latent fire."""

from __future__ import annotations

from saeval import Explainer, hookimpl
from saeval_plugins.explainers.default import Default
from saeval_plugins.explainers.random import Random
from saeval_plugins.explainers.top_tokens import TopTokens


@hookimpl
def saeval_explainers() -> list[type[Explainer]]:
    """Add the built-in explainers."""
    return [Default, Random, TopTokens]
