"""Runs work in batches, and makes them smaller when memory runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.plugin import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

# The last two are cuBLAS', which finds no room for its workspace.
_SAYS_SO = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)


def in_batches(do: Callable[[int, int], None], begin: int, end: int, size: int) -> None:
    """Call `do(low, high)` from `begin` to `end`, `size` at a time, or half of that each time memory runs out.

    A call that ran out of memory is made again for the first half; `do` has to bear that.

    Raises:
        InputError: If there is not enough memory for one.
    """
    low = begin
    while low < end:
        high = min(low + size, end)
        lacking = _memory_lacking(do, low, high)
        if lacking is None:
            low = high
        elif size == 1:
            raise InputError(
                f"there is not enough memory for a single context ({lacking}); take a shorter `context`, a smaller "
                "model or coder, `dtype: bfloat16`, or another `device`"
            )
        else:
            size = (size + 1) // 2


def _memory_lacking(do: Callable[[int, int], None], low: int, high: int) -> str | None:
    """Return the out-of-memory error of a call, after releasing what it held; None if it succeeded."""
    try:
        do(low, high)
    except RuntimeError as error:  # torch's; NumPy's MemoryError may come from writing, which cannot be done again
        said = str(error).strip().partition("\n")[0]
        if not any(words in said for words in _SAYS_SO):
            raise
    else:
        return None
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for pieces to become whole again
    return said
