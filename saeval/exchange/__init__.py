"""Reads and writes other tools' formats, using files only."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
