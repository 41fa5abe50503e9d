"""Writes a store from a stream of activations, and resumes after an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval._util import StoreError, content_hash, free_memory, write_atomic
from saeval.activations.store.chunks import by_latent, merge, pair_type
from saeval.activations.store.dataset import shared_dataset, write_dataset
from saeval.activations.store.files import STORE_FORMAT, checksum
from saeval.activations.store.pieces import Piece, Pieces, Totals, added_up
from saeval.activations.store.reader import ActivationStore
from saeval.activations.tokens import TokenDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray


_SPILL = 8_000_000
_MERGE = 2_000_000, 32_000_000  # at least, at most


def merge_budget(free: int | None) -> int:
    """Return how many nonzeros to hold while merging: of at most a quarter of the free memory.

    Args:
        free: Free memory in bytes; None if unknown.
    """
    return _SPILL if free is None else min(max(free // 4 // 40, _MERGE[0]), _MERGE[1])


class ActivationWriter:
    """Writes a stream of activations to a store in bounded memory.

    Activations are buffered, sorted by latent, and written as pieces of the corpus; `finish` merges the pieces latent
    range by latent range. A writer goes on after the pieces that an interrupted one left behind.

    A source that can begin anywhere cuts the corpus into shards (`start` with `shard`, then `turn_to` for each), which
    processes can divide among them: each has a writer of the same path, and whichever finds all pieces there finishes.

    Args:
        path: Directory of the store to make.
        budget: Nonzeros to hold in memory (about 40 bytes each while sorting); None for 8 million while activations
            come, beside which a model needs memory, and as many as suit the free memory while merging.
        progress: Called with (text tokens done, text tokens in all) as contexts are finished.
        share: Which shards are this writer's, as (number, of how many): every so many-th.

    Attributes:
        pair_type: Type of a position and its value, once it has begun (`start`).
    """

    pair_type: np.dtype[np.void]

    def __init__(
        self,
        path: Path,
        *,
        budget: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.path = path
        self.progress = progress or (lambda done, total: None)
        self._budget = budget or _SPILL
        self._merge_budget = budget
        self._share = share
        self._buffer: list[tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.void]]] = []  # latents, pairs
        self._buffered = 0
        self._tallied: dict[str, Any] = {}
        self._known: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._only: list[int] | None = None
        self._adopted: ActivationStore | None = None
        self._facts: dict[str, Any] = {}
        self._whole: list[Piece] | None = None

    @property
    def stream(self) -> Path:
        """Folder for what has come of a streamed corpus; it is removed when the store is finished."""
        return self.path.with_name(f"{self.path.name}.stream.partial")

    def tokens(self, make: Callable[[], TokenDataset]) -> TokenDataset:
        """Return the tokens to `start` with; where processes divide the shards, one of them makes them for all.

        Args:
            make: Makes them.
        """
        if self._share[1] == 1:
            return make()
        return shared_dataset(self.path.with_name(f"{self.path.name}.tokens.partial"), make)

    def start(self, dataset: TokenDataset, n_latents: int, shard: int | None = None, made_with: str = "") -> int:
        """Begin, or resume an interrupted store.

        Args:
            dataset: The tokens that activations will be given for.
            n_latents: Width of the dictionary.
            shard: Contexts a shard, where the source can begin at each (`turn_to`); else all contexts are one.
            made_with: What values depend on beside the store's name, such as precision and device: nothing that was
                of a writer with another name is resumed.

        Returns:
            The context to begin at; 0 unless resuming.
        """
        self._dataset, self._n_latents = dataset, n_latents
        self._tokens_before = np.concatenate([[0], np.cumsum(dataset.mask.sum(axis=1))])
        self.pair_type = pair_type(dataset.tokens.size)
        self._shard = shard or max(1, len(dataset.tokens))
        self._latent = np.uint16 if n_latents <= 1 << 16 else np.uint32
        identity = content_hash(dataset.fingerprint, n_latents, str(self.pair_type), self._shard, made_with)
        # Named by what it holds pieces of, so that processes need not agree on who begins.
        self._partial = self.path.with_name(f"{self.path.name}.{identity}.partial")
        self._pieces = Pieces(self._partial, n_latents, self.pair_type)
        return self.turn_to(0)

    def turn_to(self, low: int) -> int:
        """Resume a shard.

        Args:
            low: Its first context.

        Returns:
            The context to begin at; the shard's end where all of it is there, or is another writer's to collect.
        """
        self._high = min(low + self._shard, len(self._dataset.tokens))
        self._buffer, self._buffered, self._tallied = [], 0, {}  # of a pass that was given up
        number, of = self._share
        mine = low // self._shard % of == number and (of == 1 or not self.path.exists())
        self._low = self._pending = self._pieces.reach(low, self._high) if mine else self._high
        return self._low

    def add(self, position: NDArray[np.int64], latent: NDArray[np.int64], value: NDArray[np.float32]) -> None:
        """Take nonzero activations, ascending in position over all calls.

        Args:
            position: `context * length + offset`.  [nonzero]
            latent: Latent.  [nonzero]
            value: Activation; a special token's must not be among them.  [nonzero]

        Raises:
            StoreError: If a value is not finite or an index is out of range.
        """
        if len(position) == 0:
            return
        if not np.isfinite(value).all():
            raise StoreError("the source returned a NaN or infinite activation; collect in float32")
        for index, size in ((latent, self._n_latents), (position, self._dataset.tokens.size)):
            if index.min() < 0 or index.max() >= size:
                raise StoreError(f"{self.path.name}: an activation lies outside the dictionary or the corpus")
        pairs = np.empty(len(position), dtype=self.pair_type)
        pairs["position"], pairs["value"] = position, value
        self._buffer.append((latent.astype(self._latent), pairs))
        self._buffered += len(position)

    def tally(self, **numbers: float | NDArray[np.float64]) -> None:
        """Add to sums over the corpus, such as of squares; they are kept with the contexts up to the next `advance`."""
        for name, value in numbers.items():
            self._tallied[name] = self._tallied[name] + value if name in self._tallied else value

    def advance(self, contexts: int) -> None:
        """Declare that all activations of the first `contexts` contexts (or of the shard) have been added."""
        self.progress(int(self._tokens_before[contexts]), int(self._tokens_before[-1]))
        self._pending = contexts
        if self._buffered >= self._budget or contexts == self._high:
            self._spill()

    def add_sorted(
        self,
        low: int,
        high: int,
        bounds: NDArray[np.int64],
        pairs: NDArray[np.void],
        totals: Mapping[str, float | NDArray[np.float64]],
    ) -> None:
        """Write all activations of some contexts, sorted already, instead of `add`, `tally` and `advance`.

        A thread may call it while another one turns to other shards.

        Args:
            low: First context: that which `turn_to` gave, or where the last ones of the shard ended.
            high: The context after the last one.
            bounds: Where each latent's activations begin, and the last one's end.  [n_latents + 1]
            pairs: Position and value, sorted by latent, then position.  [nonzero] `pair_type`
            totals: What was added up of them, as in `tally`.

        Raises:
            StoreError: If a position is out of range.
        """
        places = self._dataset.tokens.shape[1]
        position = pairs["position"]
        if len(pairs) and (position.min() < low * places or position.max() >= high * places):
            raise StoreError(f"{self.path.name}: an activation lies outside its contexts")
        self._pieces.add(low, high, bounds, pairs, totals)
        self.progress(int(self._tokens_before[high]), int(self._tokens_before[-1]))

    def note(self, **facts: Any) -> None:
        """Keep facts about the coder or corpus (JSON-able) with the store."""
        self._facts.update(facts)

    def restrict(self, latent: NDArray[np.int64], context: NDArray[np.int64]) -> None:
        """Declare that each latent is known only in some contexts; in others it counts as unknown, not as silent.

        Args:
            latent: Latent.  [pairs]
            context: A context in which all its activations are given.  [pairs]
        """
        pairs = np.unique(np.stack([latent, context]), axis=1)
        contexts = np.bincount(pairs[0], minlength=self._n_latents)
        self._known = np.concatenate([[0], np.cumsum(contexts)]), pairs[1]

    def only(self, latents: Sequence[int]) -> None:
        """Declare that only these latents' activations are added; all others count as unknown, not as silent."""
        self._only = sorted(set(latents))

    def adopt(self, store: ActivationStore) -> None:
        """Adopt a finished store with its facts, instead of `start`, `add` and `advance`."""
        self._adopted = store
        self.progress(store.n_tokens, store.n_tokens)

    def _spill(self) -> None:
        """Sort what is buffered by latent and write it as one piece; only then count its contexts as done."""
        if self._pending <= self._low:
            return
        latent = np.concatenate([np.empty(0, dtype=self._latent), *(latent for latent, _ in self._buffer)])
        pairs = np.concatenate([np.empty(0, dtype=self.pair_type), *(pairs for _, pairs in self._buffer)])
        self._buffer, self._buffered = [], 0
        self._pieces.add(self._low, self._pending, *by_latent(latent, pairs, self._n_latents), self._tallied)
        self._tallied, self._low = {}, self._pending

    @property
    def complete(self) -> bool:
        """Whether the pieces of all contexts are there, those of other writers' shards included."""
        if self._whole is None:
            pieces = self._pieces.all()
            self._whole = pieces if _contexts(pieces) == len(self._dataset.tokens) else None
        return self._whole is not None

    def totals(self) -> Totals | None:
        """Return what was tallied over the corpus; None as long as it is not complete."""
        return added_up(self._whole or ()) if self.complete else None

    def finish(self) -> ActivationStore:
        """Merge the pieces, write the manifest, and move the store to its place.

        Raises:
            StoreError: If contexts are missing.
        """
        if self._adopted is not None:
            return self._copy(self._adopted)
        self._spill()
        if not self.complete:
            done, all_ = _contexts(self._pieces.all()), len(self._dataset.tokens)
            raise StoreError(f"{self.path.name}: the source gave {done} of {all_} contexts")
        built = self._partial / "store"
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir()
        write_dataset(built, self._dataset)
        if self._known is not None:
            for name, known in zip(("known_indptr", "known"), self._known, strict=True):
                np.save(built / f"{name}.npy", known)
        chunks = [piece.chunk for piece in self._whole or ()]
        budget = self._merge_budget or merge_budget(free_memory())
        nonzeros = merge(chunks, self._n_latents, self.pair_type, built, budget)
        manifest = {
            "format": STORE_FORMAT, "n_latents": self._n_latents, "contexts": len(self._dataset.tokens),
            "length": int(self._dataset.tokens.shape[1]), "lead": self._dataset.lead,
            "n_tokens": self._dataset.n_tokens, "nonzeros": nonzeros, "latents": self._only, "facts": self._facts,
            "files": {f.name: {"bytes": f.stat().st_size, "blake2b": checksum(f)} for f in sorted(built.iterdir())},
        }  # fmt: skip
        write_atomic(built / "manifest.json", json.dumps(manifest, indent=1))
        shutil.rmtree(self.path, ignore_errors=True)
        built.rename(self.path)
        for left in self.path.parent.glob(f"{self.path.name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        return ActivationStore.open(self.path)

    def _copy(self, store: ActivationStore) -> ActivationStore:
        """Make links to the store's files, or copies where there can be none."""
        partial = self.path.with_name(f"{self.path.name}.copied.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in (*store.manifest["files"], "manifest.json"):
            try:
                os.link(store.path / name, partial / name)
            except OSError:
                shutil.copyfile(store.path / name, partial / name)
        shutil.rmtree(self.path, ignore_errors=True)
        partial.rename(self.path)
        return ActivationStore.open(self.path)


def _contexts(pieces: Sequence[Piece]) -> int:
    return sum(piece.high - piece.low for piece in pieces)
