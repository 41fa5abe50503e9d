"""Samples windows as SAEBench does, known flaws included, for comparison with its numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field, JsonValue, field_validator

from saeval.plugin import ActivationStore, Example, Examples, Flaw, LatentId, LatentRecord, Sampler
from saeval_plugins.samplers.split import Split, split_documents
from saeval_plugins.samplers.windows import DECILES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DRAWS = 4  # increased whenever the same options give other windows than before


class _Fired(NamedTuple):
    """Positions and activations of the tokens on which a latent fires.  [firings] each"""

    position: NDArray[np.int64]
    value: NDArray[np.float32]

    def where(self, chosen: NDArray[np.bool_]) -> _Fired:
        return _Fired(self.position[chosen], self.value[chosen])


class SAEBench(Sampler):
    """Samples as adamkarvonen/SAEBench does at commit 8042bb3 (May 2026); compare its scores only with SAEBench's.

    Windows are centred on a token. Top windows are centred on the tokens with the strongest activations, more than half
    a window apart. Weighted windows are centred on weaker tokens, drawn with probabilities proportional to the squared
    activation. Both kinds are divided at random between explaining and scoring. With the defaults, 14 windows are
    scored: 2 top, 2 weighted, and 10 at random positions. The explainer sees 15, strongest first.

    Known flaws. `leak`: windows of both sides come from the same documents and may overlap. `unverified`: windows at
    random positions count as silent without verification, as do weighted ones at or below `threshold`. A latent that
    fires on a share d of all tokens fires in about 1 − (1 − d)^21 of the random windows, so for dense latents correct
    answers count as wrong.

    Differences: a latent with too few firings is always dropped (SAEBench raises an error for some); windows never
    contain BOS, and are never centred on another special token.
    """

    name = "saebench"

    window: int = Field(default=21, ge=5)
    """Tokens per window: an odd number, with the same number on each side of the centre."""
    explain_top: int = Field(default=10, ge=1)
    """Number of top windows for the explainer."""
    explain_weighted: int = Field(default=5, ge=0)
    """Number of weighted windows for the explainer."""
    score_top: int = Field(default=2, ge=1)
    """Number of top windows for the scorers."""
    score_weighted: int = Field(default=2, ge=0)
    """Number of weighted windows for the scorers."""
    non_activating: int = Field(default=10, ge=1)
    """Number of windows at random positions for the scorers."""
    threshold: float = Field(default=0.01, ge=0, lt=1)
    """With `unverified`, a scored window counts as activating above this share of the latent's maximum."""
    leak: bool = True
    """Whether both sides are drawn from all documents, and activating windows may overlap; if false, they are from
    different documents, and activating windows do not overlap."""
    unverified: bool = True
    """Whether random windows are assumed to be non-activating; if false, only verified ones are drawn."""

    @field_validator("window")
    @classmethod
    def _has_a_centre(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("window must be odd, because windows are centred on a token")
        return value

    def fingerprint(self) -> JsonValue:
        """Return the options and the sampler's version."""
        return [super().fingerprint(), _DRAWS]

    def reads_one_latent(self) -> bool:
        """Return True: no other latents are read."""
        return True

    def sample(self, store: ActivationStore, latent: LatentId, rng: np.random.Generator) -> LatentRecord | None:
        """Choose the centres of both sides, and cut windows around them."""
        fired = self._centres(store, latent)
        cut = None
        if not self.leak:
            documents = store.documents[fired.position // store.length]
            explain, score = self.explain_top + self.explain_weighted, self.score_top + self.score_weighted
            if (cut := split_documents(documents, explain / (explain + score), rng)) is None:
                return None
        split, explains = cut or (None, None)
        sides = self._sides(fired, explains, rng)
        if sides is None:
            return None
        half = self.window // 2
        shown, scored = sides[0] - half, sides[1] - half
        silent = self._elsewhere(store, latent, scored, split, rng)
        if len(silent) < self.non_activating:
            return None
        maximum = float(fired.value.max())
        rank = np.argsort(np.argsort(-fired.value, kind="stable"), kind="stable")
        deciles = rank[np.searchsorted(fired.position, sides[1])] * DECILES // len(rank)
        explaining = store.examples_at(latent, shown, self.window)
        scoring = store.examples_at(latent, scored, self.window, [int(d) for d in deciles])
        non_activating = [replace(e, active=False) for e in store.examples_at(latent, silent, self.window)]
        if self.unverified:
            weak = [e for e in scoring if e.max_activation <= self.threshold * maximum]
            non_activating += [replace(e, active=False, decile=None) for e in weak]
            scoring = tuple(e for e in scoring if e.max_activation > self.threshold * maximum)
        firings = int(store.firings[latent.index])
        flaws: dict[Flaw, bool] = {"leak": self.leak, "unverified": self.unverified}
        return LatentRecord(
            latent,
            firings=firings,
            windows=len(store.windows(latent.index, self.window).ids),
            density=firings / store.n_tokens,
            explain=Examples(latent, tuple(sorted(explaining, key=_strongest_first)), (), maximum),
            score=Examples(latent, tuple(sorted(scoring, key=_strongest_first)), tuple(non_activating), maximum),
            flaws=frozenset(flaw for flaw, there in flaws.items() if there),
        )

    def _centres(self, store: ActivationStore, latent: LatentId) -> _Fired:
        """Return the firings with room for half a window on each side."""
        fired = _Fired(*store.activations(latent.index))
        context, offset = np.divmod(fired.position, store.length)
        half = self.window // 2
        room = (offset >= store.lead + half) & (offset < store.lengths[context] - half)
        room &= store.counts_at(fired.position - half, self.window)
        return fired.where(room & (fired.value > 0))

    def _sides(
        self, fired: _Fired, explains: NDArray[np.bool_] | None, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return the centres for explaining and for scoring; None if there are too few."""
        if explains is None:
            both = self._picked(
                fired, self.explain_top + self.score_top, self.explain_weighted + self.score_weighted, rng
            )
            if both is None:
                return None
            top, weighted = rng.permutation(both[0]), rng.permutation(both[1])
            dealt = (top[: self.explain_top], weighted[: self.explain_weighted])
            return np.concatenate(dealt), np.concatenate((top[self.explain_top :], weighted[self.explain_weighted :]))
        explain_rng, score_rng = rng.spawn(2)  # so that scored windows do not depend on the explain options
        shown = self._picked(fired.where(explains), self.explain_top, self.explain_weighted, explain_rng)
        scored = self._picked(fired.where(~explains), self.score_top, self.score_weighted, score_rng)
        return None if shown is None or scored is None else (np.concatenate(shown), np.concatenate(scored))

    def _picked(
        self, fired: _Fired, top: int, weighted: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Choose top and weighted centres, strongest first; None if there are too few.

        Without `leak`, no two windows overlap. Windows at random positions hardly ever do, so a judge would recognise
        activating windows of a latent that fires in long runs by the text that they share.
        """
        apart = self.window // 2 if self.leak else self.window - 1
        chosen: list[int] = []
        for i in np.argsort(-fired.value, kind="stable"):
            if len(chosen) == top:
                break
            if all(abs(fired.position[i] - fired.position[j]) > apart for j in chosen):
                chosen.append(int(i))
        if len(chosen) < top:
            return None
        weaker = fired.where(fired.value < fired.value[chosen].min())
        chance = np.square(weaker.value, dtype=np.float64)
        centres = fired.position[chosen]
        if not self.leak:
            return self._one_by_one(centres, weaker, chance, weighted, rng)
        if np.count_nonzero(chance) < weighted:
            return None
        if not weighted:
            return centres, np.empty(0, dtype=np.int64)
        drawn = rng.choice(weaker.position, weighted, replace=False, p=chance / chance.sum())
        return centres, drawn.astype(np.int64)

    def _one_by_one(
        self, top: NDArray[np.int64], weaker: _Fired, chance: NDArray[np.float64], n: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Draw weighted centres of windows that overlap neither the top windows nor each other."""
        centres = top.tolist()
        for centre in centres:
            chance[np.abs(weaker.position - centre) < self.window] = 0
        while len(centres) < len(top) + n:
            if not chance.any():
                return None
            centres.append(int(rng.choice(weaker.position, p=chance / chance.sum())))
            chance[np.abs(weaker.position - centres[-1]) < self.window] = 0
        return top, np.array(centres[len(top) :], dtype=np.int64)

    def _elsewhere(
        self,
        store: ActivationStore,
        latent: LatentId,
        scored: NDArray[np.int64],
        split: Split | None,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Draw distinct starts of windows at random positions, excluding windows already scored.

        All positions are equally likely. If all contexts were, silent windows would be from short ones more often than
        activating windows are, and show the beginnings and ends of documents more often.
        """
        contexts = np.flatnonzero(store.lengths >= store.lead + self.window)
        contexts = contexts[store.knows(latent.index, contexts)]
        if split is not None:
            contexts = contexts[~split.explains(store.documents[contexts])]
        if len(contexts) == 0:
            return contexts
        places = store.lengths[contexts].astype(np.int64) - store.lead - self.window + 1
        ends = np.cumsum(places)
        place = rng.integers(ends[-1], size=64 * self.non_activating)
        row = np.searchsorted(ends, place, side="right")
        begins: NDArray[np.int64] = contexts[row] * store.length + store.lead + place - (ends - places)[row]
        begins = begins[np.isin(begins, scored, invert=True) & store.counts_at(begins, self.window)]
        begins = begins[store.mask.reshape(-1)[begins + self.window // 2]]  # else only these centre on special tokens
        if not self.unverified:
            begins = begins[~store.fires_in(latent.index, begins, self.window)]
        _, first = np.unique(begins, return_index=True)
        return np.asarray(begins[np.sort(first)][: self.non_activating])


def _strongest_first(example: Example) -> float:
    return -example.max_activation
