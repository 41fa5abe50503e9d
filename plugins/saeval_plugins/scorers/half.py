"""Half: the score of another scorer, on windows in one half of the corpus."""

from __future__ import annotations

from typing import Literal

from pydantic import SerializeAsAny

from saeval.plugin import Context, Examples, Explanation, Metric, Need, Score, Scorer
from saeval_plugins._halves import in_half

_FEWEST = 2  # windows of each side that a score is made of


class Half(Scorer):
    """Scores as another scorer does, on those of the latent's windows that are in one half of the corpus.

    Latents with fewer than two activating or two non-activating windows there are skipped. `variance: {corpus: true}`
    of a spec adds it for both halves.
    """

    name = "half"

    scorer: SerializeAsAny[Scorer]
    """The scorer: `{use: detection}`."""
    half: Literal[0, 1] = 0
    """Which half."""
    key: int = 0
    """Key by which documents are divided into halves."""

    @property
    def llm_role(self) -> str | None:  # type: ignore[override]
        """The role that the scorer asks."""
        return self.scorer.llm_role

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The scorer's."""
        return self.scorer.metrics

    @property
    def reads_explanation(self) -> bool:  # type: ignore[override]
        """Whether the scorer does."""
        return self.scorer.reads_explanation

    def needs(self) -> frozenset[Need]:
        """What the scorer needs."""
        return self.scorer.needs()

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Score on one half."""
        some = in_half(examples, self.half, self.key)
        if min(len(some.activating), len(some.non_activating)) < _FEWEST:
            return Score.skipped("fewer than two windows of a kind are in this half of the corpus")
        return await self.scorer.score(explanation, some, context)
