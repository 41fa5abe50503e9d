"""Runs tasks: lists the work, collects, samples, explains, scores, and saves each result immediately.

The package has an underscore because `saeval.run` is the function.
"""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
