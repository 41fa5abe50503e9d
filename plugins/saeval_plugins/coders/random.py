"""A random SAE: what a trained one has to beat."""

from __future__ import annotations

from pydantic import Field, model_validator

from saeval.plugin import Coder, LinearCoder, derive_rng


class RandomSae(Coder):
    """Random directions of unit norm, uniform over the sphere, with top-k activations (paper A.7.3).

    The decoder is the transposed encoder, and there are no biases.
    """

    name = "random_sae"

    n_latents: int = Field(default=131_072, ge=1)
    """Number of directions."""
    k: int = Field(default=50, ge=1)
    """Latents a token to keep."""
    seed: int = 0
    """Seed of the directions."""

    @model_validator(mode="after")
    def _k_fits(self) -> RandomSae:
        if self.k > self.n_latents:
            raise ValueError(f"k is {self.k}, more than the {self.n_latents} latents")
        return self

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Draw the directions."""
        import numpy as np
        import torch

        rng = derive_rng(self.seed, "random_sae", self.n_latents, d_in)
        rows = rng.standard_normal((self.n_latents, d_in), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        decoder = torch.from_numpy(rows).to(device)
        return LinearCoder(decoder.T, decoder, k=self.k, architecture="random top-k")
