"""Fuzzing: does the judge, knowing the explanation, tell right marks from wrong ones? (paper §3.3)"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import cycle
from typing import Literal

from pydantic import Field

from saeval.plugin import REFERENCES, Context, Example, Examples, Judge, Need, Question, marked_line
from saeval_plugins.prompts import load

_FIXED_SEED = 22


class Fuzzing(Judge):
    """Shows windows with marked tokens; the right answer is whether the latent fires on the marked ones.

    In activating windows the tokens that fire are marked, and in as many others wrong ones.

    `other`: wrong marks are the tokens on which one other latent fires, the same for all windows of a latent
    (`Examples.decoy`). It fires as often, and its marks are as many, as long, in the same places, and recur as much
    from window to window. So windows of one prompt do not give each other away, and a judge that does not read the
    explanation is at chance. Where there is no such latent, as in a dictionary of one, wrong marks are `matched` and
    each window is asked about in a prompt of its own.

    The other ways take over the pattern of an activating window, mark for mark, and are kept for comparison. Their
    wrong marks fall on tokens that hardly recur while right ones do, which a judge can exploit unless `batch` is 1.

    `matched`: a non-activating window takes over the pattern, every pattern in turn in an order drawn for the latent.
    `active`: another activating window does, where none of the marks falls on a token that fires there. So the text
    says nothing either, and only the marked tokens do. One half of the windows, drawn at random, lends its patterns
    to the other; each pattern is used once, and windows that find no partner are omitted, on both sides, which
    leaves each pattern right as often as wrong.

    `fixed`: as EleutherAI/delphi marks them (commit 3c2e139), for comparison with its numbers. As many tokens as fire
    in an activating window on average are marked in each non-activating one, always at the same places: first the one
    at three quarters of the window, then those that a generator gives which is seeded alike each time. Those places
    tell right marks from wrong ones to a judge that cannot read.
    """

    name = "fuzzing"
    list_prompt = load("fuzzing.md")
    probability_prompt = load("fuzzing_probability.md")
    prompts = (list_prompt, probability_prompt, REFERENCES)

    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at this share of their window's maximum, or more, are marked."""
    negatives: Literal["other", "matched", "active", "fixed"] = "other"
    """Where wrong marks are placed: on the firings of one other latent; on tokens of non-activating windows, or of
    activating ones, that do not fire; `fixed`, at places that give them away, is for comparison with Delphi only."""

    def needs(self) -> frozenset[Need]:
        """The other latent's windows, where its firings are the wrong marks."""
        return super().needs() | (frozenset({"decoy"}) if self.negatives == "other" else frozenset())

    def questions(self, examples: Examples, context: Context) -> list[Question]:
        """Mark the tokens that fire in activating windows, and wrong ones as `negatives` says."""
        right: Sequence[Example] = examples.activating
        order = [int(i) for i in context.rng.permutation(len(right))]
        shuffled = [right[i] for i in order]
        decoy = examples.decoy if self.negatives == "other" else None
        if decoy is not None:
            wrong = [(window, self._marks(window)) for window in decoy.activating]
        elif self.negatives == "active":
            pairs = self._disjoint(shuffled[::2], shuffled[1::2])
            right, wrong = [lender for lender, _ in pairs], [(window, self._marks(lender)) for lender, window in pairs]
        elif self.negatives == "fixed":
            n = math.ceil(sum(int((e.activations != 0).sum()) for e in right) / len(right)) if right else 0
            wrong = [(window, self._fixed(window, n)) for window in examples.non_activating]
        else:
            lent = zip(cycle(shuffled), examples.non_activating, strict=False)
            wrong = [(window, self._marks(lender)) for lender, window in lent]
        alone = self.negatives == "other" and decoy is None
        return [
            *(Question(window, marked_line(window, self._marks(window)), True, alone) for window in right),
            *(Question(window, marked_line(window, marks), False, alone) for window, marks in wrong),
        ]

    def _marks(self, window: Example) -> list[bool]:
        return window.firing(self.threshold)

    def _fixed(self, window: Example, n: int) -> list[bool]:
        """Mark n tokens that do not fire, at the places that Delphi would mark."""
        length = len(window.tokens)
        free = [i for i, fires in enumerate(self._marks(window)) if not fires]
        first = [i for i in free if i == length - length // 4][:n]
        rest = [i for i in free if i not in first]
        # The standard library's generator, since from the same seed it makes the same draws as there.
        draw = random.Random(_FIXED_SEED)  # noqa: S311
        marked = {*first, *draw.sample(rest, min(n - len(first), len(rest)))}
        return [i in marked for i in range(length)]

    def _disjoint(self, lenders: list[Example], borrowers: list[Example]) -> list[tuple[Example, Example]]:
        """Pair as many windows as can be so that no mark of a lender falls on a token on which its borrower fires."""
        import numpy as np
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching

        if not lenders or not borrowers:
            return []
        marks = np.array([self._marks(window) for window in lenders], dtype=np.int64)
        fires = np.array([window.activations != 0 for window in borrowers], dtype=np.int64)
        partner = maximum_bipartite_matching(csr_array(marks @ fires.T == 0), perm_type="column")
        return [(lenders[i], borrowers[j]) for i, j in enumerate(partner) if j >= 0]
