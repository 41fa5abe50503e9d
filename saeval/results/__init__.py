"""Reads the files of a run: results, tables, and the files of each cell."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
