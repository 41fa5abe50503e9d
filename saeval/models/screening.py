"""Finds candidate latents with a low-precision product, so that only these are computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

_PART_BYTES = 64 << 20  # memory limit for gathered weights
_UNIT = 2.0**-24  # relative error of rounding to float32

Precision = Literal["bf16", "tf32"]
_ON: ContextVar[Precision | None] = ContextVar("screening", default=None)


@contextmanager
def screened(precision: Precision | bool = True) -> Iterator[None]:
    """Within this context, linear coders use screening: the same latents fire, and values differ by rounding only.

    Args:
        precision: Precision of the screening product; True for bfloat16, False for no screening.
    """
    chosen = ("bf16" if precision else None) if isinstance(precision, bool) else precision
    before = _ON.set(chosen)
    try:
        yield
    finally:
        _ON.reset(before)


def screens() -> Precision | None:
    """Return the precision of screening; None if it is off."""
    return _ON.get()


class Screen:
    """An encoder in low precision, with a bound on its error relative to float32.

    The rounding errors of weights and activations are known, so the bound holds for every product: by Cauchy–Schwarz,
    |x·w - x′·w′| ≤ |x - x′| |w| + |x′| |w - w′|, and float32 sums of d products add 2 d 2⁻²⁴ |x| |w|.

    Args:
        encoder: Encoder weights, float32.  [d_in, n_latents]
        precision: Precision of the product. TF32 takes twice the time and memory of bfloat16, but leaves fewer
            candidates.
    """

    def __init__(self, encoder: Tensor, precision: Precision = "bf16"):
        import torch

        self.precision = precision
        self.rows = encoder.T.contiguous()
        self._low = _lowered(encoder, precision)
        self.norms = self.rows.norm(dim=1)
        lost = (self.rows - self._low.T.float()).norm(dim=1)
        self._worst = (lost / self.norms.clamp_min(torch.finfo(torch.float32).tiny)).max()

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return an approximation of `x @ encoder` with an error bound.

        Args:
            x: Activations, float32.  [rows, d_in]

        Returns:
            Products [rows, n_latents] float32, and error bounds in units of the norm of an encoder column [rows].
        """
        low = _lowered(x, self.precision)
        near = low.float()
        length = x.norm(dim=1)
        sums = (2 * x.shape[1] + 8) * _UNIT * length
        error = (x - near).norm(dim=1) + near.norm(dim=1) * self._worst + sums
        return _product(low, self._low), 1.001 * error

    def exact(self, x: Tensor, rows: Tensor, latents: Tensor) -> Tensor:
        """Return float32 products of (row, latent) pairs.  x [rows, d_in], rows and latents [pairs] -> [pairs]"""
        import torch

        part = max(1, _PART_BYTES // (4 * x.shape[1]))
        products = [
            torch.bmm(x[rows[i : i + part], None], self.rows[latents[i : i + part], :, None]).flatten()
            for i in range(0, len(rows), part)
        ]
        return torch.cat(products) if products else x.new_empty(0)


def _lowered(x: Tensor, precision: Precision) -> Tensor:
    """Round to bfloat16, or to the ten mantissa bits of TF32, so that a TF32 product rounds its inputs no further."""
    import torch

    if precision == "bf16":
        return x.to(torch.bfloat16)
    # A NaN may become a number here, but the error bound stays NaN, which makes all latents candidates.
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply low-precision matrices, accumulating in float32."""
    import torch

    if not x.is_cuda:
        return x.float() @ weights.float()
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction
    settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction = True, False
    try:
        if x.dtype == torch.float32:
            return x @ weights
        product: Tensor = torch.mm(x, weights, out_dtype=torch.float32)
        return product
    finally:
        settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction = before
