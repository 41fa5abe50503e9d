"""The activation store: tokens once, and sparse activations grouped by latent, memory-mapped from disk.

A store is a directory. `indptr.npy`, `position.npy` and `value.npy` hold the nonzero activations in CSC order by
latent: those of latent i are `position[indptr[i]:indptr[i+1]]`, ascending, where a position is
`context * length + offset`. The tokens stand there once, and so do the bytes of each token that occurs, so that
neither model nor tokenizer is needed afterwards. Where a latent is known in part of the contexts only,
`known.npy` and `known_indptr.npy` list them in the same order. `manifest.json`, written last, lists every file with
its size and checksum; a directory without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from saeval.errors import StoreError
from saeval.files import write_atomic
from saeval.records import Example, LatentId
from saeval.tokens import TokenDataset, token_strings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from saeval.coders import SparseCoder

FORMAT = "saeval.store/1"
_F16_MAX, _F16_MIN = 65504.0, 6.2e-5  # beyond either, float16 would overflow or lose digits


class Windows(NamedTuple):
    """Activating windows of one latent.

    Attributes:
        ids: Numbers of the windows, ascending.  [windows] int64
        maxima: Strongest activation in each.  [windows] float32
    """

    ids: NDArray[np.int64]
    maxima: NDArray[np.float32]

    def where(self, keep: NDArray[np.bool_]) -> Windows:
        """Return the windows for which `keep` is true."""
        return Windows(self.ids[keep], self.maxima[keep])


class ActivationWriter:
    """Takes a stream of activations and makes a store of it in bounded memory.

    Activations are buffered, sorted by latent, and spilled as chunks; `finish` merges the chunks latent range by
    latent range. A writer opened on a directory that an interrupted one left behind goes on after its last chunk.

    Args:
        path: Directory of the store to make.
        budget: Nonzeros to hold in memory (about 30 bytes each while sorting).
        progress: Called with (text tokens done, text tokens in all) as contexts are finished.
    """

    def __init__(self, path: Path, *, budget: int = 8_000_000, progress: Callable[[int, int], None] | None = None):
        self.path = path
        self.progress = progress or (lambda done, total: None)
        self._budget = budget
        self._partial = path.with_name(path.name + ".partial")
        self._buffer: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        self._buffered = 0
        self._known: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
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
        identity = {"tokens": dataset.fingerprint, "n_latents": n_latents}
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
        if latent.min() < 0 or latent.max() >= self._n_latents or position.max() >= self._dataset.tokens.size:
            raise StoreError(f"{self.path.name}: an activation lies outside the dictionary or the corpus")
        self._buffer.append((position, latent, np.asarray(value, dtype=np.float32)))
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
        self._known = _indptr(pairs[0], self._n_latents), pairs[1]

    def adopt(self, store: ActivationStore) -> None:
        """Take a finished store as it is, its facts included, instead of `start`, `add` and `advance`."""
        self._adopted = store
        self.progress(store.n_tokens, store.n_tokens)

    def _spill(self) -> None:
        """Sort what is buffered by latent and write it as one chunk; only then count its contexts as done."""
        if self._buffered:
            position, latent, value = (np.concatenate(column) for column in zip(*self._buffer, strict=True))
            order = _order_by(latent, self._n_latents)
            folder = self._partial / f"chunk{self._state['chunks']:05d}"
            folder.mkdir(exist_ok=True)
            np.save(folder / "indptr.npy", _indptr(latent, self._n_latents))
            np.save(folder / "position.npy", position[order])
            np.save(folder / "value.npy", value[order])
            self._state["chunks"] += 1
            self._buffer, self._buffered = [], 0
        self._state["contexts"] = self._pending
        write_atomic(self._partial / "state.json", json.dumps(self._state))

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
        nonzeros = self._merge(built)
        manifest = {
            "format": FORMAT, "n_latents": self._n_latents, "contexts": len(self._dataset.tokens),
            "length": int(self._dataset.tokens.shape[1]), "lead": self._dataset.lead,
            "n_tokens": self._dataset.n_tokens, "nonzeros": nonzeros, "facts": self._state["facts"],
            "files": {f.name: {"bytes": f.stat().st_size, "blake2b": _checksum(f)} for f in sorted(built.iterdir())},
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

    def _merge(self, folder: Path) -> int:
        """Write indptr, position and value, a range of latents at a time; return the number of nonzeros."""
        chunks = [
            tuple(np.load(f / f"{name}.npy", mmap_mode="r") for name in ("indptr", "position", "value"))
            for f in sorted(self._partial.glob("chunk*"))[: self._state["chunks"]]
        ]
        indptr = np.sum([c[0] for c in chunks], axis=0) if chunks else np.zeros(self._n_latents + 1, dtype=np.int64)
        total = int(indptr[-1])
        magnitudes = [(float(np.abs(c[2]).max()), float(np.abs(c[2]).min())) for c in chunks if len(c[2])]
        half = all(high <= _F16_MAX and low >= _F16_MIN for high, low in magnitudes)
        wide = self._dataset.tokens.size > 2**32
        np.save(folder / "indptr.npy", indptr)
        p_type, v_type = np.dtype(np.uint64 if wide else np.uint32), np.dtype(np.float16 if half else np.float32)
        # Not written through a memory map: on a full disk, that would kill the process without a word.
        with (folder / "position.npy").open("wb") as p_file, (folder / "value.npy").open("wb") as v_file:
            for file, kind in ((p_file, p_type), (v_file, v_type)):
                header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (total,)}
                np.lib.format.write_array_header_1_0(file, header)
            for low, high in _ranges(indptr, self._budget):
                begin, end = int(indptr[low]), int(indptr[high])
                position, value = np.empty(end - begin, dtype=p_type), np.empty(end - begin, dtype=v_type)
                cursor = indptr[low:high] - begin  # next free place of each latent
                for c_indptr, c_position, c_value in chunks:
                    bounds = np.asarray(c_indptr[low : high + 1])
                    counts = np.diff(bounds)
                    source = slice(int(bounds[0]), int(bounds[-1]))
                    target = np.repeat(cursor - (bounds[:-1] - bounds[0]), counts)
                    target = target + np.arange(source.stop - source.start)
                    position[target] = c_position[source]
                    value[target] = c_value[source]
                    cursor = cursor + counts
                p_file.write(position.data)
                v_file.write(value.data)
        return total


def _order_by(latent: NDArray[np.int64], n_latents: int) -> NDArray[np.int64]:
    """Return the stable order that sorts by latent; two radix passes of 16 bits beat one comparison sort."""
    order = np.argsort((latent & 0xFFFF).astype(np.uint16), kind="stable")
    if n_latents > 1 << 16:
        order = order[np.argsort((latent[order] >> 16).astype(np.uint16), kind="stable")]
    return order


def _indptr(latent: NDArray[np.int64], n_latents: int) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=n_latents))]).astype(np.int64)


def _ranges(indptr: NDArray[np.int64], budget: int) -> Iterator[tuple[int, int]]:
    """Cut the latents into ranges of at most `budget` nonzeros, but at least one latent."""
    low = 0
    while low < len(indptr) - 1:
        high = int(np.searchsorted(indptr, indptr[low] + budget, side="right")) - 1
        high = max(high, low + 1)
        yield low, high
        low = high


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class ActivationStore:
    """Reads a store. Reaching one latent costs a slice, whatever the number of latents and tokens.

    Attributes:
        path: The directory.
        n_latents: Width of the dictionary.
        n_tokens: Text tokens in the corpus.
        length: Tokens a context.
        lead: Tokens before the text in each context (BOS).
        facts: What the source noted.
        coder: Loads the coder whose activations these are, where whoever opened the store lends it.
    """

    coder: Callable[[], SparseCoder] | None = None

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self._latest: tuple[tuple[int, int], Windows] = (-1, 0), Windows(np.empty(0, np.int64), np.empty(0, np.float32))
        self.n_latents = int(manifest["n_latents"])
        self.n_tokens = int(manifest["n_tokens"])
        self.length = int(manifest["length"])
        self.lead = int(manifest["lead"])
        self.facts: dict[str, Any] = manifest["facts"]

        def load(name: str) -> Any:
            return np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)

        self.tokens: NDArray[np.int32] = load("tokens")
        self.lengths: NDArray[np.int32] = load("lengths")
        self.documents: NDArray[np.int32] = load("documents")
        self.indptr: NDArray[np.int64] = np.array(load("indptr"))
        self.position: NDArray[np.unsignedinteger[Any]] = load("position")
        self.value: NDArray[np.floating[Any]] = load("value")

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> ActivationStore:
        """Open a finished store.

        Args:
            path: Its directory.
            verify: Whether to read every file and compare its checksum.

        Raises:
            StoreError: If it is unfinished, of another format, truncated, or (with `verify`) corrupt.
        """
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except FileNotFoundError:
            raise StoreError(f"{path}: not a finished store (no manifest.json); collect it again") from None
        except ValueError:
            raise StoreError(f"{path}: manifest.json is damaged; delete the directory and collect again") from None
        if manifest.get("format") != FORMAT:
            raise StoreError(f"{path}: format {manifest.get('format')!r}; this saeval reads {FORMAT}")
        for name, facts in manifest["files"].items():
            if Path(name).name != name:
                raise StoreError(f"{path}: manifest.json names {name!r}, which is no file of the store")
            file = path / name
            size = file.stat().st_size if file.exists() else 0
            if size != facts["bytes"]:
                raise StoreError(
                    f"{file}: {size} bytes instead of {facts['bytes']}; delete the directory and collect again"
                )
            if verify and _checksum(file) != facts["blake2b"]:
                raise StoreError(f"{file}: checksum does not match; delete the directory and collect again")
        return cls(path, manifest)

    @cached_property
    def document_names(self) -> tuple[str, ...]:
        """Name of each document."""
        return tuple(json.loads((self.path / "documents.json").read_text(encoding="utf-8")))

    @cached_property
    def _vocabulary(self) -> dict[int, bytes]:
        ids, ends, blob = (
            np.load(self.path / f"vocabulary_{n}.npy", allow_pickle=False) for n in ("ids", "ends", "bytes")
        )
        data, starts = blob.tobytes(), np.concatenate([[0], ends[:-1]])
        return {int(i): data[a:b] for i, a, b in zip(ids, starts, ends, strict=True)}

    @property
    def firings(self) -> NDArray[np.int64]:
        """Number of tokens on which each latent fires.  [n_latents]"""
        return np.diff(self.indptr)

    def activations(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return where a latent fires and how strongly: positions, ascending, and values.  [firings] each"""
        part = slice(int(self.indptr[latent]), int(self.indptr[latent + 1]))
        return self.position[part].astype(np.int64), self.value[part].astype(np.float32)

    @cached_property
    def _known(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        if "known.npy" not in self.manifest["files"]:
            return None
        indptr, context = (np.load(self.path / f"{n}.npy", allow_pickle=False) for n in ("known_indptr", "known"))
        return indptr, context

    def knows(self, latent: int, contexts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for contexts whether all of a latent's activations there are known, so that their absence is silence.

        True everywhere, except in stores made from excerpts, such as Neuronpedia's.

        Args:
            latent: The latent.
            contexts: Contexts asked about.
        """
        if self._known is None:
            return np.ones(len(contexts), dtype=np.bool_)
        indptr, known = self._known
        return np.isin(contexts, known[indptr[latent] : indptr[latent + 1]])

    # Windows tile the text of a context, BOS left out; a context's short rest belongs to no window.

    def _tiles(self, window: int) -> int:
        """Windows a full context has; window number `context * tiles + tile`."""
        tiles = (self.length - self.lead) // window
        if tiles < 1:
            raise StoreError(f"windows of {window} tokens do not fit into contexts of {self.length - self.lead}")
        return tiles

    def windows(self, latent: int, window: int) -> Windows:
        """Return the windows in which a latent fires.

        Args:
            latent: The latent.
            window: Tokens a window.
        """
        if self._latest[0] != (latent, window):  # a sampler asks several times in a row
            self._latest = (latent, window), self._windows(latent, window)
        return self._latest[1]

    def _windows(self, latent: int, window: int) -> Windows:
        tiles = self._tiles(window)
        position, value = self._stored(latent)
        context = position // self.length
        tile = (position - context * self.length - self.lead) // window
        ids = context * tiles + tile
        if (self.length - self.lead) % window or not self._all_full:
            whole = self.lead + (tile.astype(np.int64) + 1) * window <= self.lengths[context]
            ids, value = ids[whole], value[whole]
        if not len(ids):
            return Windows(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        # Positions ascend, so windows do, too: a new one begins where the number changes.
        first = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
        maxima = np.maximum.reduceat(value.astype(np.float32), first)
        return Windows(ids[first].astype(np.int64), maxima)

    def _stored(self, latent: int) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.floating[Any]]]:
        """Positions and values of a latent, as they are stored.  [firings] each"""
        part = slice(int(self.indptr[latent]), int(self.indptr[latent + 1]))
        return np.asarray(self.position[part]), np.asarray(self.value[part])

    @cached_property
    def _all_full(self) -> bool:
        return bool((self.lengths == self.length).all())

    def document_of(self, ids: NDArray[np.int64], window: int) -> NDArray[np.int32]:
        """Return the document that each window was cut from.  [windows]"""
        return np.asarray(self.documents[ids // self._tiles(window)])

    def context_of(self, ids: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        """Return the context that each window was cut from.  [windows]"""
        return ids // self._tiles(window)

    def silent_windows(
        self,
        latent: int,
        window: int,
        n: int,
        rng: np.random.Generator,
        keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    ) -> NDArray[np.int64]:
        """Draw windows, all different, in which a latent is verified silent; see `knows`.

        Args:
            latent: The latent.
            window: Tokens a window.
            n: Windows wanted; fewer come when there are not enough.
            rng: Source of the draw.
            keep: Tells for window numbers which may be drawn.
        """
        active = self.windows(latent, window).ids

        def silent(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            at = np.searchsorted(active, ids)
            good = active[np.minimum(at, len(active) - 1)] != ids if len(active) else np.ones(len(ids), dtype=np.bool_)
            good &= self.knows(latent, self.context_of(ids, window))
            return good & keep(ids) if keep is not None else good

        return self.draw_windows(window, n, rng, silent)

    def draw_windows(
        self,
        window: int,
        n: int,
        rng: np.random.Generator,
        keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    ) -> NDArray[np.int64]:
        """Draw windows, all different, whatever fires in them.

        Args:
            window: Tokens a window.
            n: Windows wanted; fewer come when there are not enough.
            rng: Source of the draw.
            keep: Tells for window numbers which may be drawn.
        """
        tiles = self._tiles(window)
        everywhere = len(self.lengths) * tiles

        def eligible(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            context, tile = np.divmod(ids, tiles)
            whole = np.asarray(self.lead + (tile + 1) * window <= self.lengths[context])
            return whole & keep(ids) if keep is not None else whole

        if everywhere <= 64 * n + 4096:  # few windows: draw from the complete list
            ids = np.arange(everywhere)
            return rng.permutation(ids[eligible(ids)])[:n]
        drawn = np.empty(0, dtype=np.int64)
        for _ in range(16):
            candidates = rng.integers(everywhere, size=4 * n)
            both = np.concatenate([drawn, candidates[eligible(candidates)]])
            _, first = np.unique(both, return_index=True)
            drawn = both[np.sort(first)]
            if len(drawn) >= n:
                break
        return drawn[:n]

    def examples(
        self,
        latent: LatentId,
        ids: Sequence[int] | NDArray[np.int64],
        window: int,
        deciles: Sequence[int | None] | None = None,
    ) -> tuple[Example, ...]:
        """Return windows as examples, in the order given, with the latent's activations in each.

        Args:
            latent: The latent.
            ids: Window numbers.
            window: Tokens a window.
            deciles: Rank decile of each window.
        """
        context, tile = np.divmod(np.asarray(ids, dtype=np.int64), self._tiles(window))
        return self.examples_at(latent, context * self.length + self.lead + tile * window, window, deciles)

    def examples_at(
        self,
        latent: LatentId,
        positions: Sequence[int] | NDArray[np.int64],
        window: int,
        deciles: Sequence[int | None] | None = None,
    ) -> tuple[Example, ...]:
        """Return windows that begin anywhere, in the order given, with the latent's activations in each.

        Args:
            latent: The latent.
            positions: Where each begins, numbered as in `activations`: `context * length + start`.
            window: Tokens a window.
            deciles: Rank decile of each window.

        Raises:
            ValueError: If a window reaches beyond the text of its context.
        """
        at = np.asarray(positions, dtype=np.int64)
        context, start = np.divmod(at, self.length)
        if (bad := (start < self.lead) | (start + window > self.lengths[context])).any():
            first = int(np.argmax(bad))
            raise ValueError(f"a window of {window} tokens at {context[first]}:{start[first]} reaches beyond the text")
        position, value = self._stored(latent.index)
        # Searched for in the type that positions are stored in; in another, all of them would be converted.
        low = np.searchsorted(position, at.astype(position.dtype))
        count = np.searchsorted(position, (at + window).astype(position.dtype)) - low
        row = np.repeat(np.arange(len(at)), count)
        source = np.arange(len(row)) + np.repeat(low - (np.cumsum(count) - count), count)
        activations = np.zeros((len(at), window), dtype=np.float32)
        activations[row, position[source] - at[row]] = value[source]
        token_ids = self.tokens[context[:, None], start[:, None] + np.arange(window)].tolist()
        rows = zip(
            token_ids, activations, self.documents[context].tolist(), context.tolist(), start.tolist(),
            (count > 0).tolist(), deciles if deciles is not None else [None] * len(at), strict=True,
        )  # fmt: skip
        return tuple(Example(_Tokens(self._vocabulary, ids), tuple(ids), *facts) for ids, *facts in rows)


class _Tokens(Sequence[str]):
    """The strings of a window's tokens, decoded when they are first looked at: most windows never are.

    Args:
        vocabulary: Bytes of each token.
        ids: The tokens.
    """

    __slots__ = ("_ids", "_strings", "_vocabulary")

    def __init__(self, vocabulary: dict[int, bytes], ids: Sequence[int]):
        self._vocabulary, self._ids = vocabulary, ids
        self._strings: tuple[str, ...] | None = None

    def _decoded(self) -> tuple[str, ...]:
        if self._strings is None:
            self._strings = token_strings(self._vocabulary[i] for i in self._ids)
        return self._strings

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...

    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        return self._decoded()[at]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __eq__(self, other: object) -> bool:
        return self._decoded() == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._decoded())

    def __repr__(self) -> str:
        return repr(self._decoded())
