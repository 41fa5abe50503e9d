"""Coders: load SAEs, transcoders, neurons, random and single directions."""

from __future__ import annotations

from saeval.plugin import Coder, hookimpl
from saeval_plugins.coders.caa import Caa
from saeval_plugins.coders.dictionary_learning import DictionaryLearning
from saeval_plugins.coders.direction import Direction
from saeval_plugins.coders.gemma_scope import GemmaScope
from saeval_plugins.coders.neurons import Neurons
from saeval_plugins.coders.random import RandomSae
from saeval_plugins.coders.sae_lens import SaeLens
from saeval_plugins.coders.sparsify import Sparsify


@hookimpl
def saeval_coders() -> list[type[Coder]]:
    """Add the built-in coders."""
    return [SaeLens, Sparsify, DictionaryLearning, GemmaScope, RandomSae, Neurons, Direction, Caa]
