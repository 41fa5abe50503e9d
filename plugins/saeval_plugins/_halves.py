"""Selects a latent's windows in one half of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import numpy as np

from saeval.plugin import Example, Examples
from saeval_plugins.samplers.split import hashed_documents


def in_half(examples: Examples, half: int, key: int) -> Examples:
    """Return the examples whose documents are in one half of the corpus.

    A document's half depends only on its number and the key, so it is the same for all latents and steps.

    Args:
        examples: The examples.
        half: 0 or 1.
        key: Key that determines how documents are divided.
    """
    firing = _inside(examples.activating, half, key)
    silent = _inside(examples.non_activating, half, key)
    return replace(
        examples,
        activating=tuple(compress(examples.activating, firing)),
        non_activating=tuple(compress(examples.non_activating, silent)),
        decoy=examples.decoy and in_half(examples.decoy, half, key),
        cofiring=tuple(compress(examples.cofiring, firing)),
    )


def _inside(windows: Sequence[Example], half: int, key: int) -> list[bool]:
    """Return for each window whether its document is in the half."""
    documents = np.array([window.document for window in windows], dtype=np.int32)
    sides = hashed_documents(documents, np.uint64(key)) & np.uint64(1)
    inside: list[bool] = (sides == half).tolist()
    return inside
