"""Random SAEs, a baseline for trained SAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, JsonValue, PrivateAttr, model_validator

from saeval.plugin import Coder, InputError, LinearCoder, MadeFor, derive_rng

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from saeval.plugin import SparseCoder

_LATENTS, _K = 131_072, 50  # defaults from the paper, if there is no SAE to match


class RandomSae(Coder):
    """Random directions of unit norm, uniform over the sphere, with top-k activations (paper A.7.3).

    The decoder is the transposed encoder, and there are no biases. Under `baselines`, width and k default to the width
    and L0 of the SAE it is compared with; if its files do not state them, they are measured on the corpus. Elsewhere,
    the defaults are 131,072 and 50, as in the paper.

    With `match: rates`, it is an SAE with a frozen random decoder and a calibrated encoder: latent i has the decoder
    norm of the SAE's latent i, and fires above a threshold chosen so that it fires equally often; k is not used.
    """

    name = "random_sae"

    n_latents: int | None = Field(default=None, ge=1)
    """Number of directions; default: the width of the SAE it is compared with."""
    k: int | None = Field(default=None, ge=1)
    """Latents to keep per token; default: the L0 of the SAE it is compared with."""
    match: Literal["l0", "rates"] = "l0"
    """What to copy from the SAE it is compared with: width and L0 (`l0`), or also each latent's decoder norm and firing
    rate (`rates`), measured on 16,000 tokens of the corpus."""
    seed: int = 0
    """Seed of the directions."""
    _reference: Coder | None = PrivateAttr(default=None)
    """The SAE to measure; None if nothing is missing."""
    _width: int | None = PrivateAttr(default=None)
    """Width of the SAE it is compared with, which reads the same activations; None if unknown."""
    _fit: tuple[NDArray[np.float32], NDArray[np.float32]] | None = PrivateAttr(default=None)
    """Thresholds and decoder norms, for `match: rates`.  [n_latents] each"""

    @model_validator(mode="after")
    def _k_fits(self) -> RandomSae:
        if self.n_latents is not None and self.k is not None and self.k > self.n_latents:
            raise ValueError(f"k is {self.k}, more than the {self.n_latents} latents")
        if self.match == "rates" and (self.k is not None or self.n_latents is not None):
            raise ValueError("`match: rates` copies width and L0; omit `n_latents` and `k`")
        return self

    def beside(self, other: Coder) -> RandomSae:
        """Return a copy with another coder's width and L0, unless set; values missing from its files are measured
        later."""
        made = other.made_for(fetch=False)
        found = self._sized(made)
        if found.n_latents is None or found.k is None or self.match == "rates":
            found._reference = other
        found._width = None if made.partial else other.width()
        return found

    def width(self) -> int | None:
        """Return the width of the SAE it is compared with, so that no model is loaded for it; None if unknown."""
        return self._width

    def incomplete(self) -> bool:
        """Return whether anything must be measured on the other coder."""
        return self._reference is not None

    def completed(self, measured: MadeFor) -> RandomSae:
        """Return a copy with the other coder's measured size; `fitted` follows for `match: rates`."""
        sized = self._sized(measured)
        sized._reference = self._reference if self.match == "rates" else None
        return sized

    def fit(self, beside: SparseCoder, x: Tensor) -> dict[str, NDArray[np.float32]]:
        """Return the other coder's decoder norms, and thresholds that give its firing rates."""
        import torch

        directions = beside.directions()
        if directions is None:
            raise InputError("random_sae: `match: rates` requires an SAE with decoder directions; set `match: l0`")
        drawn = torch.from_numpy(self.model_copy(update={"n_latents": beside.n_latents})._rows(x.shape[1]))
        sparse = beside.encode(x)
        fired = sparse.latents[sparse.values > 0].bincount(minlength=beside.n_latents)
        # A threshold between the n-th and the next projection lets exactly n tokens fire.
        thresholds = torch.full((beside.n_latents,), torch.inf)
        for latent in fired.nonzero()[:, 0].tolist():
            n = int(fired[latent])
            largest = (x @ drawn[latent]).topk(min(n + 1, len(x))).values
            thresholds[latent] = largest[-2:].mean() if n < len(x) else largest[-1] - 1
        norms = directions.norm(dim=1).float().clamp(min=1e-6)
        return {"thresholds": thresholds.numpy(), "norms": norms.cpu().numpy()}

    def fitted(self, fit: Mapping[str, NDArray[np.float32]]) -> RandomSae:
        """Return a copy with the fitted thresholds and decoder norms."""
        found = self.model_copy(update={"n_latents": len(fit["norms"])})
        found._reference = None
        found._fit = fit["thresholds"], fit["norms"]
        return found

    def made_for(self, *, fetch: bool = True) -> MadeFor:
        """Return width and k, as far as known."""
        if self._reference is not None:
            return MadeFor(latents=self.n_latents, l0=self.k)
        n_latents, k = self._size
        return MadeFor(latents=n_latents, l0=k)

    def fingerprint(self) -> JsonValue:
        """Return size and seed; while the size is unknown, also the fingerprint of the SAE to measure."""
        if self._reference is not None:
            given: dict[str, JsonValue] = {"n_latents": self.n_latents, "k": self.k, "seed": self.seed}
            given |= {"match": self.match} if self.match != "l0" else {}
            return [self.name, given, [self._reference.fingerprint()]]
        n_latents, k = self._size
        return [self.name, {"n_latents": n_latents, "k": k, "seed": self.seed}, []]

    def _sized(self, made: MadeFor) -> RandomSae:
        """Return a copy with missing sizes filled in."""
        k = self.k or (round(made.l0) or 1 if made.l0 is not None else None)
        sized = self.model_copy(update={"n_latents": self.n_latents or made.latents, "k": k})
        sized._reference = None
        return sized

    @property
    def _size(self) -> tuple[int, int]:
        n_latents = self.n_latents or _LATENTS
        return n_latents, min(self.k or _K, n_latents)

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Draw the directions."""
        import torch

        rows = torch.from_numpy(self._rows(d_in)).to(device)
        if self.match == "l0":
            return LinearCoder(rows.T, rows, k=self._size[1], architecture="random top-k")
        if self._fit is None:
            raise InputError("random_sae: `match: rates` requires an SAE to compare with; list it under `baselines`")
        thresholds, norms = (torch.from_numpy(v).to(device) for v in self._fit)
        return LinearCoder(
            rows.T / norms,
            rows * norms[:, None],
            encoder_bias=-thresholds / norms,
            architecture="random, rates matched",
        )

    def _rows(self, d_in: int) -> NDArray[np.float32]:
        """Return directions of unit norm.  [n_latents, d_in]"""
        import numpy as np

        n_latents = self._size[0]
        rng = derive_rng(self.seed, "random_sae", n_latents, d_in)
        rows = rng.standard_normal((n_latents, d_in), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows
