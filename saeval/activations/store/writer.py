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
from saeval.activations.store.pieces import Piece, Pieces, Totals, sum_totals
from saeval.activations.store.reader import ActivationStore
from saeval.activations.tokens import TokenDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray


_SPILL = 8_000_000
_MERGE = 2_000_000, 32_000_000  # at least, at most


def merge_budget(free: int | None) -> int:
    """Return how many nonzeros to hold in memory while merging; they take at most a quarter of the free memory.

    Args:
        free: Free memory in bytes; None if unknown.
    """
    return _SPILL if free is None else min(max(free // 4 // 40, _MERGE[0]), _MERGE[1])


class ActivationWriter:
    """Writes a stream of activations to a store in bounded memory.

    Activations are buffered, sorted by latent, and written as pieces of the corpus; `finish` merges the pieces, one
    range of latents at a time. A writer resumes after the pieces that an interrupted writer left.

    A source that can start at any context divides the corpus into shards (`start` with `shard`, then `turn_to` for
    each), so that several processes can share the work: each has a writer with the same path, and the one that finds
    all pieces complete calls `finish`.

    Args:
        path: Directory of the store to create.
        budget: Nonzeros to hold in memory (about 40 bytes each while sorting); None for 8 million while collecting,
            since the model needs memory, too, and a number that fits the free memory while merging.
        progress: Called with (text tokens done, total text tokens) when contexts are finished.
        share: This writer's share of the shards, as (number, count): every `count`-th shard.
        source: Name of the source that writes, for messages about what it wrote.

    Attributes:
        pair_type: The dtype of a pair of position and value; set by `start`.
    """

    pair_type: np.dtype[np.void]

    def __init__(
        self,
        path: Path,
        *,
        budget: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        share: tuple[int, int] = (0, 1),
        source: str = "",
    ):
        self.path = path
        self._source = f"the source {source}" if source else "the source"
        self.progress = progress or (lambda done, total: None)
        self._budget = budget or _SPILL
        self._merge_budget = budget
        self._share = share
        self._buffer: list[tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.void]]] = []  # latents, pairs
        self._buffered = 0
        self._started = False
        self._tallied: dict[str, Any] = {}
        self._known: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._only: list[int] | None = None
        self._adopted: ActivationStore | None = None
        self._facts: dict[str, Any] = {}
        self._whole: list[Piece] | None = None

    @property
    def stream(self) -> Path:
        """Folder for saved rows of a streamed corpus; deleted when the store is finished."""
        return self.path.with_name(f"{self.path.name}.stream.partial")

    def tokens(self, make: Callable[[], TokenDataset]) -> TokenDataset:
        """Return the tokens for `start`; if several processes share the work, one of them makes the tokens for all.

        Args:
            make: Tokenises the corpus.
        """
        if self._share[1] == 1:
            return make()
        return shared_dataset(self.path.with_name(f"{self.path.name}.tokens.partial"), make)

    def start(self, dataset: TokenDataset, n_latents: int, shard: int | None = None, made_with: str = "") -> int:
        """Start a store, or resume an interrupted one.

        Args:
            dataset: The tokens that the activations belong to.
            n_latents: Width of the dictionary.
            shard: Contexts per shard, if the source can start at any shard (`turn_to`); None for one shard.
            made_with: What values depend on besides the store's name, such as precision and device; pieces with
                another `made_with` are not resumed.

        Returns:
            The context to start at; 0 unless resuming.

        Raises:
            StoreError: If the parts of the dataset do not fit together.
        """
        dataset.check()
        self._started = True
        self._dataset, self._n_latents = dataset, n_latents
        self._tokens_before = np.concatenate([[0], np.cumsum(dataset.mask.sum(axis=1))])
        self.pair_type = pair_type(dataset.tokens.size)
        self._shard = shard or max(1, len(dataset.tokens))
        self._latent = np.uint16 if n_latents <= 1 << 16 else np.uint32
        identity = content_hash(dataset.fingerprint, n_latents, str(self.pair_type), self._shard, made_with)
        # Named by the content of its pieces, so that all processes find it without coordination.
        self._partial = self.path.with_name(f"{self.path.name}.{identity}.partial")
        self._pieces = Pieces(self._partial, n_latents, self.pair_type)
        return self.turn_to(0)

    def turn_to(self, low: int) -> int:
        """Resume a shard.

        Args:
            low: Its first context.

        Returns:
            The context to start at; the shard's end if it is complete, or assigned to another writer.
        """
        self._high = min(low + self._shard, len(self._dataset.tokens))
        self._buffer, self._buffered, self._tallied = [], 0, {}  # drop activations of a cancelled pass
        number, of = self._share
        mine = low // self._shard % of == number and (of == 1 or not self.path.exists())
        self._low = self._pending = self._pieces.reach(low, self._high) if mine else self._high
        self._begin = self._low * self._dataset.tokens.shape[1]
        return self._low

    def add(self, position: NDArray[np.int64], latent: NDArray[np.int64], value: NDArray[np.float32]) -> None:
        """Add activations of contexts that `advance` has not declared complete.

        A token's activations, and those of several contexts, may be divided among any number of calls. Positions ascend
        within a call and from one call to the next; the latents that fire at one position come in any order, each once.

        Args:
            position: `context * length + offset`, where length is the width of the dataset's `tokens` and offset the
                token's place in its context.  [nonzero] int64, ascending
            latent: Latent, from 0.  [nonzero] int64
            value: Activation, finite and above 0, since a latent fires wherever it has one: drop zeros and negative
                values, and all values on special tokens.  [nonzero] float32

        Raises:
            StoreError: If the source has not called `start`; if lengths differ, a value is not finite or not above 0,
                or an index is out of range; or if a context is already complete.
        """
        if not self._started:
            raise StoreError(f"{self._source} called `writer.add` before `writer.start`; call `start` first")
        if not len(position) == len(latent) == len(value):
            sizes = f"{len(position)} positions, {len(latent)} latents and {len(value)} values"
            raise StoreError(f"{self._source} gave {sizes} in one `writer.add`; give as many of each")
        if len(position) == 0:
            return
        self._check_values(value)
        for name, index, size in (
            ("latent", latent, self._n_latents),
            ("position", position, self._dataset.tokens.size),
        ):
            if index.min() < 0 or index.max() >= size:
                allowed = f"0 to {size - 1}" if size else "none"
                raise StoreError(
                    f"an activation lies outside the dictionary or the corpus: {self._source} gave the {name} "
                    f"{int(index.min() if index.min() < 0 else index.max())}, but `writer.start` allows {allowed}"
                )
        if position.min() < self._begin:
            raise StoreError(
                f"{self._source} gave activations at {self._place(int(position.min()))}, which was complete; "
                "add contexts in order, from the one that `writer.start` returns (after an interruption, not 0)"
            )
        pairs = np.empty(len(position), dtype=self.pair_type)
        pairs["position"], pairs["value"] = position, value
        self._buffer.append((latent.astype(self._latent), pairs))
        self._buffered += len(position)

    def _check_values(self, value: NDArray[np.float32]) -> None:
        low, high = value.min(), value.max()  # NaN if any is
        if not (-np.inf < low and high < np.inf):
            raise StoreError(f"{self._source} returned a NaN or infinite activation; collect in float32")
        if low <= 0:
            raise StoreError(
                f"{self._source} gave the activation {low:g}; a latent fires only above 0, so give `writer.add` only "
                "activations above 0 (`keep = value > 0`)"
            )

    def _place(self, position: int) -> str:
        context, offset = divmod(position, self._dataset.tokens.shape[1])
        return f"position {position} (context {context}, token {offset})"

    def tally(self, **numbers: float | NDArray[np.float64]) -> None:
        """Add to named sums over the corpus, such as of squares; `advance` saves them with its contexts."""
        for name, value in numbers.items():
            self._tallied[name] = self._tallied[name] + value if name in self._tallied else value

    def advance(self, contexts: int) -> None:
        """Declare that all activations of the first `contexts` contexts (or of the shard) have been added."""
        if not self._started:
            raise StoreError(f"{self._source} called `writer.advance` before `writer.start`; call `start` first")
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
        """Write all activations of some contexts, already sorted, instead of `add`, `tally` and `advance`.

        A thread may call this while another one turns to other shards.

        Args:
            low: First context: the one that `turn_to` returned, or the end of the shard's previous contexts.
            high: The context after the last one.
            bounds: Start of each latent's activations, and the end of the last one's.  [n_latents + 1]
            pairs: Position and value, sorted by latent, then position.  [nonzero] `pair_type`
            totals: Named sums over these contexts, as in `tally`.

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
        """Store facts about the coder or corpus (JSON-serialisable) with the store."""
        self._facts.update(facts)

    def restrict(self, latent: NDArray[np.int64], context: NDArray[np.int64]) -> None:
        """Declare that a latent's activations are known in some contexts only; others count as unknown, not as 0.

        Args:
            latent: Latent.  [pairs]
            context: A context for which all its activations are added.  [pairs]
        """
        pairs = np.unique(np.stack([latent, context]), axis=1)
        contexts = np.bincount(pairs[0], minlength=self._n_latents)
        self._known = np.concatenate([[0], np.cumsum(contexts)]), pairs[1]

    def only(self, latents: Sequence[int]) -> None:
        """Declare that only these latents' activations are added; those of others count as unknown, not as 0."""
        self._only = sorted(set(latents))

    def adopt(self, store: ActivationStore) -> None:
        """Use a finished store with its facts, instead of `start`, `add` and `advance`."""
        self._adopted = store
        self.progress(store.n_tokens, store.n_tokens)

    def _spill(self) -> None:
        """Sort the buffered activations by latent, write them as one piece, and then count its contexts as done."""
        if self._pending <= self._low:
            return
        latent = np.concatenate([np.empty(0, dtype=self._latent), *(latent for latent, _ in self._buffer)])
        pairs = np.concatenate([np.empty(0, dtype=self.pair_type), *(pairs for _, pairs in self._buffer)])
        self._buffer, self._buffered = [], 0
        bounds, pairs = by_latent(latent, pairs, self._n_latents)
        self._check_order(bounds, pairs["position"])
        self._pieces.add(self._low, self._pending, bounds, pairs, self._tallied)
        self._tallied, self._low = {}, self._pending
        complete = self._low * self._dataset.tokens.shape[1]
        self._begin = max(complete, int(pairs["position"].max(initial=0)) + 1)

    def _check_order(self, bounds: NDArray[np.int64], position: NDArray[np.unsignedinteger[Any]]) -> None:
        """Check that each latent's positions ascend; checked once they are sorted by latent, where it is cheap.

        Raises:
            StoreError: If they do not, or occur twice.
        """
        falls = np.flatnonzero(position[1:] <= position[:-1])  # few: from one latent to the next
        latent = np.searchsorted(bounds, falls, side="right") - 1
        wrong = np.flatnonzero(falls + 1 < bounds[latent + 1])
        if len(wrong):
            at, found = int(falls[wrong[0]]), int(latent[wrong[0]])
            before, after = self._place(int(position[at])), self._place(int(position[at + 1]))
            what = f"twice at {after}" if before == after else f"at {before} before {after}"
            raise StoreError(
                f"{self._source} gave latent {found} {what}; give `writer.add` each activation once, with ascending "
                "positions"
            )

    @property
    def complete(self) -> bool:
        """Whether the pieces of all contexts are finished, including those of other writers' shards."""
        if self._whole is None:
            pieces = self._pieces.all()
            self._whole = pieces if _contexts(pieces) == len(self._dataset.tokens) else None
        return self._whole is not None

    def totals(self) -> Totals | None:
        """Return the tallied sums over the corpus; None as long as it is not complete."""
        return sum_totals(self._whole or ()) if self.complete else None

    def finish(self) -> ActivationStore:
        """Merge the pieces, write the manifest, and move the store to `path`.

        Raises:
            StoreError: If contexts are missing, or the source never called `start`.
        """
        if self._adopted is not None:
            return self._copy(self._adopted)
        if not self._started:
            raise StoreError(f"{self._source} wrote nothing; its `collect` must call `writer.start`")
        self._spill()
        if not self.complete:
            done, all_ = _contexts(self._pieces.all()), len(self._dataset.tokens)
            raise StoreError(
                f"{self._source} gave {done} of {all_} contexts; its `collect` must call "
                "`writer.advance` until all are done"
            )
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
        """Hard-link the store's files, or copy them if links are not possible."""
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
