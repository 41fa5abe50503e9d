"""The top-token baseline lists the tokens that carry most of the activation, without an LLM."""

from __future__ import annotations

from collections import defaultdict

from pydantic import Field

from saeval.plugin import Context, Examples, Explainer, Explanation, one_line


class TopTokens(Explainer):
    """Names the tokens with the largest sums of activation over the explain windows, strongest first.

    Tokens that differ only in case or in a leading space count as one.
    """

    name = "top_tokens"

    k: int = Field(default=8, ge=1)
    """Maximum number of tokens to name."""

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Add up activations by token."""
        weight: dict[str, float] = defaultdict(float)
        for example in examples.activating:
            for at, activation in zip(example.shown_at(), example.activations.tolist(), strict=True):
                token = example.tokens[at]
                if activation > 0 and (word := one_line(token.casefold()) or repr(token)):
                    weight[word] += activation
        if not weight:
            return Explanation.failed("no token is active")
        strongest = sorted(weight, key=lambda word: (-weight[word], word))[: self.k]
        return Explanation(text=f"The words: {', '.join(strongest)}")
