"""Groups activations by latent in bounded memory: sorted chunks on disk, merged by ranges of latents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_READ = 1024  # least nonzeros per read of a chunk: opening its file takes as long as reading them
_F16_MAX, _F16_MIN, _F16_TINY = 65504.0, 6.2e-5, 6e-8  # largest, smallest normal, smallest subnormal (rounded)


def pair_type(places: int) -> np.dtype[np.void]:
    """Return the dtype of a pair of position and value, moved as one record to halve the number of look-ups.

    Positions up to and including `places` (the end of the last window) fit into it.
    """
    return np.dtype([("position", "<u8" if places >= 2**32 else "<u4"), ("value", "<f4")])


class Chunk:
    """The activations of some contexts, sorted by latent, in files.

    Args:
        folder: Folder of the files.
        n_latents: Width of the dictionary.
        kind: See `pair_type`.
    """

    def __init__(self, folder: Path, n_latents: int, kind: np.dtype[np.void]):
        self._folder, self._n_latents, self._kind = folder, n_latents, kind

    def write(self, bounds: NDArray[np.int64], pairs: NDArray[np.void]) -> None:
        """Write activations that are sorted by latent, then position.

        Args:
            bounds: Start of each latent's pairs, and the end of the last one's.  [n_latents + 1]
            pairs: Position and value.  [nonzero]
        """
        fires = np.flatnonzero(bounds[1:] > bounds[:-1])
        peaks = np.zeros(self._n_latents, dtype=np.float32)
        peaks[fires] = np.maximum.reduceat(np.abs(pairs["value"]), bounds[fires]) if len(fires) else 0
        self._folder.mkdir(exist_ok=True)
        for name, array in (("bounds", bounds), ("peaks", peaks), ("pairs", pairs)):
            with (self._folder / name).open("wb") as file:  # unlike `tofile`, raises an error if the disk is full
                file.write(array.data)

    def join(self, chunks: Sequence[Chunk], budget: int) -> None:
        """Merge several chunks in bounded memory.

        Args:
            chunks: The chunks; positions ascend from one to the next.
            budget: Nonzeros to hold in memory.
        """
        bounds, peaks = _together(chunks, self._n_latents)
        self._folder.mkdir(exist_ok=True)
        for name, array in (("bounds", bounds), ("peaks", peaks)):
            (self._folder / name).write_bytes(array.tobytes())
        with (self._folder / "pairs").open("wb") as file:
            for pairs in _sorted(chunks, bounds, self._kind, budget):
                file.write(pairs.data)

    def bounds(self, low: int, high: int) -> NDArray[np.int64]:
        """Return the start of each latent's pairs, and the end of the last one's.  [high - low + 1]"""
        found = np.empty(high - low + 1, dtype=np.int64)
        self._read("bounds", low, found)
        return found

    def peaks(self) -> NDArray[np.float32]:
        """Return the largest magnitude of each latent; 0 if it does not fire.  [n_latents]"""
        found = np.empty(self._n_latents, dtype=np.float32)
        self._read("peaks", 0, found)
        return found

    def read_pairs(self, begin: int, into: NDArray[np.void]) -> None:
        """Fill an array with sorted pairs, starting at pair number `begin`."""
        self._read("pairs", begin, into)

    def _read(self, name: str, begin: int, into: NDArray[Any]) -> None:
        if not len(into):
            return
        # Unbuffered and opened for each read: a long corpus has more files than a process may open at once.
        with (self._folder / name).open("rb", buffering=0) as file:
            file.seek(begin * into.itemsize)
            left = into.view(np.uint8).data
            while left:
                n = file.readinto(left)
                if not n:
                    raise OSError(f"{self._folder}/{name}: is shorter than it was")
                left = left[n:]


def by_latent(
    latent: NDArray[np.unsignedinteger[Any]], pairs: NDArray[np.void], n_latents: int
) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Sort activations by latent, keeping the order of positions; return the bounds of each latent and the pairs.

    Args:
        latent: Latent of each pair.  [nonzero]
        pairs: Position and value.  [nonzero]
        n_latents: Width of the dictionary.
    """
    firings = np.bincount(latent, minlength=n_latents)
    return np.concatenate([[0], np.cumsum(firings)]), pairs.take(_order(latent))


def merge(chunks: Sequence[Chunk], n_latents: int, kind: np.dtype[np.void], folder: Path, budget: int) -> int:
    """Write `indptr.npy`, `position.npy` and `value.npy`.

    Values become float16 if every latent's peak is in the normal range of float16: the rounding error is then less
    than 1/2000 of the peak, and no value becomes 0.

    Args:
        chunks: The chunks to merge; positions ascend from one to the next.
        n_latents: Width of the dictionary.
        kind: See `pair_type`.
        folder: Where to write.
        budget: Nonzeros to hold in memory.

    Returns:
        The number of nonzeros.
    """
    indptr, peaks = _together(chunks, n_latents)
    np.save(folder / "indptr.npy", indptr)
    half = bool(((peaks == 0) | ((peaks >= _F16_MIN) & (peaks <= _F16_MAX))).all())
    total = int(indptr[-1])
    levels = folder / "levels"
    levels.mkdir()
    chunks = _fewer(chunks, n_latents, kind, levels, budget)
    # Not written through a memory map: on a full disk, that would kill the process without a message.
    with (folder / "position.npy").open("wb") as p_file, (folder / "value.npy").open("wb") as v_file:
        for file, type_ in ((p_file, kind["position"]), (v_file, np.dtype(np.float16 if half else np.float32))):
            header = {"descr": np.lib.format.dtype_to_descr(type_), "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(file, header)
        for pairs in _sorted(chunks, indptr, kind, budget):
            p_file.write(np.ascontiguousarray(pairs["position"]).data)
            v_file.write(_halved(pairs["value"]).data if half else np.ascontiguousarray(pairs["value"]).data)
    shutil.rmtree(levels)
    return total


def _together(chunks: Sequence[Chunk], n_latents: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the bounds and the peak of each latent over all chunks together.  [n_latents + 1], [n_latents]"""
    bounds = np.zeros(n_latents + 1, dtype=np.int64)
    peaks = np.zeros(n_latents, dtype=np.float32)
    for chunk in chunks:
        bounds += chunk.bounds(0, n_latents)
        np.maximum(peaks, chunk.peaks(), out=peaks)
    return bounds, peaks


def _fewer(
    chunks: Sequence[Chunk], n_latents: int, kind: np.dtype[np.void], folder: Path, budget: int
) -> Sequence[Chunk]:
    """Merge chunks into fewer ones if there are so many that each would be read a few kilobytes at a time.

    This keeps the time of merging proportional to the number of nonzeros: each level copies them once and reduces the
    number of chunks many times.
    """
    most = max(1, budget // _READ)
    level = 0
    while len(chunks) > most:
        at_a_time = min(-(-len(chunks) // most), max(2, most))
        joined = []
        for n, begin in enumerate(range(0, len(chunks), at_a_time)):
            joined.append(Chunk(folder / f"{level}-{n}", n_latents, kind))
            joined[-1].join(chunks[begin : begin + at_a_time], budget)
        for old in folder.glob(f"{level - 1}-*"):
            shutil.rmtree(old)
        chunks, level = joined, level + 1
    return chunks


def _sorted(
    chunks: Sequence[Chunk], total: NDArray[np.int64], kind: np.dtype[np.void], budget: int
) -> Iterator[NDArray[np.void]]:
    """Yield the pairs of all chunks in the order of the store, one range of latents at a time."""
    known, bounds = (0, -1), np.empty((0, 0), dtype=np.int64)
    for low, high in _ranges(total, budget):
        if high > known[1]:  # read for several ranges at once: a quarter of the bytes of one range's pairs
            more = budget // (4 * max(1, len(chunks)))
            known = low, min(max(high, low + more), len(total) - 1)
            bounds = np.stack([chunk.bounds(*known) for chunk in chunks]) if chunks else bounds
        own = bounds[:, low - known[0] : high - known[0] + 1]
        if high == low + 1 or len(chunks) < 2:  # already in order; the pairs of one latent may exceed the memory
            yield from _in_order(chunks, own, kind, budget)
        else:
            yield _regrouped(chunks, own, kind)


def _in_order(
    chunks: Sequence[Chunk], bounds: NDArray[np.int64], kind: np.dtype[np.void], budget: int
) -> Iterator[NDArray[np.void]]:
    for chunk, own in zip(chunks, bounds, strict=True):
        for begin in range(int(own[0]), int(own[-1]), budget):
            pairs = np.empty(min(budget, int(own[-1]) - begin), dtype=kind)
            chunk.read_pairs(begin, pairs)
            yield pairs


def _regrouped(chunks: Sequence[Chunk], bounds: NDArray[np.int64], kind: np.dtype[np.void]) -> NDArray[np.void]:
    """Return the pairs of a range of latents by latent, then by chunk.  bounds [chunks, latents + 1]"""
    runs = np.diff(bounds, axis=1)  # number of pairs of one latent in one chunk
    ends = np.cumsum(runs.sum(axis=1))
    together = np.empty(int(ends[-1]), dtype=kind)
    for chunk, own, end in zip(chunks, bounds, ends.tolist(), strict=True):
        size = int(own[-1] - own[0])
        chunk.read_pairs(int(own[0]), together[end - size : end])
    begins = np.cumsum(runs).reshape(runs.shape) - runs
    runs, begins = runs.T.ravel(), begins.T.ravel()
    place = np.int32 if len(together) < 2**31 else np.int64
    source = np.repeat((begins - (np.cumsum(runs) - runs)).astype(place), runs)
    source += np.arange(len(source), dtype=place)
    return together.take(source)


def _halved(value: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return values as float16; values that would round to 0 become the smallest subnormal."""
    half = value.astype(np.float16)
    lost = np.flatnonzero(half.view(np.uint16) << 1 == 0)
    half[lost] = np.sign(value[lost]) * _F16_TINY
    return half


def _order(latent: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.intp]:
    """Return the stable order that sorts by latent, with two 16-bit radix sorts (faster than one comparison sort)."""
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
