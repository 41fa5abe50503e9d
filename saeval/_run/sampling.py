"""Chooses the latents of a cell, and samples windows for explaining and scoring them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from saeval._util import InputError, PluginError, StoreError, counted, derive_rng
from saeval.plugin.registry import BUILT_IN
from saeval.records import CorpusFiring, Example, Flaw, LatentId, LatentRecord

if TYPE_CHECKING:
    from saeval._run.decoys import Decoys
    from saeval.activations import ActivationStore
    from saeval.task import Cell

_MOST_MAXIMA = 1000  # maximum number of window maxima to keep per latent, enough for any quantile
_TOGETHER = 2048  # latents that a sampler prepares at a time
_EVERYWHERE = 0.9  # latents that fire on more than this share of tokens have no non-activating windows


class Flawed(NamedTuple):
    """Extent of a flaw that a sampler declares: affected windows and all windows."""

    windows: int
    of: int


class Records:
    """The records of a cell's latents, in random order; only the first ones are kept in memory, others are rebuilt.

    So memory does not grow with the number of latents.

    Args:
        make: Samples one latent; returns the same record each time.
        keep: Number of records to keep in memory.

    Attributes:
        latents: The latents.
        flaws: Flaws that the sampler declares, counted over all latents.
        silent: Number of non-activating windows for scoring, per latent.
    """

    KEPT = 1000
    """Maximum records in memory per run, over all cells, at a third of a megabyte each."""

    def __init__(self, make: Callable[[LatentId], LatentRecord | None] = lambda latent: None, keep: int = 0):
        self.latents: list[LatentId] = []
        self.flaws: dict[Flaw, Flawed] = {}
        self.silent: list[int] = []
        self._make = make
        self._keep = keep
        self._kept: dict[LatentId, LatentRecord] = {}

    def __len__(self) -> int:
        return len(self.latents)

    def __iter__(self) -> Iterator[LatentRecord]:
        return map(self.__getitem__, self.latents)

    def __getitem__(self, latent: LatentId) -> LatentRecord:
        record = self._kept.get(latent) or self._make(latent)
        if record is None:
            raise InputError(
                f"latent {latent}: the sampler returned windows once and none the next time; its result must depend "
                f"only on its arguments"
            )
        return record

    def add(self, latent: LatentId) -> None:
        """Sample a latent and add it; skip it if the sampler returns None."""
        record = self._make(latent)
        if record is None:
            return
        self.latents.append(latent)
        self.silent.append(len(record.score.non_activating))
        if len(self._kept) < self._keep:
            self._kept[latent] = record
        for flaw in record.flaws:
            before, found = self.flaws.get(flaw, Flawed(0, 0)), _flawed(flaw, record)
            self.flaws[flaw] = Flawed(before.windows + found.windows, before.of + found.of)

    @property
    def kept(self) -> int:
        """Number of records in memory."""
        return len(self._kept)

    def first(self, n: int | None) -> Records:
        """Return the records of the first n latents."""
        some = Records(self._make)
        some.latents, some.flaws, some._kept = self.latents[:n], self.flaws, self._kept
        some.silent = self.silent[:n]
        return some


def choose_records(
    cell: Cell, store: ActivationStore, seed: int, limit: int | None, keep: int = Records.KEPT
) -> tuple[Records, dict[str, int]]:
    """Choose a cell's latents and return their records, in random order.

    Args:
        cell: The cell.
        store: Its activation store.
        seed: Seed of the run.
        limit: Maximum latents; the first ones are the same with every limit.
        keep: Number of records to keep in memory; others are rebuilt on request.

    Returns:
        The records, and the numbers of `requested`, `eligible` (firing on at least `min_windows` tokens) and `sampled`
        latents.

    Raises:
        InputError: If no latent can be sampled, or a listed one is not in the dictionary.
        PluginError: If the sampler returns anything but a record or None.
        StoreError: If the sampler returns non-activating windows in contexts that the store does not cover.
    """
    wanted = cell.latents
    if "coder" in cell.source.plugin.offers():
        store.coder = cell.source.plugin.weights
    n = len(wanted.indices) if wanted.select == "list" else wanted.n
    n = n if limit is None else min(n, limit)
    hookpoint = str(store.facts.get("hookpoint", cell.source.plugin.name))
    records = Records(_Sampling(cell, store, seed), keep)
    left = iter(_candidates(cell, store, seed))
    # Samplers that read other latents prepare many at a time; for others, one at a time reuses the store's cache of the
    # eligibility check.
    most = 1 if cell.sampler.plugin.reads_one_latent() else _TOGETHER
    tried = 0
    while some := list(islice(left, min(most, n - len(records)))):
        tried += len(some)
        cell.sampler.plugin.prepare(store, some)
        for index in some:
            records.add(LatentId(hookpoint, index))
    if not records:
        without = f"; or remove {cell.baseline} from `baselines`" if cell.baseline else ""
        if tried and cell.sampler.loaded.distribution != BUILT_IN:
            why = f"the sampler {cell.sampler.label} returned None for all of {counted(tried, 'latent')}"
        else:
            why = _why_none(store, cell.sampler.plugin.window, wanted.min_windows)
        raise InputError(f"cell {cell.name}: {why}{without}")
    eligible = int((store.firings >= wanted.min_windows).sum())
    return records, {"requested": n, "eligible": eligible, "sampled": len(records)}


def _candidates(cell: Cell, store: ActivationStore, seed: int) -> Iterable[int]:
    """Return the latents to try: the listed ones, or those with enough activating windows, in random order.

    Raises:
        InputError: If a listed one is not in the dictionary, or was not collected.
    """
    wanted, window = cell.latents, cell.sampler.plugin.window
    if wanted.select == "list":
        if bad := [i for i in wanted.indices if not 0 <= i < store.n_latents]:
            raise InputError(f"latents.indices: {bad[:5]} are not in a dictionary of {store.n_latents} latents")
        if store.latents is not None and (bad := [i for i in wanted.indices if i not in store.latents]):
            raise InputError(
                f"latents.indices: {bad[:5]} are not among the {len(store.latents)} latents that were collected"
            )
        return wanted.indices
    order = derive_rng(seed, "latents").permutation(store.n_latents)
    enough = order[store.firings[order] >= wanted.min_windows].tolist()
    return (i for i in enough if len(store.windows(i, window).ids) >= wanted.min_windows)


class _Sampling:
    """Samples the latents of a cell, with everything about their windows that the cell's steps need."""

    def __init__(self, cell: Cell, store: ActivationStore, seed: int):
        self._sampler, self._store, self._seed = cell.sampler, store, seed
        scorers = [scorer.part.plugin for scorer in cell.scorers.values()]
        explainers = [step.part.plugin for step in cell.explainers.values()]
        self._cofiring = any("cofiring" in explainer.needs() for explainer in explainers)
        self._corpus = any("in_corpus" in scorer.needs() for scorer in scorers)
        marks = [scorer.marks_from() for scorer in scorers if "decoy" in scorer.needs()]
        self._decoys: Decoys | None = None
        if marks:
            from saeval._run.decoys import Decoys

            self._decoys = Decoys(store, marks[0])  # the same for all

    def __call__(self, latent: LatentId) -> LatentRecord | None:
        """Return the latent's record; None if the sampler returns none.

        Raises:
            PluginError: If the sampler returns anything else.
            StoreError: If it returns non-activating windows in contexts that the store does not cover.
        """
        sampler, store = self._sampler, self._store
        record = sampler.plugin.sample(store, latent, derive_rng(self._seed, "sample", str(latent)))
        if record is None:
            return None
        if not isinstance(record, LatentRecord):
            raise PluginError(
                f"the sampler {sampler.loaded.id} returned {type(record).__name__} instead of LatentRecord or None"
            )
        _check_silence(record, store, sampler.label)
        if self._cofiring:
            from saeval._run.cofiring import with_cofiring

            record = with_cofiring(record, store)
        if self._corpus:
            score = replace(record.score, in_corpus=_in_corpus(store, latent.index, sampler.plugin.window))
            record = replace(record, score=score)
        if self._decoys is not None:
            record = self._decoys(record, derive_rng(self._seed, "decoy", str(latent)))
        return record


def _in_corpus(store: ActivationStore, latent: int, window: int) -> CorpusFiring:
    """Return how often and how strongly a latent fires in the windows of the corpus."""
    import numpy as np

    maxima = np.sort(store.windows(latent, window).maxima)
    chosen = np.linspace(0, len(maxima) - 1, min(len(maxima), _MOST_MAXIMA)).round().astype(np.int64)
    return CorpusFiring(len(maxima) / max(1, store.window_count(window)), maxima[chosen])


def _why_none(store: ActivationStore, window: int, min_windows: int) -> str:
    """Return why no latent can be sampled, with the remedy."""
    import numpy as np

    documents = store.documents.max(initial=-1) + 1
    longest = int((store.lengths - store.lead).max(initial=0))
    whole = len({*store.documents[store.lengths >= store.lead + window].tolist()})
    if longest < window:
        return (
            f"no text is as long as a window of {window} tokens (sampler.with.window): the longest of "
            f"{counted(documents, 'document')} has {longest} in a context; set sampler.with.window to "
            f"{max(4, min(longest, window // 2))} or less, or join short rows"
        )
    if whole < 2:
        return (
            f"only {whole} of {counted(documents, 'document')} {'is' if whole == 1 else 'are'} as long as a window of "
            f"{window} tokens, but explaining and scoring need different documents; set corpus.split to `paragraphs` "
            "or `lines`, or give more documents"
        )
    fire = int((store.firings >= min_windows).sum())
    if not store.firings.any():
        return (
            "none of its latents ever fires on the corpus; the coder belongs to another hookpoint or model, or its "
            "files are damaged"
        )
    if store.firings.min() > _EVERYWHERE * store.n_tokens:
        return (
            "each of its latents fires on nearly every token, so there are no non-activating windows; the coder "
            "belongs to another hookpoint or model, or is not sparse"
        )
    if roles := store.facts.get("roles"):
        begins, ends = store.turns
        median = int(np.median(ends - begins))
        if median < 2 * window:
            return (
                f"half of the turns of {', '.join(roles)} (corpus.roles) have {median} tokens or fewer, so too few "
                f"windows of {window} tokens lie wholly in one; set sampler.with.window to {max(4, median // 2)} or "
                "less"
            )
    return (
        f"no latent has {min_windows} activating windows of {window} tokens (latents.min_windows) in two documents "
        f"or more, and enough non-activating ones (sampler.with.non_activating): {fire} of {store.n_latents} latents "
        f"fire on that many of {store.n_tokens:,} tokens, in {whole} documents that are long enough; give more text, "
        "shorter windows (sampler.with.window) or fewer windows per latent (sampler.with.explain, score)"
    )


def _check_silence(record: LatentRecord, store: ActivationStore, sampler: str) -> None:
    """Check that the non-activating windows of a record are in contexts that the store covers.

    Raises:
        StoreError: If not.
    """
    import numpy as np

    contexts = [e.context for side in (record.explain, record.score) for e in side.non_activating]
    unknown = ~store.knows(record.latent.index, np.array(contexts, dtype=np.int64))
    if unknown.any():
        raise StoreError(
            f"sampler {sampler}: returned {int(unknown.sum())} non-activating windows of latent {record.latent} that "
            f"the source does not cover; a sampler must check store.knows()"
        )


def _flawed(flaw: Flaw, record: LatentRecord) -> Flawed:
    """Count a latent's scored windows that share text with explaining, or that are wrongly marked as non-activating."""
    if flaw == "leak":
        scored = record.score.activating
        shown: dict[int, list[Example]] = {}
        for example in record.explain.activating:
            shown.setdefault(example.context, []).append(example)
        return Flawed(sum(any(_overlap(e, other) for other in shown.get(e.context, ())) for e in scored), len(scored))
    silent = record.score.non_activating
    return Flawed(sum(bool(e.activations.any()) for e in silent), len(silent))


def _overlap(a: Example, b: Example) -> bool:
    """Return whether two windows of a context share tokens."""
    return a.start < b.start + len(b.tokens) and b.start < a.start + len(a.tokens)
