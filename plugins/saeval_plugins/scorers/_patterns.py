"""Pairs windows that lend and borrow a pattern of marks, so that the pattern fits where the window begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saeval.plugin import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORBIDDEN = 1e9  # larger than any sum of distances


def beginning(window: Example) -> tuple[bool, int]:
    """Return whether a window begins in the first tile of its context, and where relative to tiles of its length.

    Samplers shift windows according to where the latent fires in them. Where a window's beginning reveals its shift,
    because it begins a document or has text that recurs at the same place in each, a pattern of marks borrowed from a
    window with another shift is recognisable.
    """
    size = len(window.tokens)
    return window.start < size, window.start % size


def lent(
    lenders: Sequence[Example], borrowers: Sequence[Example], forbidden: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield pairs of a lender and a borrower, by index, as many as possible, that begin as alike as possible.

    Args:
        lenders: Windows whose marks are copied, each at most once.
        borrowers: Windows that get the marks, each at most once.
        forbidden: Which pairs are not allowed.  [lenders, borrowers]
    """
    from scipy.optimize import linear_sum_assignment

    if not lenders or not borrowers:
        return
    size = len(lenders[0].tokens)
    ours, theirs = (np.array([beginning(window) for window in windows]) for windows in (lenders, borrowers))
    starts, others = (np.array([window.start for window in windows]) for windows in (lenders, borrowers))
    apart = np.abs(ours[:, None, 1] - theirs[:, 1])
    distance = np.minimum(apart, size - apart) + size * (ours[:, None, 0] != theirs[:, 0])
    distance = distance + 0.5 * (starts[:, None] != others)  # other tiles are next best: the last one may be special
    if forbidden is None:
        forbidden = np.zeros(distance.shape, dtype=np.bool_)
    for lender, borrower in zip(*linear_sum_assignment(distance + _FORBIDDEN * forbidden), strict=True):
        if not forbidden[lender, borrower]:
            yield int(lender), int(borrower)
