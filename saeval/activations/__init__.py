"""Stores tokens and sparse activations on disk; reads windows and statistics of latents."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
