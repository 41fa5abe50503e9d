"""Turns a spec into a task: what it names, found, checked and laid out in cells, but not yet run."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
