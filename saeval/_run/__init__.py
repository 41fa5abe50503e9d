"""Runs a task: lists its work, collects, samples, explains, scores, and saves each result as soon as it is made.

The underscore is there because `saeval.run` is the function.
"""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
