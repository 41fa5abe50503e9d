"""Loads a single direction (a vector or a linear probe) as a dictionary with one latent."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field

from saeval.plugin import Coder, InputError, LinearCoder, SpecPath, file_sha256
from saeval_plugins.coders._tensors import SUFFIXES, read_tensors

if TYPE_CHECKING:
    from pydantic import JsonValue
    from torch import Tensor


class Direction(Coder):
    """One direction of activation space as a latent: a vector, or a linear probe's weights and bias.

    The latent's activation is the projection x·w + b if it exceeds the threshold, otherwise 0. The latent's decoder
    direction is w, at the same hookpoint.
    """

    name = "direction"

    path: SpecPath
    """File with the direction: `.npy`, `.npz`, `.safetensors`, `.pt` or a `.json` list."""
    weight: str = "weight"
    """Name of the vector in a file with several tensors."""
    bias: str | float = "bias"
    """The bias as a number, or its name in a file with several tensors."""
    threshold: float = Field(default=0.0, ge=0)
    """Projections up to this value count as not firing. To fire at negative projections too, raise `bias`."""

    def check(self) -> None:
        """Check that the file exists and has a known format."""
        if not self.path.is_file():
            raise InputError(f"{self._label}: no such file")
        if self.path.suffix not in SUFFIXES:
            raise InputError(f"{self._label}: unknown format; use {', '.join(SUFFIXES)}")

    def fingerprint(self) -> JsonValue:
        """Return the options and the file's hash, independent of its location."""
        self.check()
        return [self.name, file_sha256(self.path), self.weight, self.bias, self.threshold]

    def width(self) -> int:
        """Return the length of the vector."""
        return len(self._vector)

    def load(self, device: str, d_in: int) -> LinearCoder:
        """Load the vector."""
        import torch

        vector = self._vector.to(device)
        if len(vector) != d_in:
            raise InputError(
                f"{self._label} has {len(vector)} numbers, but activations at the hookpoint have width {d_in}; change "
                "`hookpoint`, `model` or the direction"
            )
        return LinearCoder(
            encoder=vector[:, None],
            decoder=vector[None],
            encoder_bias=torch.full((1,), self._offset, device=device),
            threshold=torch.full((1,), self.threshold, device=device),
            architecture="direction",
            autoencoder=False,
            metadata={"file": self.path.name},
        )

    @property
    def _label(self) -> str:
        return f"direction {self.path}"

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        self.check()
        return read_tensors(self._label, self.path)

    @cached_property
    def _vector(self) -> Tensor:
        tensors = self._tensors
        name = next(iter(tensors)) if len(tensors) == 1 else self.weight
        if name not in tensors:
            raise InputError(
                f"{self._label}: it contains {', '.join(sorted(tensors)) or 'nothing'}, but no {name!r}; set `weight` "
                "to one of them"
            )
        vector = tensors[name]
        if vector.ndim == 0 or vector.numel() != max(vector.shape):
            raise InputError(
                f"{self._label}: {name or 'its content'} has shape {list(vector.shape)}, which is not one direction; "
                "save a single row"
            )
        if not vector.any():
            raise InputError(f"{self._label}: all its numbers are zero, so it has no direction")
        return vector.flatten()

    @property
    def _offset(self) -> float:
        if isinstance(self.bias, float):
            return self.bias
        bias = self._tensors.get(self.bias)
        if bias is None:
            if self.bias != "bias":
                raise InputError(
                    f"{self._label}: it contains no {self.bias!r}; set `bias` to another name or to a number"
                )
            return 0.0
        if bias.numel() != 1:
            raise InputError(f"{self._label}: {self.bias} has shape {list(bias.shape)}, but a direction has one bias")
        return float(bias)
