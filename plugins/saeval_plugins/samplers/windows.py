"""Samples activating windows for explaining and scoring, as in the paper (§3.1).

Windows tile the text. If the latent fires near the beginning or end of a window, the window is moved by up to a quarter
of its length, so that there is text on both sides (`ActivationStore.shifts_around`). Non-activating windows are shifted
as often and as far: each as one of the activating windows, drawn at random from those inside a context, would be if
only its firings limited the shift. Otherwise only activating windows would begin between tiles (or, where a latent
fires in long runs that tiles cut, only non-activating ones), and text that recurs at the same place in each document
would tell a judge which windows these are.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, JsonValue

from saeval.plugin import ActivationStore, Examples, LatentId, LatentRecord, Need, Sampler
from saeval_plugins.samplers.non_activating import AnyNonActivating, RandomWindows
from saeval_plugins.samplers.silent import FEWEST, Wanted
from saeval_plugins.samplers.split import split_documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DECILES = 10
_DRAWS = 8  # increased whenever the same options give other windows than before, so that no run mixes both


class _WindowSampler(Sampler):
    """Splits by document, then samples each side; subclasses define how the explain side is sampled."""

    explain: int = Field(default=40, ge=FEWEST)
    """Number of activating windows for the explainer."""
    explain_non_activating: int = Field(default=20, ge=0)
    """Number of non-activating windows for contrastive explainers, chosen like those for the scorers."""
    score: int = Field(default=100, ge=FEWEST)
    """Number of activating windows for the scorers, in equal parts from each rank decile of the maximum activation."""
    non_activating: AnyNonActivating = RandomWindows()
    """Non-activating windows. `{use: random, n: 100}` draws random ones. Hard ones: `{use: neighbours, k: 10, by:
    cooccurrence}` (or `by: decoder`, `encoder`) takes windows that activate a similar latent; `{use: similar, model: …,
    pool: 4096}` takes windows whose text is close to that of activating ones; `{use: importance}` draws hard windows
    with known probabilities."""

    def check(self) -> None:
        """Check that everything named in `non_activating` exists."""
        self.non_activating.check()

    def needs(self) -> frozenset[Need]:
        """Return the needs of `non_activating`."""
        return self.non_activating.needs()

    def fingerprint(self) -> JsonValue:
        """Return the options, the sampler's version and what `non_activating` depends on."""
        return [super().fingerprint(), _DRAWS, *self.non_activating.depends_on()]

    @abstractmethod
    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return indices of the explain side's windows to show.

        Args:
            maxima: Maximum activation of each window, descending.  [windows]
            rng: Source of the choice.
        """

    def silent_windows(self) -> int:
        """Return the number of non-activating windows for the scorers."""
        return self.non_activating.n

    def reads_one_latent(self) -> bool:
        """Return whether non-activating windows are chosen without reading other latents."""
        return self.non_activating.use not in ("neighbours", "importance")

    def prepare(self, store: ActivationStore, latents: Sequence[int]) -> None:
        """Prepare the choice of non-activating windows for many latents at once."""
        self.non_activating.prepare(store, latents)

    def sample(self, store: ActivationStore, latent: LatentId, rng: np.random.Generator) -> LatentRecord | None:
        """Split the latent's windows by document, then draw both sides."""
        windows = store.windows(latent.index, self.window)
        documents = store.document_of(windows.ids, self.window)
        cut = split_documents(documents, self.explain / (self.explain + self.score), rng)
        if cut is None:
            return None
        split, explains = cut
        shown, scored = windows.where(explains), windows.where(~explains)
        if min(len(shown.ids), len(scored.ids)) < FEWEST:
            return None
        # Each side has its own generator, so that samplers that show other windows are scored on the same ones.
        explain_rng, score_rng = rng.spawn(2)
        order = strongest_first(shown.maxima)
        shown_ids = shown.ids[order[self.choose(shown.maxima[order], explain_rng)]]
        ranks, deciles = _by_decile(len(scored.ids), self.score, score_rng)
        scored_ids = scored.ids[strongest_first(scored.maxima)[ranks]]

        def silent(
            n: int, beside: NDArray[np.int64], *, explain: bool
        ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
            def keep(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
                here = split.explains(store.document_of(ids, self.window)) == explain
                known = store.knows(latent.index, store.context_of(ids, self.window))
                return here & known

            wanted = Wanted(store, latent.index, self.window, n, keep, beside)
            return self.non_activating.weighted(wanted, explain_rng if explain else score_rng)

        score_silent, weights = silent(self.non_activating.n, scored_ids, explain=False)
        if len(score_silent) < FEWEST:
            return None
        explain_silent, _ = silent(self.explain_non_activating, shown_ids, explain=True)
        # All windows are shifted and cut in one call, because a call has a fixed cost.
        groups = (shown_ids, explain_silent, scored_ids, score_silent)
        decile = [*[None] * (len(shown_ids) + len(explain_silent)), *deciles, *[None] * len(score_silent)]
        begins = self._shifted(store, latent.index, groups, (explain_rng, score_rng))
        examples = iter(store.examples_at(latent, begins, self.window, decile))
        explaining, contrast, scoring, silence = (tuple(islice(examples, len(group))) for group in groups)
        for window, weight in zip(silence, weights.tolist() if weights is not None else (), strict=False):
            window.weight = weight
        maximum = float(windows.maxima.max())
        firings = int(store.firings[latent.index])
        return LatentRecord(
            latent,
            firings=firings,
            windows=len(windows.ids),
            density=firings / store.n_tokens,
            explain=Examples(latent, explaining, contrast, maximum),
            score=Examples(latent, scoring, silence, maximum),
        )

    def _shifted(
        self,
        store: ActivationStore,
        latent: int,
        groups: Sequence[NDArray[np.int64]],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.int64]:
        """Shift activating and silent windows alike; return their starts.

        Args:
            store: The activations.
            latent: The latent.
            groups: Activating and silent windows of each side in turn, four arrays.
            rngs: Generator of each side, which draws for its silent windows whose shifts they have.
        """
        activating = np.concatenate(groups[::2])
        own = store.shifts_around(latent, activating, self.window)
        movable = ~store.at_edge(activating, self.window)
        here = np.arange(len(own)) < len(groups[0])
        shifts = []
        for side, silent, rng in zip((here, ~here), groups[1::2], rngs, strict=True):
            lent = own[side & movable] if (side & movable).any() else own[side]
            shifts += [own[side], lent[rng.integers(len(lent), size=len(silent))]]
        ids = np.concatenate(groups)
        begins = store.shifted(latent, ids, self.window, np.concatenate(shifts))
        is_silent = np.repeat([False, True, False, True], [len(group) for group in groups])
        unfit = np.flatnonzero(is_silent)[~self.non_activating.fits(store, latent, begins[is_silent], self.window)]
        begins[unfit] = store.begin_of(ids[unfit], self.window)
        return begins


def strongest_first(maxima: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return indices in descending order of value; ties keep their order."""
    if len(maxima) < 1024:
        return np.argsort(-maxima, kind="stable")
    # Apart from the sign, floats sort like their bits read as integers; sorting 16 bits takes one radix pass.
    bits = maxima.view(np.int32)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    below = (key.max(initial=0) - key).view(np.uint32)  # distance from the largest
    if below.max(initial=0) < 1 << 29 and not (below & 0x1FFF).any():  # values stored as float16: other bits are 0
        return np.argsort((below >> 13).astype(np.uint16), kind="stable")
    order = np.argsort(below.astype(np.uint16), kind="stable")
    return order[np.argsort((below >> 16).astype(np.uint16)[order], kind="stable")]


def _by_decile(n: int, wanted: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], list[int]]:
    """Draw from rank deciles in equal parts (paper §3.3); if one has too few windows, more are drawn from the others.

    Returns:
        Indices into the ranked windows, ascending, and the decile of each.
    """
    bounds = [-(-decile * n // DECILES) for decile in range(DECILES + 1)]  # decile d begins at rank d * n / 10
    sizes = [high - low for low, high in pairwise(bounds)]
    parts, left = [0] * DECILES, min(wanted, n)
    while left:
        open_ = [decile for decile in range(DECILES) if parts[decile] < sizes[decile]]
        each = min(left // len(open_), *(sizes[decile] - parts[decile] for decile in open_))
        if each == 0:
            open_, each = rng.permutation(open_)[:left].tolist(), 1
        for decile in open_:
            parts[decile] += each
        left -= each * len(open_)
    return draw_each(bounds, parts, rng), [decile for decile, part in enumerate(parts) for _ in range(part)]


def draw_each(bounds: Sequence[int], counts: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw numbers from each range without replacement; return all, ascending.

    Uses Floyd's algorithm on all (disjoint) ranges at once. To draw `count` of the numbers `low` to `high - 1`, it
    draws from `low` to `last` for each `last` from `high - count` to `high - 1`; a number that is already drawn is
    replaced by `last`.

    Args:
        bounds: Start of each range, which ends before the next one.  [ranges + 1]
        counts: Number of draws from each range.  [ranges]
        rng: Random number generator.
    """
    lows: list[int] = []
    lasts: list[int] = []
    for low, high, count in zip(bounds, bounds[1:], counts, strict=False):
        lows += [low] * count
        lasts += range(high - count, high)
    drawn: set[int] = set()
    for last, number in zip(lasts, rng.integers(lows, lasts, endpoint=True).tolist(), strict=True):
        drawn.add(last if number in drawn else number)
    return np.sort(np.fromiter(drawn, np.int64, len(drawn)))


class RandomSampler(_WindowSampler):
    """Shows random windows from the full range of activations; explanations have the best breadth (paper §4.3)."""

    name = "random"

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw uniformly."""
        return rng.choice(len(maxima), min(self.explain, len(maxima)), replace=False)


class Top(_WindowSampler):
    """Shows the windows with the strongest activations; explanations are concise but too narrow (paper §4.3)."""

    name = "top"

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Take the strongest windows."""
        return np.arange(min(self.explain, len(maxima)))


class Quantiles(_WindowSampler):
    """Shows equally many windows from each rank decile; explanations are sometimes too broad (paper §4.3)."""

    name = "quantiles"

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw from the deciles in equal parts."""
        return _by_decile(len(maxima), self.explain, rng)[0]


class Mix(_WindowSampler):
    """Shows some of the strongest windows, and equally many from each decile of the rest."""

    name = "mix"

    top_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the shown windows that are the strongest ones."""

    def choose(self, maxima: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Take the strongest, then draw from the deciles of the others."""
        strongest = min(round(self.explain * self.top_share), len(maxima))
        rest, _ = (
            _by_decile(len(maxima) - strongest, self.explain - strongest, rng)
            if len(maxima) > strongest
            else (np.empty(0, dtype=np.int64), [])
        )
        return np.concatenate([np.arange(strongest), rest + strongest])
