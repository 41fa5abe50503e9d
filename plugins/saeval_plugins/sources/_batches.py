"""Runs work in batches, with smaller batches or fewer coders if memory runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from saeval.plugin import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

# The last four are errors of cuBLAS and cuDNN when they cannot allocate their workspace.
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)


class NotEnoughMemory(InputError):
    """Raised if memory does not suffice for the smallest batch."""


def in_batches(do: Callable[[int, int], None], batches: Iterable[tuple[int, int]]) -> None:
    """Call `do(low, high)` for batches; each time memory runs out, this batch and all later ones are halved.

    A call that ran out of memory is repeated for its first half, so `do` must be repeatable.

    Raises:
        NotEnoughMemory: If there is not enough memory for a single context.
    """
    parts = 1
    for begin, end in batches:
        low = begin
        while low < end:
            high = min(low + -(-(end - begin) // parts), end)
            lacking = _memory_lacking(do, low, high)
            if lacking is None:
                low = high
            elif high - low == 1:
                raise NotEnoughMemory(
                    f"not enough memory for a single context ({lacking}); set a shorter `context`, a smaller model or "
                    "coder, `dtype: bfloat16`, or another `device`"
                )
            else:
                parts *= 2


def _memory_lacking(do: Callable[[int, int], None], low: int, high: int) -> str | None:
    """Return a call's out-of-memory error, after releasing its memory; None if it succeeded."""
    try:
        do(low, high)
    except RuntimeError as error:  # torch's; NumPy's MemoryError may come from writing, which cannot be done again
        said = lack_of_memory(error)
        if said is None:
            raise
    else:
        return None
    release_memory()  # so that fragments are merged
    return said


def lack_of_memory(error: RuntimeError) -> str | None:
    """Return the message of an out-of-memory error; None for other errors."""
    said = str(error).strip().partition("\n")[0]
    return said if any(words in said for words in _OUT_OF_MEMORY) else None


def release_memory() -> None:
    """Release unused GPU memory."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_memory(device: str) -> int | None:
    """Return the free memory of a GPU in bytes; None for other devices."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def as_many_as_fit(load: Callable[[int], T], number: int, device: str, spare: int) -> list[T]:
    """Return `load(0)`, `load(1)`, … until memory runs out; at least one.

    Args:
        load: Loads the object with a number.
        number: Number of objects.
        device: The device.
        spare: Bytes to leave free.

    Raises:
        NotEnoughMemory: If there is not enough memory for the first one.
    """
    loaded: list[T] = []
    for i in range(number):
        before = free_memory(device)
        try:
            loaded.append(load(i))
        except RuntimeError as error:
            said = lack_of_memory(error)
            if said is None:
                raise
            if not loaded:
                raise NotEnoughMemory(
                    f"not enough memory for model and coder ({said}); set a smaller model or coder, `dtype: bfloat16`, "
                    "or another `device`"
                ) from None
            break
        left = free_memory(device)
        if before is not None and left is not None and left - spare < before - left:
            break  # the next one may be as large
    release_memory()
    return loaded
