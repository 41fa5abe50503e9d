"""Coders: load SAEs, transcoders, neurons and random directions."""

from __future__ import annotations

from saeval import Coder, hookimpl
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens


@hookimpl
def saeval_coders() -> list[type[Coder]]:
    """Add the built-in coders."""
    return [SaeLens, RandomSae, Neurons]
