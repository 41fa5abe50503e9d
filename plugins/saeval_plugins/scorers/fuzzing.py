"""Fuzzing: does the judge, knowing the explanation, tell right marks from wrong ones? (paper §3.3)"""

from __future__ import annotations

from itertools import cycle

from pydantic import Field

from saeval import Context, Examples
from saeval_plugins.prompts import load, marked_line
from saeval_plugins.scorers._judge import REFERENCES, Judge, Question


class Fuzzing(Judge):
    """Shows windows with marked tokens; the right answer is whether the latent fires on the marked ones.

    In activating windows the tokens that fire are marked. Each non-activating window takes over, mark for mark, the
    pattern of one of them, every pattern in turn in an order drawn for the latent. So the number, length and place
    of marks say nothing: a judge that sees only those can do no better than chance.
    """

    name = "fuzzing"
    list_prompt = load("fuzzing.md")
    probability_prompt = load("fuzzing_probability.md")
    prompts = (list_prompt, probability_prompt, REFERENCES)

    threshold: float = Field(default=0.3, ge=0, le=1)
    """Tokens at this share of their window's maximum, or more, are marked."""

    def questions(self, examples: Examples, context: Context) -> list[Question]:
        """Mark the firing tokens of activating windows, and the same places in the others."""
        patterns = [window.firing(self.threshold) for window in examples.activating]
        right = [
            Question(window, marked_line(window, marks), True)
            for window, marks in zip(examples.activating, patterns, strict=True)
        ]
        borrowed = cycle([patterns[i] for i in context.rng.permutation(len(patterns))])
        wrong = [
            Question(window, marked_line(window, marks), False)
            for window, marks in zip(examples.non_activating, borrowed, strict=False)
        ]
        return right + wrong
