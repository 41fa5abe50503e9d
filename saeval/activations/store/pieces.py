"""Manages the finished pieces of a store that is still being written."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saeval.activations.store.chunks import Chunk
from saeval.activations.store.files import checksum

if TYPE_CHECKING:
    from numpy.typing import NDArray

Totals = dict[str, "NDArray[np.float64]"]


class Piece(NamedTuple):
    """The activations of a range of contexts.

    Attributes:
        low: First context.
        high: The context after the last one.
        chunk: The activations.
        totals: The sums tallied over these contexts.
    """

    low: int
    high: int
    chunk: Chunk
    totals: Totals


class Pieces:
    """A folder of pieces that several processes may fill at once: each renames a piece to its final name when finished.

    Args:
        folder: The folder; created if it does not exist.
        n_latents: Width of the dictionary.
        kind: See `pair_type`.
    """

    def __init__(self, folder: Path, n_latents: int, kind: np.dtype[np.void]):
        self._folder, self._n_latents, self._kind = folder, n_latents, kind
        self._known: dict[tuple[int, int], Piece] = {}  # pieces already read
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        low: int,
        high: int,
        bounds: NDArray[np.int64],
        pairs: NDArray[np.void],
        totals: Mapping[str, Any],
    ) -> None:
        """Write a piece; once this returns, it survives a kill.

        Args:
            low: First context.
            high: The context after the last one.
            bounds: Start of each latent's activations, and the end of the last one's.  [n_latents + 1]
            pairs: Position and value, sorted by latent, then position.  [nonzero]
            totals: The sums tallied over these contexts.
        """
        made, place = self._folder / f".{uuid.uuid4().hex}", self._place(low, high)
        Chunk(made, self._n_latents, self._kind).write(bounds, pairs)
        notes = {
            "totals": {name: np.asarray(value, dtype=np.float64).tolist() for name, value in totals.items()},
            "files": {file.name: checksum(file) for file in made.iterdir()},
        }
        (made / "piece.json").write_text(json.dumps(notes))
        try:
            made.rename(place)
        except OSError:
            if not place.exists():
                raise
            shutil.rmtree(made)  # another process was first

    def all(self, low: int = 0, high: int | None = None) -> list[Piece]:
        """Return the finished pieces, in order and without overlap; delete damaged ones.

        Args:
            low: First context of the pieces.
            high: End of the pieces; None for the end of the corpus.
        """
        spans = sorted(tuple(map(int, path.name.split("-"))) for path in self._folder.glob("[0-9]*-*"))
        pieces: list[Piece] = []
        for begin, end in spans:
            free = begin >= (pieces[-1].high if pieces else low) and (high is None or end <= high)
            if free and (piece := self._known.get((begin, end)) or self._read(begin, end)):
                self._known[begin, end] = piece
                pieces.append(piece)
        return pieces

    def reach(self, low: int, high: int) -> int:
        """Return the first context after `low` that no finished piece covers, up to `high`."""
        for piece in self.all(low, high):
            if piece.low == low:
                low = piece.high
        return low

    def _read(self, low: int, high: int) -> Piece | None:
        folder = self._place(low, high)
        try:
            notes = json.loads((folder / "piece.json").read_text())
            whole = all(checksum(folder / file) == digest for file, digest in notes["files"].items())
            totals = {key: np.asarray(value, dtype=np.float64) for key, value in notes["totals"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Piece(low, high, Chunk(folder, self._n_latents, self._kind), totals)

    def _place(self, low: int, high: int) -> Path:
        return self._folder / f"{low:012d}-{high:012d}"


def sum_totals(pieces: Sequence[Piece]) -> Totals:
    """Return the tallied sums over all pieces, added in the order of the corpus so that rounding is reproducible."""
    totals: Totals = {}
    for piece in pieces:
        for name, value in piece.totals.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals
