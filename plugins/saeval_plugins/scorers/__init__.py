"""Scorers: measure how well an explanation tells when a latent fires."""

from __future__ import annotations

from saeval import Scorer, hookimpl
from saeval_plugins.scorers.detection import Detection
from saeval_plugins.scorers.embedding import Embedding
from saeval_plugins.scorers.evaluate import Evaluate
from saeval_plugins.scorers.fuzzing import Fuzzing


@hookimpl
def saeval_scorers() -> list[type[Scorer]]:
    """Add the built-in scorers."""
    return [Detection, Fuzzing, Embedding, Evaluate]
