"""Embedding measures whether activating windows are closer to the explanation than other windows are (paper §3.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue, field_validator

from saeval.plugin import (
    AUROC,
    Context,
    Examples,
    Explanation,
    ModelRef,
    Score,
    Scorer,
    auroc,
    embedder_check,
    embedder_sha,
    one_line,
    valued,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Embeddings(Scorer):
    """Base class of scorers that use sentence embeddings."""

    metrics = (AUROC,)

    model: ModelRef = "sentence-transformers/all-MiniLM-L6-v2"
    """A sentence-transformers model: hub id, directory, or `package:` reference."""

    def check(self) -> None:
        """Check that a packaged or local model is installed."""
        embedder_check(self.model)

    def fingerprint(self) -> JsonValue:
        """Return the options and the hash of a local model's weights, which may change under the same path."""
        return [super().fingerprint(), embedder_sha(self.model)]

    async def embed(self, texts: Sequence[str], context: Context) -> NDArray[np.float32]:
        """Return one unit vector per text.  [texts, dimensions]"""
        return await asyncio.to_thread(context.embed, self.model, texts)


class Embedding(Embeddings):
    """Ranks windows by the cosine between the explanation (as a query) and their text. Needs no LLM."""

    name = "embedding"

    query: str = "{explanation}"
    """The query, with `{explanation}` for the explanation; add an instruction if the embedding model needs one."""

    @field_validator("query")
    @classmethod
    def _has_slot(cls, value: str) -> str:
        if "{explanation}" not in value:
            raise ValueError("the query must contain {explanation}")
        return value

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Compute the cosines and how well they separate."""
        windows = (*examples.activating, *examples.non_activating)
        if not examples.activating or not examples.non_activating:
            return Score.failed("there are no activating or no non-activating windows")
        query = self.query.replace("{explanation}", explanation.text)
        vectors = await self.embed([query, *(one_line(window.text) for window in windows)], context)
        cosines = [float(cosine) for cosine in vectors[1:] @ vectors[0]]
        outcomes = tuple(map(valued, windows, cosines))
        return Score(values={"auroc": auroc([window.active for window in windows], cosines)}, outcomes=outcomes)
