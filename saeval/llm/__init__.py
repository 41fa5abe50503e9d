"""Adds caching, adaptive concurrency, retries, a budget and a ledger to language models."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
