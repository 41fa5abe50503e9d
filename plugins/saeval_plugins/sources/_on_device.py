"""Sorts nonzero activations by latent on the device that computed them, and writes them in a thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Block(NamedTuple):
    """Nonzero activations of some contexts, sorted by latent, then position.

    Attributes:
        finite: Whether all activations are finite.
        bounds: Index of each latent's first pair, and the end of the last latent's pairs.  [n_latents + 1]
        pairs: Positions and values.  [nonzero]
        sums: Totals over the contexts.  [sums] float64
    """

    finite: bool
    bounds: NDArray[np.int64]
    pairs: NDArray[np.void]
    sums: NDArray[np.float64]


class Copy:
    """An asynchronous copy of a block to the host.

    Args:
        words: The block on the device: bounds, whether it is finite, sums, pairs.  [words] int32
        bounds: Number of bounds.
        sums: Number of sums.
        kind: Type of a pair.
    """

    def __init__(self, words: Tensor, bounds: int, sums: int, kind: np.dtype[np.void]):
        import torch

        self._bounds, self._sums, self._kind = bounds, sums, kind
        self._there = torch.empty(words.shape, dtype=words.dtype, pin_memory=words.is_cuda)
        self._there.copy_(words, non_blocking=True)
        self._copied = torch.cuda.Event() if words.is_cuda else None
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(words.device))

    def block(self) -> Block:
        """Wait for the copy to finish and return the block."""
        import numpy as np

        if self._copied is not None:
            self._copied.synchronize()
        words = self._there.numpy()
        head, ends = 2 * (self._bounds + 1), 2 * (self._bounds + 1 + self._sums)
        numbers = words[:head].view(np.int64)
        bounds = numbers[:-1]
        pairs = words[ends:].view(self._kind)[: int(bounds[-1])]
        return Block(bool(numbers[-1]), bounds, pairs, words[head:ends].view(np.float64))


class Nonzeros:
    """Holds nonzero activations on their device and sorts them there, without synchronizing.

    Args:
        n_latents: Width of the dictionary.
        places: Maximum number of positions that a block spans.
        kind: Type of a pair of position and value, as `ActivationWriter.pair_type`.
    """

    def __init__(self, n_latents: int, places: int, kind: np.dtype[np.void]):
        self._n_latents, self._places, self._kind = n_latents, places, kind
        self.begin(0)

    def begin(self, position: int) -> None:
        """Discard what is held, and begin a new block at a position."""
        self._first = position
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._sums: Tensor | None = None
        self.held = 0

    def add(self, position: Tensor, latent: Tensor, value: Tensor, sums: Tensor | None = None) -> None:
        """Add activations in any order; those without a position (-1) or not above 0 are dropped.

        Args:
            position: Position of each.  [nonzero] int64
            latent: Latent of each.  [nonzero] int64
            value: Activation.  [nonzero] float32
            sums: Numbers to add to the block's totals.  [sums] float64
        """
        counts = (position >= 0) & (value > 0)
        key = latent * self._places + (position - self._first)
        self._keys.append(key.where(counts, self._n_latents * self._places))  # sorted after all others
        self._values.append(value)
        if sums is not None:
            self._sums = sums if self._sums is None else self._sums + sums
        self.held += len(value)

    def sorted(self, device: str) -> Copy:
        """Sort by latent, then position, and start one copy to the host."""
        import torch

        words = torch.int32
        none = torch.empty(0, dtype=torch.int64, device=device)
        keys, order = torch.cat([none, *self._keys]).sort()
        values = torch.cat([none.float(), *self._values])[order]
        begins = torch.arange(self._n_latents + 1, device=device) * self._places
        finite = values.isfinite().all().to(torch.int64)[None]
        position = keys % self._places + self._first
        # A position is two words, the low one first; the store may need only the low one.
        halves = position.view(words).view(-1, 2)[:, : self._kind["position"].itemsize // 4]
        pairs = torch.cat([halves, values.view(words)[:, None]], dim=1)
        sums = none.double() if self._sums is None else self._sums
        parts = [torch.searchsorted(keys, begins), finite, sums, pairs.flatten()]
        whole = torch.cat([part.view(words) for part in parts])
        return Copy(whole, len(begins), len(sums), self._kind)


class WriterThread:
    """Runs calls in order in a thread, with a short queue. An exception in a call is raised by a later `call` or exit.

    As a context manager, it waits for all calls on exit. If the block raised, queued calls are dropped.
    """

    _WAITING = 2

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saeval-writer")
        self._calls: deque[Future[None]] = deque()
        self._failed = False

    def call(self, do: Callable[..., object], *arguments: Any) -> None:
        """Queue a call, and wait while the queue is full."""
        self._calls.append(self._thread.submit(self._done, do, arguments))
        self._wait(self._WAITING)

    def _done(self, do: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self._failed:
            return  # nothing may be written after a gap
        try:
            do(*arguments)
        except BaseException:
            self._failed = True
            raise

    def _wait(self, most: int) -> None:
        while len(self._calls) > most:
            self._calls.popleft().result()

    def __enter__(self) -> WriterThread:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._wait(0)
        finally:
            self._thread.shutdown(cancel_futures=True)


def to_device(tensor: Tensor, device: Any) -> Tensor:
    """Copy a tensor from the host without synchronizing with the device."""
    import torch

    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
