"""Writing a store from a stream of activations, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.errors import StoreError
from saeval.files import write_atomic
from saeval.store.chunks import Chunk, merge, pair_type
from saeval.store.files import FORMAT, checksum
from saeval.store.reader import ActivationStore
from saeval.tokens import TokenDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ActivationWriter:
    """Takes a stream of activations and makes a store of it in bounded memory.

    Activations are buffered, sorted by latent, and spilled as chunks; `finish` merges the chunks latent range by
    latent range. A writer opened on a directory that an interrupted one left behind goes on after its last chunk.

    Args:
        path: Directory of the store to make.
        budget: Nonzeros to hold in memory (about 40 bytes each while sorting).
        progress: Called with (text tokens done, text tokens in all) as contexts are finished.
    """

    def __init__(self, path: Path, *, budget: int = 8_000_000, progress: Callable[[int, int], None] | None = None):
        self.path = path
        self.progress = progress or (lambda done, total: None)
        self._budget = budget
        self._partial = path.with_name(path.name + ".partial")
        self._buffer: list[tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.void]]] = []  # latents, pairs
        self._buffered = 0
        self._known: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._only: list[int] | None = None
        self._adopted: ActivationStore | None = None
        self._state: dict[str, Any] = {"contexts": 0, "chunks": 0, "facts": {}}

    def start(self, dataset: TokenDataset, n_latents: int) -> int:
        """Begin, or go on with what an interrupted writer left.

        Args:
            dataset: The tokens that activations will be given for.
            n_latents: Width of the dictionary.

        Returns:
            The context to begin at; 0 unless resuming.
        """
        self._dataset, self._n_latents = dataset, n_latents
        self._tokens_before = np.concatenate([[0], np.cumsum(dataset.mask.sum(axis=1))])
        self._pair = pair_type(dataset.tokens.size)
        identity = {"tokens": dataset.fingerprint, "n_latents": n_latents, "chunks": str(self._pair)}
        state_file = self._partial / "state.json"
        try:
            state = json.loads(state_file.read_text())
        except (OSError, ValueError):
            state = {}
        if state.get("identity") == identity:
            self._state = state
        else:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
            self._state = {"identity": identity, "contexts": 0, "chunks": 0, "facts": {}}
        return int(self._state["contexts"])

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
            raise StoreError(f"{self.path.name}: an activation is NaN or infinite; collect in float32")
        for index, size in ((latent, self._n_latents), (position, self._dataset.tokens.size)):
            if index.min() < 0 or index.max() >= size:
                raise StoreError(f"{self.path.name}: an activation lies outside the dictionary or the corpus")
        pairs = np.empty(len(position), dtype=self._pair)
        pairs["position"], pairs["value"] = position, value
        self._buffer.append((latent.astype(np.uint16 if self._n_latents <= 1 << 16 else np.uint32), pairs))
        self._buffered += len(position)

    def advance(self, contexts: int) -> None:
        """Say that all activations of the first `contexts` contexts have been added."""
        self.progress(int(self._tokens_before[contexts]), int(self._tokens_before[-1]))
        self._pending = contexts
        if self._buffered >= self._budget:
            self._spill()

    def note(self, **facts: Any) -> None:
        """Keep facts about the coder or corpus (JSON-able) with the store."""
        self._state["facts"].update(facts)

    def restrict(self, latent: NDArray[np.int64], context: NDArray[np.int64]) -> None:
        """Say that each latent was looked at in some contexts only; in all others it counts as unknown, not as silent.

        Args:
            latent: Latent.  [pairs]
            context: A context in which all its activations are given.  [pairs]
        """
        pairs = np.unique(np.stack([latent, context]), axis=1)
        contexts = np.bincount(pairs[0], minlength=self._n_latents)
        self._known = np.concatenate([[0], np.cumsum(contexts)]), pairs[1]

    def only(self, latents: Sequence[int]) -> None:
        """Say that the activations of these latents alone are given; all others count as unknown, not as silent."""
        self._only = sorted(set(latents))

    def adopt(self, store: ActivationStore) -> None:
        """Take a finished store as it is, its facts included, instead of `start`, `add` and `advance`."""
        self._adopted = store
        self.progress(store.n_tokens, store.n_tokens)

    def _spill(self) -> None:
        """Sort what is buffered by latent and write it as one chunk; only then count its contexts as done."""
        if self._buffered:
            latent, pairs = (np.concatenate(column) for column in zip(*self._buffer, strict=True))
            self._buffer, self._buffered = [], 0
            self._chunk(self._state["chunks"]).write(latent, pairs)
            self._state["chunks"] += 1
        self._state["contexts"] = self._pending
        write_atomic(self._partial / "state.json", json.dumps(self._state))

    def _chunk(self, number: int) -> Chunk:
        return Chunk(self._partial / f"chunk{number:05d}", self._n_latents, self._pair)

    def finish(self) -> ActivationStore:
        """Merge the chunks, write the manifest, and move the store to its place.

        Raises:
            StoreError: If contexts are missing.
        """
        if self._adopted is not None:
            return self._copy(self._adopted)
        if self._buffered or self._state["contexts"] < len(self._dataset.tokens):
            self._spill()
        if self._state["contexts"] != len(self._dataset.tokens):
            done, all_ = self._state["contexts"], len(self._dataset.tokens)
            raise StoreError(f"{self.path.name}: the source gave {done} of {all_} contexts")
        built = self._partial / "store"
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir()
        self._write_tokens(built)
        chunks = [self._chunk(number) for number in range(self._state["chunks"])]
        nonzeros = merge(chunks, self._n_latents, self._pair, built, self._budget)
        manifest = {
            "format": FORMAT, "n_latents": self._n_latents, "contexts": len(self._dataset.tokens),
            "length": int(self._dataset.tokens.shape[1]), "lead": self._dataset.lead,
            "n_tokens": self._dataset.n_tokens, "nonzeros": nonzeros, "latents": self._only, "facts": self._state["facts"],
            "files": {f.name: {"bytes": f.stat().st_size, "blake2b": checksum(f)} for f in sorted(built.iterdir())},
        }  # fmt: skip
        write_atomic(built / "manifest.json", json.dumps(manifest, indent=1))
        shutil.rmtree(self.path, ignore_errors=True)
        built.rename(self.path)
        shutil.rmtree(self._partial)
        return ActivationStore.open(self.path)

    def _copy(self, store: ActivationStore) -> ActivationStore:
        """Make links to the store's files, or copies where there can be none."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        for name in (*store.manifest["files"], "manifest.json"):
            try:
                os.link(store.path / name, self._partial / name)
            except OSError:
                shutil.copyfile(store.path / name, self._partial / name)
        shutil.rmtree(self.path, ignore_errors=True)
        self._partial.rename(self.path)
        return ActivationStore.open(self.path)

    def _write_tokens(self, folder: Path) -> None:
        data = self._dataset
        for name, array in (
            ("tokens", data.tokens), ("lengths", data.lengths), ("mask", data.mask), ("documents", data.documents),
        ):  # fmt: skip
            np.save(folder / f"{name}.npy", array)
        ids = sorted(data.vocabulary)
        pieces = [data.vocabulary[i] for i in ids]
        np.save(folder / "vocabulary_ids.npy", np.array(ids, dtype=np.int32))
        np.save(folder / "vocabulary_ends.npy", np.cumsum([len(p) for p in pieces], dtype=np.int64))
        np.save(folder / "vocabulary_bytes.npy", np.frombuffer(b"".join(pieces), dtype=np.uint8))
        (folder / "documents.json").write_text(json.dumps(data.document_names, ensure_ascii=False), encoding="utf-8")
        if self._known is not None:
            for name, known in zip(("known_indptr", "known"), self._known, strict=True):
                np.save(folder / f"{name}.npy", known)
