"""A random SAE, the baseline for trained SAEs."""

from __future__ import annotations

from pydantic import Field, JsonValue, PrivateAttr, model_validator

from saeval.plugin import Coder, LinearCoder, MadeFor, derive_rng

_LATENTS, _K = 131_072, 50  # of the paper's, where there is nothing to match


class RandomSae(Coder):
    """Random directions of unit norm, uniform over the sphere, with top-k activations (paper A.7.3).

    The decoder is the transposed encoder, and there are no biases. As a baseline without options it has as many
    latents, and as many of them firing per token, as the SAE it is compared with; if its files do not say so, they
    are measured on the corpus. Elsewhere 131,072 and 50, as in the paper.
    """

    name = "random_sae"

    n_latents: int | None = Field(default=None, ge=1)
    """Number of directions; by default, that of the SAE beside it."""
    k: int | None = Field(default=None, ge=1)
    """Latents per token to keep; by default, the L0 of the SAE beside it."""
    seed: int = 0
    """Seed of the directions."""
    _unlike: Coder | None = PrivateAttr(default=None)
    """The coder beside it whose size its files do not tell."""

    @model_validator(mode="after")
    def _k_fits(self) -> RandomSae:
        if self.n_latents is not None and self.k is not None and self.k > self.n_latents:
            raise ValueError(f"k is {self.k}, more than the {self.n_latents} latents")
        return self

    def beside(self, other: Coder) -> RandomSae:
        """Return it with the width and L0 of another coder, unless given; what no file states is measured later."""
        found = self._sized(other.made_for(fetch=False))
        if found.n_latents is None or found.k is None:
            found._unlike = other
        return found

    def incomplete(self) -> bool:
        """Return whether the files of the coder beside it leave its size open."""
        return self._unlike is not None

    def completed(self, measured: MadeFor) -> RandomSae:
        """Return it with the measured size of the coder beside it."""
        return self._sized(measured)

    def made_for(self, *, fetch: bool = True) -> MadeFor:
        """Return its width and k, as far as they are known."""
        if self._unlike is not None:
            return MadeFor(latents=self.n_latents, l0=self.k)
        n_latents, k = self._size
        return MadeFor(latents=n_latents, l0=k)

    def fingerprint(self) -> JsonValue:
        """Return its size and seed; of a size that is measured, whose it is."""
        if self._unlike is not None:
            given: JsonValue = {"n_latents": self.n_latents, "k": self.k, "seed": self.seed}
            return [self.name, given, [self._unlike.fingerprint()]]
        n_latents, k = self._size
        return [self.name, {"n_latents": n_latents, "k": k, "seed": self.seed}, []]

    def _sized(self, made: MadeFor) -> RandomSae:
        """Return it with a size in place of what is not given."""
        k = self.k or (round(made.l0) or 1 if made.l0 is not None else None)
        sized = self.model_copy(update={"n_latents": self.n_latents or made.latents, "k": k})
        sized._unlike = None
        return sized

    @property
    def _size(self) -> tuple[int, int]:
        n_latents = self.n_latents or _LATENTS
        return n_latents, min(self.k or _K, n_latents)

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Draw the directions."""
        import numpy as np
        import torch

        n_latents, k = self._size
        rng = derive_rng(self.seed, "random_sae", n_latents, d_in)
        rows = rng.standard_normal((n_latents, d_in), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        decoder = torch.from_numpy(rows).to(device)
        return LinearCoder(decoder.T, decoder, k=k, architecture="random top-k")
