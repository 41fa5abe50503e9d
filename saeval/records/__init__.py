"""Defines the data that passes between stages: examples, messages, metrics, prompts, scores."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
