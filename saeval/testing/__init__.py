"""Test tools for plugin authors: toy models, planted latents of known meaning, and contract checks.

Does not require pytest. A complete test of a scorer can be:

    def test_purity():
        check_scorer(Purity(), llm=lambda: ScriptedLLM("0.5"))
"""

from __future__ import annotations

from saeval._util.lazy import attach

__getattr__, __dir__, __all__ = attach(__file__)
