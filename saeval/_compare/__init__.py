"""Compares results: intervals and tests, leaderboards, pairs of runs, joined boards, matched latents.

The underscore is there because `saeval.compare` is the function.
"""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
