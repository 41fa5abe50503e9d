"""Registers the package's plugins with saeval."""

from __future__ import annotations

from saeval.plugin import ActivationSource, hookimpl
from saeval_wordvec.wordvec import WordVectors


@hookimpl
def saeval_sources() -> list[type[ActivationSource]]:
    return [WordVectors]
