"""The lens: explains a latent by the tokens its direction promotes, without reading text. (paper §3.2)"""

from __future__ import annotations

import asyncio

from pydantic import Field, JsonValue

from saeval.plugin import Context, Examples, Explainer, Explanation, InputError, Need, SpecPath, file_sha256, one_line
from saeval_plugins.steering import written

_READING = 2  # one more whenever the same direction comes to promote other tokens


class Lens(Explainer):
    """Names the tokens whose logits the latent's decoder direction raises most (logit lens; tuned lens when given).

    The direction passes through the final norm and the unembedding, skipping all later blocks. Tokens that differ only
    in case or in the space before them count as one. Not available for models with an unknown form of unembedding, or
    hookpoints that do not write linearly into the residual stream.
    """

    name = "lens"

    k: int = Field(default=10, ge=1)
    """Tokens to name."""
    tuned_lens: SpecPath | None = None
    """Folder of a tuned lens for this model (with `params.pt`), which first translates the direction."""

    def needs(self) -> frozenset[Need]:
        """The direction, and the model's unembedding."""
        return frozenset({"subject", "coder"})

    def check(self) -> None:
        """Check that the tuned lens exists."""
        if self.tuned_lens is not None and not (self.tuned_lens / "params.pt").is_file():
            raise InputError(f"tuned lens {self.tuned_lens}: has no params.pt")

    def fingerprint(self) -> JsonValue:
        """Add the version of the lens and the hash of the tuned lens."""
        return [super().fingerprint(), _READING, self.tuned_lens and file_sha256(self.tuned_lens / "params.pt")]

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Read the direction."""
        words = await asyncio.to_thread(self._words, context)
        return Explanation(text=f"Promotes the words: {', '.join(words)}", notes={"tokens": words})

    def _words(self, context: Context) -> list[str]:
        subject, direction = written(context)
        ranked = subject.promoted(direction, self.tuned_lens).topk(8 * self.k).indices.tolist()
        texts = [subject.text([token]).casefold() for token in ranked]
        words = [
            one_line(text) for text in texts if any(c.isalnum() for c in text)
        ]  # white space is spelt with letters
        return list(dict.fromkeys(words))[: self.k]
