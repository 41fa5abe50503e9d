"""What plugin authors test with: stand-ins, planted latents whose meaning is known, and the contracts of each kind.

Needs no pytest. A whole test of a scorer can be:

    def test_purity():
        check_scorer(Purity(), llm=lambda: ScriptedLLM("0.5"))
"""

from __future__ import annotations

from saeval.testing.contracts import (
    check_coder,
    check_explainer,
    check_llm,
    check_sampler,
    check_scorer,
    check_source,
    check_tracker,
)
from saeval.testing.planted import plant, planted_explanation, planted_store, rule_explainer, rule_judge
from saeval.testing.toys import ScriptedLLM, context, make_example, make_examples, word_embeddings

__all__ = [
    "ScriptedLLM", "check_coder", "check_explainer", "check_llm", "check_sampler", "check_scorer", "check_source", "check_tracker",
    "context",
    "make_example", "make_examples", "plant", "planted_explanation", "planted_store", "rule_explainer", "rule_judge",
    "word_embeddings",
]  # fmt: skip
