"""Neurons of an MLP as latents, a baseline without an SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from saeval.plugin import Coder, HookPoint, InputError, NeuronCoder, down_projection

if TYPE_CHECKING:
    from collections.abc import Sequence


class Neurons(Coder):
    """The neurons of an MLP (paper Table A10): what its down projection reads, one latent per neuron.

    The hookpoint may be the block, the MLP or anything else in the block. Neurons of gated MLPs are signed: the k
    largest by magnitude are kept, and the positive ones among them count as firings.
    """

    name = "neurons"

    k: int | None = Field(default=None, ge=1)
    """Largest neurons to keep per token; None for all."""

    def site(self, module: str, modules: Sequence[str]) -> HookPoint:
        """Return the input of the down projection in the module's block."""
        place = down_projection(module, modules)
        if place is None:
            why = (
                "it is a mixture of experts, where no neuron sees every token"
                if any(m.startswith(f"{module}.") and m.endswith(".experts") for m in modules)
                else "it has no known MLP down projection"
            )
            raise InputError(f"hookpoint {module!r} has no neurons to read: {why}; name a block that has an MLP")
        return HookPoint(place, "in")

    def load(self, device: str, d_in: int) -> NeuronCoder:
        """Return the coder; there is nothing to load."""
        return NeuronCoder(d_in, self.k)
