"""Stores tokens and sparse activations, and reads windows and statistics of latents from them."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
