"""Splits off the common start and end of several texts."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix


def without_shared(texts: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return the common start and the common end of texts, and the remainder of each.

    Example:
        >>> without_shared(["judge: a, please", "judge: b, please"])
        ('judge: ', ', please', ['a', 'b'])
    """
    before = commonprefix(texts)  # noqa: RUF071 - not paths
    after = commonprefix([text[len(before) :][::-1] for text in texts])[::-1]  # noqa: RUF071
    return before, after, [text[len(before) : len(text) - len(after)] for text in texts]
