"""Plants latents in generated text, for trying out specs and testing runs without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from saeval.plugin import ActivationSource

if TYPE_CHECKING:
    from saeval.plugin import ActivationWriter


class Synthetic(ActivationSource):
    """Generates documents of simple words, in which latent i fires on the i-th planted word.

    Results are marked as synthetic and excluded from leaderboards.
    """

    name = "synthetic"
    synthetic = True

    n_latents: int = Field(default=16, ge=1, le=64)
    """Number of latents."""
    documents: int = Field(default=100, ge=2)
    """Number of documents, of two contexts each; a latent fires in about two windows of 32 tokens per document."""
    seed: int = 0
    """Seed of the generated documents."""

    def collect(self, writer: ActivationWriter) -> None:
        """Write the documents and the planted activations."""
        from saeval.plugin import plant

        plant(writer, n_latents=self.n_latents, documents=self.documents, seed=self.seed)
