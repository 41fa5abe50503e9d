"""The senses explainer groups a latent's windows and explains each group: a latent may have several meanings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue, SerializeAsAny

from saeval.plugin import (
    Context,
    Example,
    Examples,
    Explainer,
    Explanation,
    Measure,
    ModelRef,
    Need,
    Prompt,
    embedder_check,
    embedder_sha,
)
from saeval_plugins._clusters import stable_groups
from saeval_plugins._wrapped import OfExplainer
from saeval_plugins.explainers.default import Default

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Senses(OfExplainer):
    """Groups the explain windows by the text around the latent's strongest token, and explains each group.

    A window is represented by the sentence embedding of the tokens around its strongest token and, weighted by
    `cofiring`, by the other latents that fire on that token. Ward's method groups the windows into the largest number
    of groups that are found again in 70 % of bootstrap resamples (Hennig 2007). Another explainer explains each group
    from its own windows, in one call per sense. Identical explanations are merged into one sense. If several senses
    remain, scorers judge their union, the text `any of: (1) … (2) …`. Results contain the senses, their windows, and
    the share of resamples in which each number of groups was found; boards show the mean number of senses. Based on
    PRISM (arXiv 2506.15538).
    """

    name = "senses"
    measures = (Measure(name="n_senses", title="senses", about="Senses per latent, mean over latents.", format=".2f"),)

    explainer: SerializeAsAny[Explainer] = Default()
    """The explainer for each group: `{use: default}`."""
    model: ModelRef = "sentence-transformers/all-MiniLM-L6-v2"
    """A sentence-transformers model: hub id, directory, or `package:` reference."""
    most: int = Field(default=5, ge=2, le=20)
    """Maximum number of senses."""
    around: int = Field(default=2, ge=0)
    """Tokens on each side of the strongest token that are embedded with it."""
    cofiring: float = Field(default=0.3, ge=0, le=1)
    """Weight of co-firing latents in the squared distance of windows; 0 to ignore them."""
    resamples: int = Field(default=50, ge=20)
    """Number of bootstrap resamples."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:  # type: ignore[override]
        """The prompts of the inner explainer."""
        return self.explainer.prompts

    def check(self) -> None:
        """Check that a packaged or local embedding model is installed, and check the inner explainer."""
        embedder_check(self.model)
        self.explainer.check()

    def needs(self) -> frozenset[Need]:
        """Return the needs of the inner explainer and, unless `cofiring` is 0, co-firing latents."""
        return super().needs() | (frozenset({"cofiring"}) if self.cofiring else frozenset())

    def fingerprint(self) -> JsonValue:
        """Return what explanations depend on: the options, a local embedding model's weights, the inner explainer."""
        return [super().fingerprint(), embedder_sha(self.model), self.explainer.fingerprint()]

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Group the windows and explain each group."""
        if not examples.activating:
            return await self.explainer.explain(examples, context)
        points = await asyncio.to_thread(self._points, examples, context)
        groups = await asyncio.to_thread(stable_groups, points, self.most, self.resamples, context.rng)
        members: list[list[Example]] = [[] for _ in range(groups.number)]
        for window, group in zip(examples.activating, groups.labels, strict=True):
            members[group].append(window)
        parts = [replace(examples, activating=tuple(windows), cofiring=()) for windows in members]
        made = await asyncio.gather(*(self.explainer.explain(part, context) for part in parts))
        if lost := [explanation for explanation in made if explanation.status != "ok"]:
            return lost[0]
        senses: dict[str, list[Example]] = {}
        for explanation, part in zip(made, parts, strict=True):
            senses.setdefault(explanation.text, []).extend(part.activating)
        found: list[JsonValue] = []
        for text, windows in senses.items():
            share = len(windows) / len(examples.activating)
            found.append({"text": text, "share": share, "windows": [window.id for window in windows]})
        shares: dict[str, JsonValue] = {str(number): share for number, share in groups.shares.items()}
        notes: dict[str, JsonValue] = {"n_senses": len(senses), "senses": found, "number_found": shares}
        return Explanation(text=union(list(senses)), notes=notes)

    def _points(self, examples: Examples, context: Context) -> NDArray[np.float64]:
        """Return one point per window, combining embedding and co-firing latents.  [windows, dimensions]"""
        import numpy as np

        texts = [_text_around_peak(window, self.around) for window in examples.activating]
        embedded = np.asarray(context.embed(self.model, texts), dtype=np.float64)
        if not self.cofiring or not any(examples.cofiring):
            return embedded
        together = _cofiring_vectors(examples.cofiring)
        return np.hstack([np.sqrt(1 - self.cofiring) * embedded, np.sqrt(self.cofiring) * together])


def union(senses: Sequence[str]) -> str:
    """Return a text for the union of several senses.

    Example:
        >>> union(["names of rivers"]), union(["names of rivers", "the word 'bank'"])
        ('names of rivers', "any of: (1) names of rivers (2) the word 'bank'")
    """
    if len(senses) == 1:
        return senses[0]
    return "any of: " + " ".join(f"({number}) {sense}" for number, sense in enumerate(senses, 1))


def _text_around_peak(window: Example, around: int) -> str:
    """Return the text of the window's strongest token and the tokens around it."""
    at = window.shown_at()[int(window.activations.argmax())]
    return "".join(window.tokens[max(0, at - around) : at + around + 1]).strip()


def _cofiring_vectors(cofiring: Sequence[frozenset[int]]) -> NDArray[np.float64]:
    """Return each window's co-firing latents as a unit vector, over latents that co-fire in at least two windows.

    Windows without such latents get the zero vector.  [windows, latents]
    """
    import numpy as np

    column = {latent: i for i, latent in enumerate(sorted(frozenset().union(*cofiring)))}
    fires = np.zeros((len(cofiring), len(column)))
    for row, latents in zip(fires, cofiring, strict=True):
        row[[column[latent] for latent in latents]] = 1
    fires = fires[:, fires.sum(axis=0) > 1]
    vectors: NDArray[np.float64] = fires / np.maximum(np.linalg.norm(fires, axis=1, keepdims=True), 1)
    return vectors
