"""Registers the package's plugins with saeval."""

from __future__ import annotations

from saeval.plugin import Explainer, hookimpl
from saeval_lexicon.lexicon import Lexicon


@hookimpl
def saeval_explainers() -> list[type[Explainer]]:
    return [Lexicon]
