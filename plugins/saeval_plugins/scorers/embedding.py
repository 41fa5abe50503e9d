"""Embedding: do the windows in which a latent fires lie closer to its explanation than others? (paper §3.3)"""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import JsonValue, field_validator

from saeval import (
    AUROC,
    Context,
    Examples,
    Explanation,
    InputError,
    ModelRef,
    Outcome,
    Score,
    Scorer,
    asset_check,
    auroc,
    file_sha256,
)
from saeval_plugins.prompts import one_line


class Embedding(Scorer):
    """Ranks the windows by cosine between a query made of the explanation and the window's text. Needs no LLM."""

    name = "embedding"
    metrics = (AUROC,)

    model: ModelRef = "sentence-transformers/all-MiniLM-L6-v2"
    """A sentence-transformers model: hub id, directory, or `package:` reference."""
    query: str = "{explanation}"
    """The query, `{explanation}` standing for the explanation; models trained with instructions want theirs here."""

    @field_validator("query")
    @classmethod
    def _has_slot(cls, value: str) -> str:
        if "{explanation}" not in value:
            raise ValueError("the query must hold {explanation}")
        return value

    def check(self) -> None:
        """See whether a packaged model is installed, and whether a local one is there."""
        if self.model.startswith("package:"):
            asset_check(self.model)
        elif Path(self.model).is_absolute() and not Path(self.model).is_dir():
            raise InputError(f"embedding model {self.model}: no such folder")

    def fingerprint(self) -> JsonValue:
        """Add the hash of a local model's weights, which may change under the same path."""
        weights = Path(self.model, "model.safetensors")
        return [super().fingerprint(), file_sha256(weights) if weights.is_file() else None]

    async def score(self, explanation: Explanation, examples: Examples, context: Context) -> Score:
        """Compute the cosines and how well they separate."""
        windows = (*examples.activating, *examples.non_activating)
        if not examples.activating or not examples.non_activating:
            return Score.failed("no window of one side was given")
        query = self.query.replace("{explanation}", explanation.text)
        texts = [query, *(one_line(window.text) for window in windows)]
        vectors = await asyncio.to_thread(context.embed, self.model, texts)
        cosines = [float(cosine) for cosine in vectors[1:] @ vectors[0]]
        outcomes = tuple(
            Outcome(example=window.id, active=window.active, decile=window.decile, probability=cosine)
            for window, cosine in zip(windows, cosines, strict=True)
        )
        return Score(values={"auroc": auroc([w.active for w in windows], cosines)}, outcomes=outcomes)
