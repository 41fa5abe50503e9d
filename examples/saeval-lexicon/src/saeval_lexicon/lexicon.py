"""Lexicon: which class of words does a latent fire on?"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path

from pydantic import Field, JsonValue

from saeval.plugin import Context, Examples, Explainer, Explanation, InputError, SpecPath, file_sha256

OWN = Path(__file__).with_name("lexicon.txt")


class Lexicon(Explainer):
    """Names the class of words that covers most of a latent's activation, and its strongest words. Asks no model."""

    name = "lexicon"

    share: float = Field(default=0.6, gt=0, le=1)
    """Minimum share of the activation on words of one class; below it there is no explanation."""
    words: int = Field(default=3, ge=1)
    """Maximum number of words named with the class."""
    path: SpecPath = OWN
    """The lexicon, one class per line: `colours: red green blue`."""

    def check(self) -> None:
        """Read the lexicon."""
        self._classes  # noqa: B018 - reading it is the check

    def fingerprint(self) -> JsonValue:
        """Return the options, and the lexicon's hash instead of its path."""
        return [self.name, self.share, self.words, file_sha256(self.path)]

    @cached_property
    def _classes(self) -> dict[str, frozenset[str]]:
        try:
            lines = [line.partition(":") for line in self.path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"lexicon {self.path}: cannot be read ({type(error).__name__})") from None
        if wrong := [name for name, _, words in lines if not words.split()]:
            raise InputError(f"lexicon {self.path}: {wrong[0]!r} should be a line such as `colours: red green blue`")
        return {name.strip(): frozenset(words.casefold().split()) for name, _, words in lines}

    async def explain(self, examples: Examples, context: Context) -> Explanation:
        """Sum activation by word, then by class."""
        weight: Counter[str] = Counter()
        for window in examples.activating:
            for token, activation in zip(window.tokens, window.activations, strict=True):
                if activation > 0:
                    weight[token.strip().casefold()] += float(activation)
        if not weight:
            return Explanation.failed("no token is active")
        covered = {name: sum(weight[word] for word in words) for name, words in self._classes.items()}
        best = max(covered, key=lambda name: covered[name])
        if covered[best] < self.share * weight.total():
            found = f"{covered[best] / weight.total():.0%} of the activation falls on {best}"
            return Explanation.failed(f"no class of the lexicon covers enough: {found}")
        named = [word for word, _ in weight.most_common() if word in self._classes[best]][: self.words]
        return Explanation(text=f"{best}, such as " + ", ".join(f"'{word}'" for word in named))
