"""Built-in scorers, which measure how well an explanation predicts when a latent fires."""

from __future__ import annotations

from saeval.plugin import Scorer, hookimpl
from saeval_plugins.scorers.again import Again
from saeval_plugins.scorers.consistency import Consistency
from saeval_plugins.scorers.detection import Detection
from saeval_plugins.scorers.embedding import Embedding
from saeval_plugins.scorers.evaluate import Evaluate
from saeval_plugins.scorers.example_embedding import ExampleEmbedding
from saeval_plugins.scorers.frozen import FrozenScorer
from saeval_plugins.scorers.fuzzing import Fuzzing
from saeval_plugins.scorers.generation import Generation
from saeval_plugins.scorers.half import Half
from saeval_plugins.scorers.human import Human
from saeval_plugins.scorers.injection import Injection
from saeval_plugins.scorers.intervention import InterventionScorer
from saeval_plugins.scorers.intruder import Intruder
from saeval_plugins.scorers.simulation import Simulation
from saeval_plugins.scorers.steering import SteeringScorer
from saeval_plugins.scorers.surprisal import Surprisal


@hookimpl
def saeval_scorers() -> list[type[Scorer]]:
    """Add the built-in scorers."""
    return [
        Detection,
        Fuzzing,
        Simulation,
        Surprisal,
        InterventionScorer,
        Generation,
        SteeringScorer,
        Intruder,
        Embedding,
        ExampleEmbedding,
        Human,
        Evaluate,
        Consistency,
        Again,
        Half,
        Injection,
        FrozenScorer,
    ]
