"""Utilities used by all packages: errors, files, paths, seeding, secrets, text, progress."""

from __future__ import annotations

from saeval._util.lazy import attach

__getattr__, __dir__, __all__ = attach(__file__)
