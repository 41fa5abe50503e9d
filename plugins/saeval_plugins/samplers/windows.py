"""The paper's samplers: how the explainer's windows are chosen among a latent's activating ones (paper §3.1)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, JsonValue

from saeval import ActivationStore, Examples, LatentId, LatentRecord, Need, Sampler, Windows
from saeval_plugins.samplers.non_activating import FEWEST, AnyNonActivating, RandomWindows
from saeval_plugins.samplers.split import side, split_documents

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECILES = 10


class _WindowSampler(Sampler):
    """Splits by document first, then samples each side; subclasses say how the explain side is sampled."""

    explain: int = Field(default=40, ge=FEWEST)
    """Activating windows for the explainer."""
    explain_non_activating: int = Field(default=20, ge=0)
    """Silent windows for explainers that contrast; chosen like those for the scorers."""
    score: int = Field(default=100, ge=FEWEST)
    """Activating windows for the scorers, in equal parts from each rank decile of the maximum activation."""
    non_activating: AnyNonActivating = RandomWindows()
    """Silent windows: `{use: random, n: 100}` for any; hard ones are `{use: neighbours, k: 10, by: cooccurrence}` (or
    `by: decoder`, `encoder`), which activate a latent near this one, and `{use: similar, model: …, pool: 4096}`, whose
    text is close to that of activating ones."""

    def check(self) -> None:
        """See whether what the choice of silent windows names is there."""
        self.non_activating.check()

    def needs(self) -> frozenset[Need]:
        """What the choice of silent windows needs."""
        return self.non_activating.needs()

    def fingerprint(self) -> JsonValue:
        """Add what the choice of silent windows depends on, if anything."""
        further = self.non_activating.depends_on()
        return [super().fingerprint(), *further] if further else super().fingerprint()

    @abstractmethod
    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return which of the explain side's windows to show, as indices.

        Args:
            maxima: Maximum activation of each window, descending.  [windows]
            rng: Source of the choice.
        """

    def sample(self, store: ActivationStore, latent: LatentId, rng: np.random.Generator) -> LatentRecord | None:
        """Split the latent's windows by document, then draw both sides."""
        windows = store.windows(latent.index, self.window)
        documents = store.document_of(windows.ids, self.window)
        split = split_documents(documents, self.explain / (self.explain + self.score), rng)
        if split is None:
            return None
        maximum = float(windows.maxima.max())
        explains = split.explains(documents)
        shown = descending(windows.where(explains))
        scored = descending(windows.where(~explains))
        if min(len(shown.ids), len(scored.ids)) < FEWEST:
            return None
        shown_ids = shown.ids[self.choose(shown.maxima, rng)]
        at, deciles = _by_decile(len(scored.ids), self.score, rng)

        def silent(n: int, explain: bool, beside: NDArray[np.int64]) -> NDArray[np.int64]:
            here = side(split, lambda ids: store.document_of(ids, self.window), explain)

            def keep(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
                return here(ids) & store.knows(latent.index, store.context_of(ids, self.window))

            return self.non_activating.draw(store, latent.index, self.window, n, rng, keep, beside)

        scored_ids = scored.ids[at]
        against = silent(self.non_activating.n, explain=False, beside=scored_ids)
        if len(against) < FEWEST:
            return None

        def examples(active: NDArray[np.int64], ranks: list[int] | None, passive: NDArray[np.int64]) -> Examples:
            return Examples(
                latent,
                store.examples(latent, active, self.window, ranks),
                store.examples(latent, passive, self.window),
                maximum,
            )

        firings = int(store.firings[latent.index])
        return LatentRecord(
            latent,
            firings=firings,
            windows=len(windows.ids),
            density=firings / store.n_tokens,
            explain=examples(shown_ids, None, silent(self.explain_non_activating, explain=True, beside=shown_ids)),
            score=examples(scored_ids, deciles, against),
        )


def descending(windows: Windows) -> Windows:
    """Order windows by maximum activation, strongest first; ties by number."""
    # Floats order as their bits do, but for the sign; two radix passes of 16 bits beat one comparison sort.
    bits = windows.maxima.astype(np.float32, copy=False).view(np.uint32)
    bits = np.where(bits >> 31, bits, bits ^ 0x7FFFFFFF)
    order = np.argsort(bits.astype(np.uint16), kind="stable")
    order = order[np.argsort((bits >> 16).astype(np.uint16)[order], kind="stable")]
    return Windows(windows.ids[order], windows.maxima[order])


def _by_decile(n: int, wanted: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], list[int]]:
    """Draw from rank deciles in equal parts (paper §3.3); where one runs short, the others fill up.

    Returns:
        Indices into the ranked windows, ascending, and the decile of each.
    """
    bounds = -(-np.arange(DECILES + 1) * n // DECILES)  # decile d holds the ranks from d/10 of n on
    sizes = np.diff(bounds)
    parts, left = np.zeros(DECILES, dtype=np.int64), min(wanted, n)
    while left:
        open_ = np.flatnonzero(parts < sizes)
        if left < len(open_):
            parts[rng.permutation(open_)[:left]] += 1
            break
        each = min(left // len(open_), int((sizes - parts)[open_].min()))
        parts[open_] += each
        left -= each * len(open_)
    drawn = [
        low + np.sort(rng.choice(size, part, replace=False))
        for low, size, part in zip(bounds[:-1], sizes, parts, strict=True)
    ]
    return np.concatenate(drawn), [int(d) for d in np.repeat(np.arange(DECILES), parts)]


class Random(_WindowSampler):
    """Shows windows drawn from the whole range of activations: the best breadth (paper §4.3)."""

    name = "random"

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw uniformly."""
        return rng.choice(len(maxima), min(self.explain, len(maxima)), replace=False)


class Top(_WindowSampler):
    """Shows the strongest windows: concise explanations, but too narrow (paper §4.3)."""

    name = "top"

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Take the first ones."""
        return np.arange(min(self.explain, len(maxima)))


class Quantiles(_WindowSampler):
    """Shows equally many windows from each rank decile: sometimes too broad (paper §4.3)."""

    name = "quantiles"

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw from the deciles in equal parts."""
        return _by_decile(len(maxima), self.explain, rng)[0]


class Mix(_WindowSampler):
    """Shows some of the strongest windows and fills up from the deciles of the rest."""

    name = "mix"

    top_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the windows taken from the strongest ones."""

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Take the strongest, then draw from the deciles of the others."""
        strongest = min(round(self.explain * self.top_share), len(maxima))
        rest, _ = (
            _by_decile(len(maxima) - strongest, self.explain - strongest, rng)
            if len(maxima) > strongest
            else (np.empty(0, dtype=np.int64), [])
        )
        return np.concatenate([np.arange(strongest), rest + strongest])
