"""Multiplies many batches with an encoder, faster: packed for oneDNN, or into reused memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_PACKED_BYTES = 2 << 30  # memory that packed encoders may take
_PACKED_ROWS = 192  # tokens that encoders are packed for
_FEWEST_ROWS = 32  # of a tile, below which a product is slow
# From 32 MB on, the C library gets the memory of each product from the system, and gives it back.
_TILE_BYTES = 24 << 20


@contextmanager
def encoding_pass() -> Iterator[None]:
    """Let coders encode faster while the context lasts, in inference mode on the CPU, where they encode many batches.

    Encoders are brought into oneDNN's own layout once, as long as they take no more than two gigabytes. Others encode
    into one piece of memory, since hundreds of megabytes afresh for each batch cost as much as a fifth of encoding. The
    products of packed encoders round differently than `@`.
    """
    before = _PASS.set(EncodingPass())
    try:
        yield
    finally:
        _PASS.reset(before)


class EncodingPass:
    """What is kept for the next batch: packed encoders, and memory for the products of others."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._room = _PACKED_BYTES
        self._buffer: Tensor | None = None

    @staticmethod
    def of(x: Tensor) -> EncodingPass | None:
        """Return the pass that is on, if it is any use for these activations."""
        import torch

        return _PASS.get() if x.device.type == "cpu" and torch.is_inference_mode_enabled() else None

    def rows(self, encoder: Tensor) -> int:
        """Return how many tokens to encode at a time, at most.  encoder [d_in, n_latents]"""
        if self._pack(encoder) is None:
            return sys.maxsize
        return max(_FEWEST_ROWS, _TILE_BYTES // (encoder.itemsize * max(1, encoder.shape[1])))

    def product(self, x: Tensor, encoder: Tensor) -> Tensor:
        """Return `x @ encoder`, good until the next call.  x [rows, d_in], encoder [d_in, n_latents]"""
        import torch

        if (packed := self._pack(encoder)) is not None and len(x):
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
            return product
        size = len(x) * encoder.shape[1]
        if self._buffer is None or self._buffer.dtype != x.dtype or len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=x.dtype)
        return torch.mm(x, encoder, out=self._buffer[:size].view(len(x), encoder.shape[1]))

    def _pack(self, encoder: Tensor) -> Tensor | None:
        """Return an encoder in oneDNN's layout, the first time made; None where it cannot be had."""
        import torch

        if id(encoder) not in self._packed:
            packed = None
            if encoder.dtype == torch.float32 and encoder.nbytes <= self._room and _has_onednn():
                self._room -= encoder.nbytes
                packed = torch.ops.mkldnn._reorder_linear_weight(encoder.T.contiguous(), _PACKED_ROWS)
            self._packed[id(encoder)] = encoder, packed  # kept alive, or its number could be another's
        return self._packed[id(encoder)][1]


_PASS: ContextVar[EncodingPass | None] = ContextVar("encoding_pass", default=None)


@cache
def _has_onednn() -> bool:
    """Tell whether this PyTorch has the operators behind its compiler's linear layers, in full precision.

    They are not documented, so they are tried.
    """
    import torch

    x, weights = torch.linspace(-1, 1, 6).view(2, 3), torch.linspace(0, 1, 12).view(4, 3)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weights, _PACKED_ROWS)
        made = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(made, x @ weights.T, rtol=1e-5, atol=1e-6)
