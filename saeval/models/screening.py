"""Finds candidate latents with a low-precision product, so that only those are computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

_PART_BYTES = 64 << 20  # of gathered weights, at a time
_UNIT = 2.0**-24  # relative error of rounding to float32

Precision = Literal["bf16", "tf32"]
_ON: ContextVar[Precision | None] = ContextVar("screening", default=None)


@contextmanager
def screened(precision: Precision | bool = True) -> Iterator[None]:
    """Let linear coders screen while the context lasts: the same latents fire, and values differ by rounding only.

    Args:
        precision: Of the product that screens; True for bfloat16, False for no screening.
    """
    chosen = ("bf16" if precision else None) if isinstance(precision, bool) else precision
    before = _ON.set(chosen)
    try:
        yield
    finally:
        _ON.reset(before)


def screens() -> Precision | None:
    """Return the precision that coders are to screen in; None if they are not to."""
    return _ON.get()


class Screen:
    """An encoder in low precision, and what that may differ from float32.

    Rounding errors of weights and activations are known, so the bound holds for every product: by Cauchy and Schwarz,
    |x·w - x′·w′| ≤ |x - x′| |w| + |x′| |w - w′|, and sums in float32 of d products add 2 d 2⁻²⁴ |x| |w|.

    Args:
        encoder: Encoder weights, float32.  [d_in, n_latents]
        precision: Of the product. TF32 takes twice the time and memory of bfloat16 and lets fewer latents through.
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
        """Return about `x @ encoder`, and for each row by how many lengths of the encoder's columns it may be wrong.

        Args:
            x: Activations, float32.  [rows, d_in]

        Returns:
            Products [rows, n_latents] float32, and errors, each per length of a column [rows].
        """
        low = _lowered(x, self.precision)
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


def _lowered(x: Tensor, precision: Precision) -> Tensor:
    """Round to bfloat16, or to the ten bits of TF32, which a product in TF32 then rounds no further."""
    import torch

    if precision == "bf16":
        return x.to(torch.bfloat16)
    # A NaN may turn into a number here; it is still one in the error, which makes all latents candidates.
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply matrices of low precision, summing in float32."""
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
