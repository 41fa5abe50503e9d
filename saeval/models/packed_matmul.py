"""Faster products of many batches with the same encoder: packed for oneDNN, or with reused memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_PACKED_BYTES = 2 << 30  # memory limit for packed encoders
_PACKED_ROWS = 192  # tokens that encoders are packed for
_FEWEST_ROWS = 32  # smallest tile; with fewer rows a product is slow
# From 32 MB on, the C library allocates each product with a system call and returns it afterwards.
_TILE_BYTES = 24 << 20


@contextmanager
def encoding_pass() -> Iterator[None]:
    """Within this context, coders encode many batches faster (in inference mode on the CPU).

    Encoders are converted to oneDNN's layout once, up to a total of 2 GB. Other encoders write their products to a
    reused buffer, since allocating hundreds of megabytes per batch takes up to a fifth of the encoding time. Products
    of packed encoders round differently from `@`.
    """
    before = _PASS.set(EncodingPass())
    try:
        yield
    finally:
        _PASS.reset(before)


class EncodingPass:
    """State that is reused between batches: packed encoders, and a buffer for products with other encoders."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._room = _PACKED_BYTES
        self._buffer: Tensor | None = None

    @staticmethod
    def of(x: Tensor) -> EncodingPass | None:
        """Return the active pass if it applies to these activations, else None."""
        import torch

        return _PASS.get() if x.device.type == "cpu" and torch.is_inference_mode_enabled() else None

    def rows(self, encoder: Tensor) -> int:
        """Return the maximum number of tokens to encode at a time.  encoder [d_in, n_latents]"""
        if self._pack(encoder) is None:
            return sys.maxsize
        return max(_FEWEST_ROWS, _TILE_BYTES // (encoder.itemsize * max(1, encoder.shape[1])))

    def product(self, x: Tensor, encoder: Tensor) -> Tensor:
        """Return `x @ encoder`, valid until the next call.  x [rows, d_in], encoder [d_in, n_latents]"""
        import torch

        if (packed := self._pack(encoder)) is not None and len(x):
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
            return product
        size = len(x) * encoder.shape[1]
        if self._buffer is None or self._buffer.dtype != x.dtype or len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=x.dtype)
        return torch.mm(x, encoder, out=self._buffer[:size].view(len(x), encoder.shape[1]))

    def _pack(self, encoder: Tensor) -> Tensor | None:
        """Return an encoder in oneDNN's layout, converting it once; None if it cannot be packed."""
        import torch

        if id(encoder) not in self._packed:
            packed = None
            if encoder.dtype == torch.float32 and encoder.nbytes <= self._room and _has_onednn():
                self._room -= encoder.nbytes
                packed = torch.ops.mkldnn._reorder_linear_weight(encoder.T.contiguous(), _PACKED_ROWS)
            self._packed[id(encoder)] = encoder, packed  # keeps it alive, so that its id is not reused
        return self._packed[id(encoder)][1]


_PASS: ContextVar[EncodingPass | None] = ContextVar("encoding_pass", default=None)


@cache
def _has_onednn() -> bool:
    """Return whether this PyTorch has the oneDNN operators that its compiler uses for linear layers, in full precision.

    They are not documented, so they are tested.
    """
    import torch

    x, weights = torch.linspace(-1, 1, 6).view(2, 3), torch.linspace(0, 1, 12).view(4, 3)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weights, _PACKED_ROWS)
        made = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(made, x @ weights.T, rtol=1e-5, atol=1e-6)
