"""Plants latents in generated text, to try out specs and test runs without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from saeval.plugin import ActivationSource

if TYPE_CHECKING:
    from saeval.plugin import ActivationWriter


class Synthetic(ActivationSource):
    """Documents of simple words, in which latent i fires on the i-th planted word.

    Results are marked as synthetic and stay off leaderboards.
    """

    name = "synthetic"
    synthetic = True

    n_latents: int = Field(default=16, ge=1, le=64)
    """Latents."""
    documents: int = Field(default=100, ge=2)
    """Documents of two contexts; each latent fires in about two windows of 32 tokens a document."""
    seed: int = 0
    """Another seed makes other documents."""

    def collect(self, writer: ActivationWriter) -> None:
        """Plant the latents."""
        from saeval.plugin import plant

        plant(writer, n_latents=self.n_latents, documents=self.documents, seed=self.seed)
