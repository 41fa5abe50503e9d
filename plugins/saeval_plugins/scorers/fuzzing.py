"""Fuzzing measures whether a judge, given the explanation, distinguishes correct from wrong marks (paper §3.3)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from saeval.plugin import REFERENCES, Context, Example, Examples, Judge, Need, Question, marked_line
from saeval_plugins.prompts import load
from saeval_plugins.scorers._patterns import beginning, lent

if TYPE_CHECKING:
    import numpy as np

_FIXED_SEED = 22


class Fuzzing(Judge):
    """Shows windows with marked tokens and asks whether the latent fires on them.

    In activating windows, firing tokens are marked; in equally many other windows, wrong tokens, chosen by `negatives`.

    `other`: wrong marks are the tokens on which one other latent fires, the same latent for all windows
    (`Examples.decoy`). Its marks match in number, length, position and recurrence across windows. The windows of a
    prompt therefore do not reveal each other's answers, and a judge that ignores the explanation scores at chance. If
    there is no such latent, as in a dictionary with one latent, or if windows are centred on activations, as by
    `saebench`, wrong marks are `matched` and each window has its own prompt.

    The other modes copy the pattern of marks from an activating window and are kept for comparison. Their wrong marks
    are on tokens that rarely recur across windows, while correct marks are on tokens that do; a judge can exploit this
    unless `batch` is 1.

    `matched`: the pattern is copied to a non-activating window; patterns are used equally often. `active`: the pattern
    is copied to another activating window in which no mark is on a firing token, so that only the marked tokens carry
    information, not the text. Of each two windows that begin alike, one provides a pattern, drawn at random, and the
    other gets one. Each pattern is used once, and windows without a partner are dropped on both sides, so each pattern
    is correct as often as wrong. Both modes copy patterns between windows that begin as alike as possible relative to
    tiles.

    `fixed`: as in EleutherAI/delphi (commit 3c2e139), for comparison with its numbers. Each non-activating window gets
    as many marks as an activating window has on average, always at the same positions: first at three quarters of the
    window, then at positions drawn with a fixed seed. The positions alone reveal the wrong marks, even to a judge that
    does not understand the text.
    """

    name = "fuzzing"
    list_prompt = load("fuzzing.md")
    probability_prompt = load("fuzzing_probability.md")
    prompts = (list_prompt, probability_prompt, REFERENCES)

    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at or above this share of their window's maximum are marked."""
    negatives: Literal["other", "matched", "active", "fixed"] = "other"
    """Where wrong marks are placed: `other`, on tokens where one other latent fires; `matched` and `active`, on silent
    tokens of non-activating or activating windows; `fixed`, at positions that reveal the answer, only for comparison
    with Delphi."""

    def needs(self) -> frozenset[Need]:
        """Return the judge's needs and, for `negatives: other`, another latent's windows."""
        return super().needs() | (frozenset({"decoy"}) if self.negatives == "other" else frozenset())

    def marks_from(self) -> float:
        """Return the threshold of marks."""
        return self.threshold

    def questions(self, examples: Examples, context: Context) -> list[Question]:
        """Mark firing tokens in activating windows, and wrong ones according to `negatives`."""
        shown = examples.activating
        order = [int(i) for i in context.rng.permutation(len(shown))]
        shuffled = [shown[i] for i in order]
        right = list(zip(shown, examples.firing(self.threshold), strict=True))
        decoy = examples.decoy if self.negatives == "other" else None
        if decoy is not None:
            wrong = list(zip(decoy.activating, decoy.firing(self.threshold), strict=True))
        elif self.negatives == "active":
            pairs = self._disjoint(*_halves(shuffled, context.rng))
            right = [(lender, self._marks(lender)) for lender, _ in pairs]
            wrong = [(window, marks) for (_, window), (_, marks) in zip(pairs, right, strict=True)]
        elif self.negatives == "fixed":
            n = math.ceil(sum(int((e.activations != 0).sum()) for e in shown) / len(shown)) if shown else 0
            wrong = [(window, self._fixed(window, n)) for window in examples.non_activating]
        else:
            silent = examples.non_activating
            lenders = [lender for lender, _ in zip(cycle(shuffled), silent, strict=False)]
            wrong = [(silent[j], self._marks(lenders[i])) for i, j in lent(lenders, silent)]
        alone = self.negatives == "other" and decoy is None
        if alone:  # without weights, like windows of decoys; else natural rates would be those of these latents alone
            wrong = [(replace(window, weight=None), marks) for window, marks in wrong]
        return [
            *(Question(window, marked_line(window, marks), True, alone) for window, marks in right),
            *(Question(window, marked_line(window, marks), False, alone) for window, marks in wrong),
        ]

    def _marks(self, window: Example) -> list[bool]:
        return window.firing(self.threshold)

    def _fixed(self, window: Example, n: int) -> list[bool]:
        """Mark n tokens that do not fire, at the positions that Delphi would mark."""
        length = len(window.tokens)
        free = [i for i, fires in enumerate(self._marks(window)) if not fires]
        first = [i for i in free if i == length - length // 4][:n]
        rest = [i for i in free if i not in first]
        # The standard library's generator makes the same draws as Delphi from the same seed.
        draw = random.Random(_FIXED_SEED)  # noqa: S311
        marked = {*first, *draw.sample(rest, min(n - len(first), len(rest)))}
        return [i in marked for i in range(length)]

    def _disjoint(self, lenders: list[Example], borrowers: list[Example]) -> list[tuple[Example, Example]]:
        """Pair as many windows as possible such that no mark of the lender is on a firing token of the borrower."""
        import numpy as np

        marks = np.array([self._marks(window) for window in lenders], dtype=np.int64)
        fires = np.array([window.over_characters(window.activations != 0) for window in borrowers], dtype=np.int64)
        overlap = marks @ fires.T > 0 if lenders and borrowers else None
        return [(lenders[i], borrowers[j]) for i, j in lent(lenders, borrowers, overlap)]


def _halves(windows: Sequence[Example], rng: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Return two halves with windows that begin alike: of each two neighbours by beginning, either goes to either half.

    If neighbours went to the halves in turn, one half would begin earlier. An odd window is drawn like the others.
    """
    alike = sorted(windows, key=beginning)
    first = rng.integers(2, size=(len(alike) + 1) // 2)
    halves: tuple[list[Example], list[Example]] = ([], [])
    for i, window in enumerate(alike):
        halves[(i + int(first[i // 2])) % 2].append(window)
    return halves
