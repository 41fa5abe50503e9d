"""Uses the neurons of an MLP as latents, a baseline without an SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from saeval.plugin import Coder, HookPoint, InputError, NeuronCoder, down_projection

if TYPE_CHECKING:
    from collections.abc import Sequence


class Neurons(Coder):
    """The neurons of an MLP (paper Table A10): the inputs of its down projection, one latent per neuron.

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
                "it is a mixture of experts, in which no neuron processes every token"
                if any(m.startswith(f"{module}.") and m.endswith(".experts") for m in modules)
                else "it has no known MLP down projection"
            )
            raise InputError(f"hookpoint {module!r} has no neurons: {why}; choose a block with an MLP")
        return HookPoint(place, "in")

    def load(self, device: str, d_in: int) -> NeuronCoder:
        """Return the coder; it has no weights."""
        return NeuronCoder(d_in, self.k)
