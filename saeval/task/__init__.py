"""Builds tasks from specs: finds plugins, checks options, and expands the matrix to cells."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
