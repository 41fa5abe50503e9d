"""Prompts of the built-in explainers and scorers, one Markdown file each."""

from __future__ import annotations

from saeval.plugin import Prompt


def load(name: str) -> Prompt:
    """Read one of the prompts in this folder."""
    return Prompt.load(__name__, name)
