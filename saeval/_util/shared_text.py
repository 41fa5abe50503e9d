"""Splits off the common start and end of several texts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def without_shared(texts: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return the common start and the common end of texts, and the remainder of each.

    Example:
        >>> without_shared(["judge: a, please", "judge: b, please"])
        ('judge: ', ', please', ['a', 'b'])
    """
    before = _common_start(texts)
    after = _common_start([text[len(before) :][::-1] for text in texts])[::-1]
    return before, after, [text[len(before) : len(text) - len(after)] for text in texts]


def _common_start(texts: Sequence[str]) -> str:
    """Return the common start of texts, found by bisection: `os.path.commonprefix` compares character by character."""
    if not texts:
        return ""
    first, last = min(texts), max(texts)  # all texts lie between these, so they share what these share
    length = bisect_left(range(1, len(first) + 1), True, key=lambda n: not last.startswith(first[:n]))
    return first[:length]
