"""Reads a store: firings of a latent, windows of text, and examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saeval._util import StoreError
from saeval.activations.store.files import checksum, damaged, read_array, read_manifest
from saeval.activations.store.vocabulary import Vocabulary
from saeval.records import Example, LatentId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from saeval.models import SparseCoder

_MOST_TOKENS = 1 << 24  # limit on the size of a vocabulary
_BLOCK = 1 << 18  # windows to check at a time

_Stored = tuple["NDArray[np.unsignedinteger[Any]]", "NDArray[np.floating[Any]]"]


class Windows(NamedTuple):
    """Activating windows of one latent.

    Attributes:
        ids: Numbers of the windows, ascending.  [windows] int64
        maxima: Maximum activation in each.  [windows] float32
    """

    ids: NDArray[np.int64]
    maxima: NDArray[np.float32]

    def where(self, keep: NDArray[np.bool_]) -> Windows:
        """Return the windows for which `keep` is true."""
        kept = np.flatnonzero(keep)
        return Windows(self.ids.take(kept), self.maxima.take(kept))


class _Fired(NamedTuple):
    """Firings of a latent in windows, as indices into the store's arrays.

    Attributes:
        low: Start of those in each window.  [windows]
        high: End of those in each window.  [windows]
        start: Start of all firings of the latent, or of each window's latent.
        stop: End of the same.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    start: np.int64 | NDArray[np.int64]
    stop: np.int64 | NDArray[np.int64]


def firings_between(
    position: NDArray[np.unsignedinteger[Any]], at: NDArray[np.int64], window: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the start and end indices of the firings in each window.

    Args:
        position: Positions of the firings, ascending.
        at: Position at which each window begins.
        window: Tokens per window.
    """
    # Search in the dtype of the stored positions, to avoid converting all of them. The last position of a window fits
    # into it; the position after may not.
    last = (at + window - 1).astype(position.dtype)
    return np.searchsorted(position, at.astype(position.dtype)), np.searchsorted(position, last, side="right")


class ActivationStore:
    """Reads a store. Reading one latent costs one slice, independent of the number of latents and tokens.

    Attributes:
        path: The directory.
        n_latents: Width of the dictionary.
        n_tokens: Number of text tokens in the corpus.
        length: Tokens per context.
        lead: Number of tokens before the text in each context (BOS).
        mask: Which tokens are text.  [contexts, length]
        latents: Latents whose activations are known; None for all.
        facts: Facts about coder and corpus that the source recorded.
        coder: Loads the coder of these activations, if the code that opened the store has set it.
    """

    coder: Callable[[], SparseCoder] | None = None

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        # The last results with their arguments, since samplers request the same several times in a row.
        self._last_stored: tuple[int, _Stored] | None = None
        self._last_windows: tuple[tuple[int, int], Windows] | None = None
        self._last_rows: tuple[int, NDArray[np.int32]] | None = None
        self.n_latents = int(manifest["n_latents"])
        self.n_tokens = int(manifest["n_tokens"])
        self.length = int(manifest["length"])
        self.lead = int(manifest["lead"])
        self.facts: dict[str, Any] = manifest["facts"]
        self.latents: frozenset[int] | None = (
            frozenset(listed) if (listed := manifest.get("latents")) is not None else None
        )

        contexts, nonzeros = manifest["contexts"], manifest["nonzeros"]
        self.tokens: NDArray[np.int32] = self._load("tokens", (contexts, self.length), "iu")
        self.lengths: NDArray[np.int32] = self._load("lengths", (contexts,), "iu")
        self.documents: NDArray[np.int32] = self._load("documents", (contexts,), "iu")
        self.mask: NDArray[np.bool_] = self._load("mask", (contexts, self.length), "b")
        self.indptr: NDArray[np.int64] = np.array(self._load("indptr", (self.n_latents + 1,), "iu"))
        self.position: NDArray[np.unsignedinteger[Any]] = self._load("position", (nonzeros,), "iu")
        self.value: NDArray[np.floating[Any]] = self._load("value", (nonzeros,), "f")
        if contexts and not (self.lengths.min() >= 0 and self.lengths.max() <= self.length):
            raise damaged(path / "lengths.npy", "some contexts exceed the maximum length")
        if self.indptr[0] != 0 or self.indptr[-1] != nonzeros or (self.indptr[1:] < self.indptr[:-1]).any():
            raise damaged(path / "indptr.npy", "it does not match the activations")

    def _load(self, name: str, shape: tuple[int | None, ...], kinds: str) -> Any:
        return read_array(self.path / f"{name}.npy", shape, kinds)

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> ActivationStore:
        """Open a finished store.

        Args:
            path: Its directory.
            verify: Whether to read every file and compare its checksum.

        Raises:
            StoreError: If it is unfinished, of another format, truncated, or (with `verify`) corrupt.
        """
        manifest = read_manifest(path)
        for name, facts in manifest["files"].items():
            if Path(name).name != name:
                raise StoreError(f"{path}: manifest.json names {name!r}, which is not a file of the store")
            file = path / name
            size = file.stat().st_size if file.exists() else 0
            if size != facts["bytes"]:
                raise damaged(file, f"{size} bytes instead of {facts['bytes']}")
            if verify and checksum(file) != facts["blake2b"]:
                raise damaged(file, "checksum does not match")
        return cls(path, manifest)

    @cached_property
    def document_names(self) -> tuple[str, ...]:
        """Name of each document."""
        file = self.path / "documents.json"
        try:
            names = tuple(map(str, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise damaged(file, f"it cannot be read ({type(error).__name__})") from None
        if len(self.documents) and not 0 <= self.documents.min() <= self.documents.max() < len(names):
            raise damaged(file, "it does not name every document")
        return names

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        ids = self._load("vocabulary_ids", (None,), "iu")
        ends = self._load("vocabulary_ends", (len(ids),), "iu")
        data = self._load("vocabulary_bytes", (None,), "u")
        if len(ids) and not 0 <= ids.min() <= ids.max() < _MOST_TOKENS:
            raise damaged(self.path / "vocabulary_ids.npy", "some tokens' numbers are out of range")
        if len(ids) and not ((ends[:-1] <= ends[1:]).all() and ends[0] >= 0 and ends[-1] == len(data)):
            raise damaged(self.path / "vocabulary_ends.npy", "it does not match the bytes")
        return Vocabulary(ids, ends, data)

    @cached_property
    def firings(self) -> NDArray[np.int64]:
        """Number of tokens on which each latent fires.  [n_latents]"""
        return np.diff(self.indptr)

    def activations(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the positions where a latent fires, ascending, and the activations.  [firings] each"""
        position, value = self._stored(latent)
        return position.astype(np.int64), value.astype(np.float32)

    def fires_in(self, latent: int, begins: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
        """Return which windows contain a firing of the latent; its activations are not read.  [windows]

        Args:
            latent: The latent.
            begins: Position at which each window begins.
            window: Tokens per window.
        """
        low, high = firings_between(self._stored(latent)[0], begins, window)
        return np.asarray(low < high)

    @cached_property
    def _known(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        if "known.npy" not in self.manifest["files"]:
            return None
        return self._load("known_indptr", (self.n_latents + 1,), "iu"), self._load("known", (None,), "iu")

    @property
    def holds_whole_text(self) -> bool:
        """Whether activations are known in the whole corpus, not only in excerpts."""
        return self._known is None

    def knows(self, latent: int, contexts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether all of a latent's activations in each context are known, so that missing ones are 0.

        False only in stores made from excerpts, such as Neuronpedia's, or for a subset of latents.

        Args:
            latent: The latent.
            contexts: Contexts to check.
        """
        if self.latents is not None and latent not in self.latents:
            return np.zeros(len(contexts), dtype=np.bool_)
        if self._known is None:
            return np.ones(len(contexts), dtype=np.bool_)
        indptr, known = self._known
        return np.isin(contexts, known[indptr[latent] : indptr[latent + 1]])

    def counts(self, ids: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
        """Return whether activations were counted on all tokens of each window, so that missing ones are 0.

        False only if the corpus counts the turns of some roles only.

        Args:
            ids: Window numbers.
            window: Tokens per window.
        """
        return self.counts_at(self.begin_of(ids, window), window)

    def counts_at(self, positions: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
        """Return whether activations were counted on all tokens of windows with arbitrary starts; see `counts`.

        Args:
            positions: Start of each, numbered as in `activations`.
            window: Tokens per window.
        """
        if not self._of_roles:
            return np.ones(len(positions), dtype=np.bool_)
        begins, ends = self._turns_of(positions)
        return np.asarray((begins <= positions) & (positions + window <= ends))

    @cached_property
    def turns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Begin and end of each stretch of counted text, with roles their turns; contexts cut them.  [turns] each"""
        padded = np.pad(self.mask, ((0, 0), (1, 1)))
        context, offset = np.nonzero(padded[:, 1:] != padded[:, :-1])  # ascending: begins and ends in turn
        edges = context * self.length + offset
        return edges[::2], edges[1::2]

    def _turns_of(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return begin and end of the turn that holds each position; those of another turn if none does."""
        begins, ends = self.turns
        turn = np.searchsorted(begins, positions, side="right") - 1
        return begins[turn], ends[turn]

    @cached_property
    def text_at(self) -> NDArray[np.int64]:
        """Number of contexts with text at each position; with roles, with text of their turns.  [length]"""
        if self._of_roles:
            return np.asarray(self.mask.sum(axis=0))
        ended = np.cumsum(np.bincount(self.lengths, minlength=self.length + 1))
        text = len(self.lengths) - ended[: self.length]  # number of contexts that are longer than each position
        text[: self.lead] = 0
        return np.asarray(text)

    @property
    def _of_roles(self) -> bool:
        return bool(self.facts.get("roles"))

    # Windows tile the text of a context after BOS; the remainder at its end belongs to no window. If the corpus counts
    # the turns of some roles only, windows with other text are excluded everywhere, whether or not a latent fires.

    def _tiles(self, window: int) -> int:
        """Return the number of windows in a full context; a window's number is `context * tiles + tile`."""
        tiles = (self.length - self.lead) // window
        if tiles < 1:
            raise StoreError(f"windows of {window} tokens do not fit into contexts of {self.length - self.lead}")
        return tiles

    def window_count(self, window: int) -> int:
        """Return the number of whole windows in the corpus; with roles, of those in their turns, as in `windows`.

        Args:
            window: Tokens per window.
        """
        if self._of_roles:
            begins, ends = self.turns
            offset = begins % self.length - self.lead
            first, after = (-(-offset // window)).clip(0), (offset + ends - begins) // window
            return int((after - first).clip(0).sum())
        return int(((self.lengths - self.lead).clip(0) // window).sum())

    def windows(self, latent: int, window: int) -> Windows:
        """Return the windows in which a latent fires; with roles, those that lie wholly in their turns (`counts`).

        Args:
            latent: The latent.
            window: Tokens per window.
        """
        last = self._last_windows
        if last is None or last[0] != (latent, window):
            last = self._last_windows = (latent, window), self._windows(latent, window)
        return last[1]

    def _windows(self, latent: int, window: int) -> Windows:
        position, value = self._stored(latent)
        ids, whole = self.window_of(position, window)
        if whole is not None:
            ids, value = ids[whole], value[whole]
        if not len(ids):
            return Windows(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        # Positions ascend, so windows do, too: a new one begins where the number changes. Start from the first firing
        # of each window and merge the later ones into it; `reduceat` would have a cost per window.
        new = np.ones(len(ids), dtype=np.bool_)
        np.not_equal(ids[1:], ids[:-1], out=new[1:])
        first, later = np.flatnonzero(new), np.flatnonzero(~new)
        value = value.astype(np.float32)
        maxima = value.take(first)
        np.maximum.at(maxima, later - np.arange(1, len(later) + 1), value.take(later))
        return Windows(ids.take(first).astype(np.int64), maxima)

    def window_of(
        self, position: NDArray[np.integer[Any]], window: int
    ) -> tuple[NDArray[np.integer[Any]], NDArray[np.bool_] | None]:
        """Return the number of the window that holds each position, and which of these windows are whole and count.

        Args:
            position: Positions in the text.
            window: Tokens per window.

        Returns:
            Numbers in the type of the positions, and flags; None if all windows are whole and count.
        """
        tiles = self._tiles(window)
        context = position // self.length
        if self._all_full and tiles * window + self.lead == self.length:
            ids = (position - (context + 1) * self.lead) // window
            return ids, (self.counts(ids, window) if self._of_roles else None)
        tile = (position - context * self.length - self.lead) // window
        ids = context * tiles + tile
        whole = np.asarray(self.lead + (tile.astype(np.int64) + 1) * window <= self.lengths[context])
        return ids, (whole & self.counts(ids, window) if self._of_roles else whole)

    def _stored(self, latent: int) -> _Stored:
        """Return positions and values of a latent in their stored dtypes.  [firings] each"""
        last = self._last_stored
        if last is not None and last[0] == latent:
            return last[1]
        part = slice(int(self.indptr[latent]), int(self.indptr[latent + 1]))
        position, value = self.position[part], self.value[part]
        if len(position) and (position[-1] >= self.tokens.size or (position[1:] <= position[:-1]).any()):
            raise damaged(self.path / "position.npy", f"the activations of latent {latent} are out of order")
        self._last_stored = latent, (position, value)
        return position, value

    def _rows(self, window: int) -> NDArray[np.int32]:
        """Return a sliding-window view of the tokens, one row per start position.  [tokens - window + 1, window]"""
        last = self._last_rows
        if last is None or last[0] != window:
            rows = np.lib.stride_tricks.sliding_window_view(self.tokens.reshape(-1), window)
            last = self._last_rows = window, rows
        return last[1]

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
        """Draw distinct windows in which a latent verifiably does not fire; see `knows`.

        Args:
            latent: The latent.
            window: Tokens per window.
            n: Number of windows; fewer are returned if there are not enough.
            rng: Random generator.
            keep: Returns for an array of window numbers which may be drawn.
        """
        active = self.windows(latent, window).ids

        def silent(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            good = active.take(np.searchsorted(active, ids), mode="clip") != ids if len(active) else ids >= 0
            return good & keep(ids) if keep is not None else good

        return self.draw_windows(window, n, rng, silent, latent)

    def draw_windows(
        self,
        window: int,
        n: int,
        rng: np.random.Generator,
        keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
        latent: int | None = None,
    ) -> NDArray[np.int64]:
        """Draw distinct windows, whether or not a latent fires in them; with roles, only from their turns (`counts`).

        Args:
            window: Tokens per window.
            n: Number of windows; fewer are returned if there are not enough.
            rng: Random generator.
            keep: Returns for an array of window numbers which may be drawn.
            latent: Draw only windows in which this latent's activations are known; None for any window.
        """
        tiles = self._tiles(window)
        everywhere = len(self.lengths) * tiles
        if n == 0:
            return np.empty(0, dtype=np.int64)

        def eligible(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            good = ids >= 0
            if not self._all_full:
                context, tile = np.divmod(ids, tiles)
                good = np.asarray(self.lead + (tile + 1) * window <= self.lengths[context])
            if latent is not None and (self._known is not None or self.latents is not None):
                good &= self.knows(latent, self.context_of(ids, window))
            if self._of_roles:
                good &= self.counts(ids, window)
            return good & keep(ids) if keep is not None else good

        drawn = np.empty(0, dtype=np.int64)
        few = everywhere <= 64 * n + 4096
        for _ in range(0 if few else 32):
            candidates = np.sort(rng.integers(everywhere, size=2 * n))  # sorted candidates are looked up faster
            both = np.sort(np.concatenate([drawn, candidates[eligible(candidates)]]))
            drawn = np.concatenate([both[:1], both[1:][both[1:] != both[:-1]]])
            if len(drawn) >= n:
                break
        if len(drawn) < n:  # the corpus is small, or few windows may be drawn: draw from the complete list
            parts = [ids[eligible(ids)] for ids in self._all_windows(tiles, latent)]
            drawn = np.concatenate([drawn[:0], *parts])
        return rng.permutation(drawn)[:n]

    def _all_windows(self, tiles: int, latent: int | None) -> Iterator[NDArray[np.int64]]:
        """Yield all window numbers, ascending, in blocks; of a store of excerpts, those of a latent's own excerpts."""
        contexts = np.arange(len(self.lengths))
        if latent is not None and self._known is not None:
            indptr, known = self._known
            contexts = known[indptr[latent] : indptr[latent + 1]]
        step = max(1, _BLOCK // tiles)
        for low in range(0, len(contexts), step):
            yield (contexts[low : low + step, None] * tiles + np.arange(tiles)).ravel()

    def examples(
        self,
        latent: LatentId,
        ids: Sequence[int] | NDArray[np.int64],
        window: int,
        deciles: Sequence[int | None] | None = None,
    ) -> tuple[Example, ...]:
        """Return windows as examples, in the given order, with the latent's activations.

        Args:
            latent: The latent.
            ids: Window numbers.
            window: Tokens per window.
            deciles: Rank decile of each window.
        """
        return self.examples_at(latent, self.begin_of(np.asarray(ids, dtype=np.int64), window), window, deciles)

    def examples_at(
        self,
        latent: LatentId,
        positions: Sequence[int] | NDArray[np.int64],
        window: int,
        deciles: Sequence[int | None] | None = None,
    ) -> tuple[Example, ...]:
        """Return windows with arbitrary starts as examples, in the given order, with the latent's activations.

        Args:
            latent: The latent.
            positions: Start of each, numbered as in `activations`: `context * length + start`.
            window: Tokens per window.
            deciles: Rank decile of each window.

        Raises:
            ValueError: If a window reaches beyond the text of its context.
        """
        at = np.asarray(positions, dtype=np.int64)
        if not len(at):
            return ()
        context, start = np.divmod(at, self.length)
        token_ids, activations, count = self._cut_out(latent.index, at, window)
        token_ids.flags.writeable = activations.flags.writeable = False  # several steps read the same windows
        columns = zip(
            self._vocabulary.strings(token_ids),
            token_ids,
            activations,
            self.documents[context].tolist(),
            context.tolist(),
            start.tolist(),
            (count > 0).tolist(),
            deciles if deciles is not None else [None] * len(at),
            strict=True,
        )
        return tuple(starmap(Example, columns))

    def _cut_out(
        self, latent: int, at: NDArray[np.int64], window: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
        """Return tokens, activations and the number of firings of windows."""
        context, start = np.divmod(at, self.length)
        if (bad := (start < self.lead) | (start + window > self.lengths[context])).any():
            first = int(np.argmax(bad))
            raise ValueError(f"a window of {window} tokens at {context[first]}:{start[first]} reaches beyond the text")
        position, value = self._stored(latent)
        low, high = firings_between(position, at, window)
        count = high - low
        row = np.repeat(np.arange(len(at)), count)
        source = np.arange(len(row)) + np.repeat(low - (np.cumsum(count) - count), count)
        activations = np.zeros((len(at), window), dtype=np.float32)
        activations[row, position[source].astype(np.int64) - at[row]] = value[source]
        return self._rows(window)[at], activations, count

    def strings(self, token_ids: NDArray[np.int32]) -> list[tuple[str, ...]]:
        """Return the strings of each window's tokens.  token_ids [windows, window]"""
        return self._vocabulary.strings(token_ids)

    def is_partial(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which tokens contain part of a character, so that decoding them needs their neighbours."""
        return self._vocabulary.is_partial(tokens)

    def begin_of(self, ids: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        """Return the position at which each window begins.  [windows]"""
        context, tile = np.divmod(np.asarray(ids, dtype=np.int64), self._tiles(window))
        return np.asarray(context * self.length + self.lead + tile * window)

    def begins_around(
        self,
        latents: NDArray[np.int64],
        ids: NDArray[np.int64],
        firings: tuple[NDArray[np.int64], NDArray[np.int64]],
        window: int,
    ) -> NDArray[np.int64]:
        """Shift activating windows so that there is text on both sides of their firings; return their starts.

        A window with less than a quarter of its tokens before the first firing, or after the last, is shifted in that
        direction, as far as the other side keeps a quarter. See `shifted` for what limits a shift.

        Args:
            latents: Latent of each window.
            ids: Window numbers.
            firings: Start and end of each window's firings in the store's arrays.  [windows] each
            window: Tokens per window.

        Returns:
            Positions, for `examples_at`.  [windows]
        """
        begin = self.begin_of(ids, window)
        fired = _Fired(*firings, self.indptr[latents], self.indptr[latents + 1])
        return self._moved(begin, fired, window, self._wanted_shifts(begin, fired, window))

    def shifts_around(self, latent: int, ids: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        """Return by how many tokens `begins_around` shifts windows if only their firings limit it.  [windows]

        No window is moved onto further firings, such as the rest of a run that it cuts.

        Args:
            latent: The latent.
            ids: Window numbers of its activating windows.
            window: Tokens per window.
        """
        begin = self.begin_of(ids, window)
        fired = self._fired(latent, begin, window)
        least, most = self._between_firings(fired, window)
        return np.asarray(np.clip(self._wanted_shifts(begin, fired, window), least - begin, most - begin))

    def shifted(self, latent: int, ids: NDArray[np.int64], window: int, shifts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Shift windows as far as the set of firings in each stays the same; return their starts.

        So a window's maximum and rank do not change, and a silent window stays silent. No window is shifted to or from
        the edge of its context (with roles, of its turn): otherwise activating windows would begin or end a document
        more or less often than silent ones, and a judge that ignores the explanation could tell them.

        Args:
            latent: The latent.
            ids: Window numbers.
            window: Tokens per window.
            shifts: By how many tokens to shift each window, negative towards the beginning.  [windows]

        Returns:
            Positions, for `examples_at`.  [windows]
        """
        begin = self.begin_of(ids, window)
        return self._moved(begin, self._fired(latent, begin, window), window, shifts)

    def at_edge(self, ids: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
        """Return which windows begin or end their context (with roles, their turn), so that `shifted` never moves them.

        Args:
            ids: Window numbers.
            window: Tokens per window.
        """
        begin = self.begin_of(ids, window)
        first, last = self._edges(begin, window)
        return np.asarray((begin == first) | (begin == last))

    def _edges(self, begin: NDArray[np.int64], window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and last start of a window in the context, with roles the turn, of each start."""
        context = begin // self.length
        first, last = context * self.length + self.lead, context * self.length + self.lengths[context] - window
        if self._of_roles:
            turn_begins, turn_ends = self._turns_of(begin)
            first, last = np.maximum(first, turn_begins), np.minimum(last, turn_ends - window)
        return first, last

    def _fired(self, latent: int, begin: NDArray[np.int64], window: int) -> _Fired:
        """Return the firings of one latent in windows with these starts."""
        low, high = firings_between(self._stored(latent)[0], begin, window)
        start, stop = self.indptr[latent], self.indptr[latent + 1]
        return _Fired(low + start, high + start, start, stop)

    def _wanted_shifts(self, begin: NDArray[np.int64], fired: _Fired, window: int) -> NDArray[np.int64]:
        """Return by how many tokens activating windows would be shifted if nothing limited it.  [windows]"""
        before = self.position[fired.low].astype(np.int64) - begin
        after = begin + window - 1 - self.position[fired.high - 1].astype(np.int64)
        margin = window // 4
        back = np.clip(np.minimum(margin - before, after - margin), 0, None)
        ahead = np.clip(np.minimum(margin - after, before - margin), 0, None)
        return np.asarray(ahead - back)

    def _moved(
        self, begin: NDArray[np.int64], fired: _Fired, window: int, shifts: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the starts of windows after shifts, as `shifted` limits them."""
        first, last = self._edges(begin, window)
        lowest, highest = self._between_firings(fired, window)
        lowest, highest = np.maximum(first, lowest), np.minimum(last, highest)
        moved = np.clip(begin + shifts, np.minimum(lowest, begin), np.maximum(highest, begin))
        inside = (np.minimum(begin, moved) > first) & (np.maximum(begin, moved) < last)
        return np.asarray(np.where(inside, moved, begin))

    def _between_firings(self, fired: _Fired, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and last start of each window at which no firing before or after it is in the window."""
        first = np.zeros(len(fired.low), dtype=np.int64)
        last = np.full(len(fired.low), self.tokens.size - window, dtype=np.int64)
        after_one, before_one = fired.low > fired.start, fired.high < fired.stop
        first[after_one] = self.position[fired.low[after_one] - 1].astype(np.int64) + 1
        last[before_one] = self.position[fired.high[before_one]].astype(np.int64) - window
        return first, last
