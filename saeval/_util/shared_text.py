"""Factors out the text that several texts share."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix


def without_shared(texts: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return what all texts begin with, what all end with, and what is between them in each.

    Example:
        >>> without_shared(["judge: a, please", "judge: b, please"])
        ('judge: ', ', please', ['a', 'b'])
    """
    before = commonprefix(texts)  # noqa: RUF071 - these are no paths
    after = commonprefix([text[len(before) :][::-1] for text in texts])[::-1]  # noqa: RUF071
    return before, after, [text[len(before) : len(text) - len(after)] for text in texts]
