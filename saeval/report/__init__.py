"""Renders a run's results as terminal boards, Markdown, CSV, HTML and plots. Needs no plugin and no model."""

from __future__ import annotations

from saeval._util import attach

__getattr__, __dir__, __all__ = attach(__file__)
