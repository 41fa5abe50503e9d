"""The lens explains a latent by the tokens that its decoder direction promotes, without reading text (paper §3.2)."""

from __future__ import annotations

import asyncio

from pydantic import Field, JsonValue

from saeval.plugin import Context, Examples, Explainer, Explanation, InputError, Need, SpecPath, file_sha256, one_line
from saeval_plugins.steering import written

_READING = 2  # increased whenever the same direction gives other tokens than before


class Lens(Explainer):
    """Names the tokens whose logits the latent's decoder direction raises most (logit lens, or tuned lens if set).

    The final norm and the unembedding are applied directly to the direction, skipping all later blocks. Tokens that
    differ only in case or in a leading space count as one. Not available for models with an unknown unembedding, or for
    hookpoints that do not write linearly into the residual stream.
    """

    name = "lens"

    k: int = Field(default=10, ge=1)
    """Number of tokens to name."""
    tuned_lens: SpecPath | None = None
    """Folder of a tuned lens for this model (with `params.pt`), which is applied to the direction first."""

    def needs(self) -> frozenset[Need]:
        """Return the needs: the direction and the model's unembedding."""
        return frozenset({"subject", "coder"})

    def check(self) -> None:
        """Check that the tuned lens exists."""
        if self.tuned_lens is not None and not (self.tuned_lens / "params.pt").is_file():
            raise InputError(f"tuned lens {self.tuned_lens}: has no params.pt; set `tuned_lens` to a folder with one")

    def fingerprint(self) -> JsonValue:
        """Return the options, the version of the lens and the hash of the tuned lens."""
        return [super().fingerprint(), _READING, self.tuned_lens and file_sha256(self.tuned_lens / "params.pt")]

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Name the tokens that the direction promotes."""
        words = await asyncio.to_thread(self._words, context)
        return Explanation(text=f"Promotes the words: {', '.join(words)}", notes={"tokens": words})

    def _words(self, context: Context) -> list[str]:
        subject, direction = written(context)
        ranked = subject.promoted(direction, self.tuned_lens).topk(8 * self.k).indices.tolist()
        texts = [subject.text([token]).casefold() for token in ranked]
        # `one_line` writes white space as letters, so tokens are filtered before.
        words = [one_line(text) for text in texts if any(c.isalnum() for c in text)]
        return list(dict.fromkeys(words))[: self.k]
