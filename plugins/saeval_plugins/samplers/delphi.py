"""Samples windows as EleutherAI's Delphi does, known flaws included, for comparison with its numbers."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from saeval.plugin import ActivationStore, Examples, Flaw, LatentId, LatentRecord, Sampler, Windows
from saeval_plugins.samplers.silent import FEWEST, Keep
from saeval_plugins.samplers.split import split_documents
from saeval_plugins.samplers.windows import DECILES, strongest_first

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DelphiSampler(Sampler):
    """Samples as EleutherAI/delphi does at commit 3c2e139 (November 2025); compare its scores only with Delphi's.

    Windows tile the text of a context and are ranked by their maximum activation. The ranking is divided into
    `quantiles` parts of `windows // quantiles` each (the remainder is dropped), and `explain // quantiles` and
    `score // quantiles` windows are drawn from each part. Silent windows are random and verified. Strengths are
    ceil(10 · activation / maximum), as elsewhere in saeval.

    Known flaw (`leak`): both draws are from all windows and use the same `seed`, so they overlap. With the defaults and
    many windows, the explainer sees 4, 3, 2 and 1 of the 5 scored windows of the four strongest deciles, 10 of all 50;
    with about 200 windows, chance raises this to up to 20.

    Differences: silent windows are drawn without replacement (Delphi draws with replacement, from a generator with the
    same seed for every latent); a latent with too few of them is dropped (Delphi scores it without any).
    """

    name = "delphi"

    explain: int = Field(default=40, ge=FEWEST)
    """Number of activating windows for the explainer."""
    score: int = Field(default=50, ge=FEWEST)
    """Number of activating windows for the scorers."""
    non_activating: int = Field(default=50, ge=FEWEST)
    """Number of non-activating windows for the scorers."""
    quantiles: int = Field(default=10, ge=1, le=DECILES)
    """Number of parts of the ranking."""
    show: Literal["quantiles", "random", "top", "mix"] = "quantiles"
    """Which windows the explainer sees: equally many from each part, random ones, the strongest, or a mix of the
    strongest and equally many from each part of the rest."""
    top_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the strongest windows under `show: mix`."""
    seed: int = 22
    """Seed of the draws, the same for every latent; the run's seed is not used."""
    leak: bool = True
    """Whether both draws are from all windows; if false, from different documents."""

    @model_validator(mode="after")
    def _something_of_each_part(self) -> DelphiSampler:
        if min(self.explain, self.score) < self.quantiles:
            raise ValueError(f"explain and score must be at least quantiles, {self.quantiles}, to draw from each part")
        return self

    def reads_one_latent(self) -> bool:
        """Return True: no other latents are read."""
        return True

    def sample(self, store: ActivationStore, latent: LatentId, rng: np.random.Generator) -> LatentRecord | None:
        """Rank the latent's windows, and draw those for explaining and those for scoring."""
        windows = store.windows(latent.index, self.window)
        order = strongest_first(windows.maxima)
        windows = Windows(windows.ids[order], windows.maxima[order])
        shown, scored = windows.ids, windows.ids
        keep: Keep | None = None
        if not self.leak:
            documents = store.document_of(windows.ids, self.window)
            cut = split_documents(documents, self.explain / (self.explain + self.score), rng)
            if cut is None:
                return None
            split, explains = cut
            shown, scored = windows.ids[explains], windows.ids[~explains]

            def keep(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
                return ~split.explains(store.document_of(ids, self.window))

        shown = shown[self._shown(len(shown))]
        at, quantile = self._by_quantile(len(scored), self.score)
        silent = store.silent_windows(latent.index, self.window, self.non_activating, rng, keep)
        if min(len(shown), len(at)) < FEWEST or len(silent) < self.non_activating:
            return None
        maximum = float(windows.maxima[0])
        deciles = [q * DECILES // self.quantiles for q in quantile]
        firings = int(store.firings[latent.index])
        flaws: frozenset[Flaw] = frozenset({"leak"}) if self.leak else frozenset()
        # All windows are cut in one call, because a call has a fixed cost.
        ids = np.concatenate([shown, scored[at], silent])
        decile = [*[None] * len(shown), *deciles, *[None] * len(silent)]
        examples = iter(store.examples(latent, ids, self.window, decile))
        explaining, scoring, silence = (tuple(islice(examples, n)) for n in (len(shown), len(at), len(silent)))
        return LatentRecord(
            latent,
            firings=firings,
            windows=len(windows.ids),
            density=firings / store.n_tokens,
            explain=Examples(latent, explaining, (), maximum),
            score=Examples(latent, scoring, silence, maximum),
            flaws=flaws,
        )

    def _shown(self, n: int) -> list[int]:
        """Return the ranks of the windows to show the explainer, out of n."""
        if self.show == "quantiles":
            return self._by_quantile(n, self.explain)[0]
        if self.show == "random":
            return _generator(self.seed).sample(range(n), self.explain) if n >= self.explain else [*range(n)]
        strongest = min(self.explain if self.show == "top" else int(self.explain * self.top_share), n)
        if self.show == "top":
            return [*range(strongest)]
        rest, _ = self._by_quantile(n - strongest, int(self.explain * (1 - self.top_share)))
        return [*range(strongest), *(rank + strongest for rank in rest)]

    def _by_quantile(self, n: int, wanted: int) -> tuple[list[int], list[int]]:
        """Draw from each quantile of n ranked windows; return ranks in the order drawn, and quantiles."""
        ranks = _drawn(self.seed, self.quantiles, n // self.quantiles, wanted // self.quantiles)
        return list(ranks), [q for q in range(self.quantiles) for _ in range(len(ranks) // self.quantiles)]


def _generator(seed: int) -> random.Random:
    """Return the standard library's generator, which makes the same draws as Delphi from the same seed."""
    return random.Random(seed)  # noqa: S311


@lru_cache(maxsize=1024)  # latents with as many windows have the same draws
def _drawn(seed: int, parts: int, size: int, each: int) -> tuple[int, ...]:
    """Draw ranks from each of as many parts of one size; return all ranks of parts that are too small."""
    draw = _generator(seed)
    ranges = [range(part * size, (part + 1) * size) for part in range(parts)]
    return tuple(rank for part in ranges for rank in (draw.sample(part, each) if size >= each else part))
