"""Turns a spec into a task: finds and checks its parts, and lays out its cells."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
