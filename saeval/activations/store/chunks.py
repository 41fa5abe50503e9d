"""Groups activations by latent in bounded memory: sorted chunks on disk, merged by ranges of latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_F16_MAX, _F16_MIN, _F16_TINY = 65504.0, 6.2e-5, 6e-8  # largest, smallest with all digits, smallest


def pair_type(places: int) -> np.dtype[np.void]:
    """Return the type of a position and its value, for so many positions; moved as one, they cost one look-up."""
    return np.dtype([("position", "<u8" if places > 2**32 else "<u4"), ("value", "<f4")])


class Chunk:
    """Activations of some contexts, sorted by latent, in files.

    Args:
        folder: Where they lie.
        n_latents: Width of the dictionary.
        kind: See `pair_type`.
    """

    def __init__(self, folder: Path, n_latents: int, kind: np.dtype[np.void]):
        self._folder, self._n_latents, self._kind = folder, n_latents, kind

    def write(self, latent: NDArray[np.unsignedinteger[Any]], pairs: NDArray[np.void]) -> None:
        """Sort activations, in the order of their positions, by latent, and write them.

        Args:
            latent: Latent of each.  [nonzero]
            pairs: Position and value.  [nonzero]
        """
        firings = np.bincount(latent, minlength=self._n_latents)
        pairs = pairs.take(_order(latent))
        fires = np.flatnonzero(firings)
        bounds = np.concatenate([[0], np.cumsum(firings)])
        peaks = np.zeros(self._n_latents, dtype=np.float32)
        peaks[fires] = np.maximum.reduceat(np.abs(pairs["value"]), bounds[fires]) if len(fires) else 0
        self._folder.mkdir(exist_ok=True)
        for name, array in (("bounds", bounds), ("peaks", peaks), ("pairs", pairs)):
            with (self._folder / name).open("wb") as file:  # unlike `tofile`, says that the disk is full
                file.write(array.data)

    def bounds(self, low: int, high: int) -> NDArray[np.int64]:
        """Return where each latent's pairs begin, and the last one's end.  [high - low + 1]"""
        return np.fromfile(self._folder / "bounds", dtype=np.int64, count=high - low + 1, offset=8 * low)

    def peaks(self) -> NDArray[np.float32]:
        """Return the largest magnitude of each latent; 0 where it does not fire.  [n_latents]"""
        return np.fromfile(self._folder / "peaks", dtype=np.float32)

    def pairs(self, begin: int, end: int) -> NDArray[np.void]:
        """Return some of the sorted pairs."""
        size = self._kind.itemsize
        return np.fromfile(self._folder / "pairs", dtype=self._kind, count=end - begin, offset=size * begin)


def merge(chunks: Sequence[Chunk], n_latents: int, kind: np.dtype[np.void], folder: Path, budget: int) -> int:
    """Write `indptr.npy`, `position.npy` and `value.npy`.

    Values become float16 where every latent's peak has all its digits there: what weaker values lose is then less than
    a two-thousandth of the peak, and none becomes 0.

    Args:
        chunks: What to merge; positions ascend from one to the next.
        n_latents: Width of the dictionary.
        kind: See `pair_type`.
        folder: Where to write.
        budget: Nonzeros to hold in memory.

    Returns:
        The number of nonzeros.
    """
    indptr = np.zeros(n_latents + 1, dtype=np.int64)
    peaks = np.zeros(n_latents, dtype=np.float32)
    for chunk in chunks:
        indptr += chunk.bounds(0, n_latents)
        np.maximum(peaks, chunk.peaks(), out=peaks)
    np.save(folder / "indptr.npy", indptr)
    half = bool(((peaks == 0) | ((peaks >= _F16_MIN) & (peaks <= _F16_MAX))).all())
    total = int(indptr[-1])
    # Not written through a memory map: on a full disk, that would kill the process without a word.
    with (folder / "position.npy").open("wb") as p_file, (folder / "value.npy").open("wb") as v_file:
        for file, type_ in ((p_file, kind["position"]), (v_file, np.dtype(np.float16 if half else np.float32))):
            header = {"descr": np.lib.format.dtype_to_descr(type_), "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(file, header)
        for low, high in _ranges(indptr, budget):
            for pairs in _sorted(chunks, low, high):
                p_file.write(np.ascontiguousarray(pairs["position"]).data)
                v_file.write(_halved(pairs["value"]).data if half else np.ascontiguousarray(pairs["value"]).data)
    return total


def _sorted(chunks: Sequence[Chunk], low: int, high: int) -> Iterator[NDArray[np.void]]:
    """Yield the pairs of a range of latents in the order of the store."""
    bounds = [chunk.bounds(low, high) for chunk in chunks]
    parts = (chunk.pairs(int(own[0]), int(own[-1])) for chunk, own in zip(chunks, bounds, strict=True))
    if high == low + 1 or len(chunks) < 2:  # they are in order; one latent may have more than fits into memory
        yield from parts
        return
    together = np.concatenate(list(parts))
    runs = np.diff(bounds, axis=1)  # of one latent in one chunk
    begins = np.cumsum(runs).reshape(runs.shape) - runs
    runs, begins = runs.T.ravel(), begins.T.ravel()
    source = np.repeat(begins - (np.cumsum(runs) - runs), runs)
    source += np.arange(len(source))
    yield together.take(source)


def _halved(value: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return values as float16, none of them rounded to 0."""
    half = value.astype(np.float16)
    lost = np.flatnonzero(half.view(np.uint16) << 1 == 0)
    half[lost] = np.sign(value[lost]) * _F16_TINY
    return half


def _order(latent: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.intp]:
    """Return the stable order that sorts by latent; two radix passes of 16 bits beat one comparison sort."""
    order = np.argsort(latent.astype(np.uint16, copy=False), kind="stable")
    if latent.dtype.itemsize > 2:
        order = order[np.argsort((latent >> 16).astype(np.uint16)[order], kind="stable")]
    return order


def _ranges(indptr: NDArray[np.int64], budget: int) -> Iterator[tuple[int, int]]:
    """Cut the latents into ranges of at most `budget` nonzeros, but at least one latent."""
    low = 0
    while low < len(indptr) - 1:
        high = int(np.searchsorted(indptr, indptr[low] + budget, side="right")) - 1
        high = max(high, low + 1)
        yield low, high
        low = high
