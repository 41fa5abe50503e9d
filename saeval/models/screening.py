"""Finds the latents that may fire by a product in bfloat16, so that only those are computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_PART_BYTES = 64 << 20  # of gathered weights, at a time
_UNIT = 2.0**-24  # relative error of rounding to float32

_ON: ContextVar[bool] = ContextVar("screening", default=False)


@contextmanager
def screened(on: bool = True) -> Iterator[None]:
    """Let linear coders screen while the context lasts: the same latents fire, and values differ by rounding only."""
    before = _ON.set(on)
    try:
        yield
    finally:
        _ON.reset(before)


def screens() -> bool:
    """Whether coders are to screen."""
    return _ON.get()


class Screen:
    """An encoder in bfloat16, and what that may differ from float32.

    Rounding errors of weights and activations are known, so the bound holds for every product: by Cauchy and Schwarz,
    |x·w - x′·w′| ≤ |x - x′| |w| + |x′| |w - w′|, and sums in float32 of d products add 2 d 2⁻²⁴ |x| |w|.

    Args:
        encoder: Encoder weights, float32.  [d_in, n_latents]
    """

    def __init__(self, encoder: Tensor):
        import torch

        self.rows = encoder.T.contiguous()
        self._low = encoder.to(torch.bfloat16)
        self.norms = self.rows.norm(dim=1)
        lost = (self.rows - self._low.T.float()).norm(dim=1)
        self._worst = (lost / self.norms.clamp_min(torch.finfo(torch.float32).tiny)).max()

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return about `x @ encoder`, and for each row by how many lengths of the encoder's columns it may be wrong.

        Args:
            x: Activations, float32.  [rows, d_in]

        Returns:
            Products [rows, n_latents] float32, and errors, each per length of a column [rows].
        """
        import torch

        low = x.to(torch.bfloat16)
        near = low.float()
        length = x.norm(dim=1)
        sums = (2 * x.shape[1] + 8) * _UNIT * length
        error = (x - near).norm(dim=1) + near.norm(dim=1) * self._worst + sums
        return _product(low, self._low), 1.001 * error

    def exact(self, x: Tensor, rows: Tensor, latents: Tensor) -> Tensor:
        """Return float32 products of some pairs.  x [rows, d_in], rows and latents [pairs] -> [pairs]"""
        import torch

        part = max(1, _PART_BYTES // (4 * x.shape[1]))
        products = [
            torch.bmm(x[rows[i : i + part], None], self.rows[latents[i : i + part], :, None]).flatten()
            for i in range(0, len(rows), part)
        ]
        return torch.cat(products) if products else x.new_empty(0)


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply bfloat16 matrices, summing in float32."""
    import torch

    if not x.is_cuda:
        return x.float() @ weights.float()
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        product: Tensor = torch.mm(x, weights, out_dtype=torch.float32)
        return product
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
