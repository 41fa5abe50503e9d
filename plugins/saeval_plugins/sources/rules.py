"""Plants latents with known meaning on real text: each fires on the words that a pattern matches."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field, JsonValue, ValidationError, field_validator

from saeval.plugin import (
    ActivationSource,
    Corpus,
    Documented,
    InputError,
    SpecPath,
    TokenDataset,
    derive_rng,
    file_sha256,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from saeval.plugin import ActivationWriter, Need

TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")
"""A word or punctuation mark, with the space before it."""


class Rule(Documented):
    """One planted latent."""

    latent: int = Field(ge=0)
    """Number of the latent: its position in the list, from 0."""
    explanation: str = Field(min_length=1)
    """What the latent means, in words: the true explanation."""
    pattern: re.Pattern[str]
    """Regular expression; the latent fires on every word that overlaps a match (or its first group)."""
    ignore_case: bool = False
    """Whether to ignore case."""

    @field_validator("pattern")
    @classmethod
    def _matches_something(cls, value: re.Pattern[str]) -> re.Pattern[str]:
        if value.match(""):
            raise ValueError("the pattern matches the empty text, so it would fire everywhere")
        return value


class Rules(ActivationSource):
    """Plants latents on a corpus by rules, so that each latent's true explanation is known.

    Words and punctuation marks are the tokens. The `precomputed` explainer can read the same rules file for every
    latent's true explanation. The rules apply to any text, so scorers that write texts also work. Results are marked as
    synthetic.
    """

    name = "rules"
    synthetic = True

    path: SpecPath
    """YAML file of the rules: a list of `latent`, `explanation`, `pattern` and, optionally, `ignore_case`."""
    corpus: Corpus
    """The text."""
    seed: int = 0
    """Seed of the activation strengths."""

    def check(self) -> None:
        """Check that the rules are valid and the corpus exists."""
        self._rules()
        self.corpus.check()

    def fingerprint(self) -> JsonValue:
        """Return what activations depend on."""
        sha = file_sha256(self.path) if self.path.is_file() else None
        return [self.name, sha, self.corpus.fingerprint(), self.seed]

    def _rules(self) -> list[Rule]:
        import yaml

        try:
            rows = yaml.safe_load(self.path.read_text(encoding="utf-8"))
            if not isinstance(rows, list) or not rows:
                raise InputError(f"rules {self.path}: should be a list of `explanation` and `pattern`")
            rules = [Rule.model_validate(row) for row in rows]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"rules {self.path}: cannot be read ({type(error).__name__})") from None
        except yaml.YAMLError as error:
            raise InputError(f"rules {self.path}: not YAML ({str(error).splitlines()[0]})") from None
        except ValidationError as error:
            first: Any = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"rules {self.path}: {place}: {first['msg']} (of {first['input']!r:.80})") from None
        if wrong := [i for i, rule in enumerate(rules) if rule.latent != i]:
            raise InputError(
                f"rules {self.path}: number the latents in order; the one at position {wrong[0]} is not {wrong[0]}"
            )
        return rules

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(r.pattern.pattern, re.IGNORECASE if r.ignore_case else 0) for r in self._rules()]

    def offers(self) -> frozenset[Need]:
        """Return what this source offers: activations on any text."""
        return frozenset({"text"})

    def activations_on(self, text: str, latent: int) -> list[tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Apply a latent's rule to any text, with strengths 1 to 4."""
        import numpy as np

        if not 0 <= latent < len(self._patterns):
            raise InputError(f"no latent {latent} among {len(self._patterns)} rules")
        spans = [match.span() for match in TOKEN.finditer(text)]
        values = np.zeros(len(spans), dtype=np.float32)
        fires = list(_matched_words(self._patterns[latent], text, spans))
        values[fires] = derive_rng(self.seed, "rules", text, latent).uniform(1, 4, size=len(fires))
        words = tuple(text[begin:end] for begin, end in spans)
        size = self.corpus.length
        return [(words[low : low + size], values[low : low + size]) for low in range(0, len(words), size)]

    def collect(self, writer: ActivationWriter) -> None:
        """Split the text into words, and write each rule's activations, with strengths 1 to 4."""
        import numpy as np

        rules = self._patterns
        dataset, texts = self._words()
        length, size = dataset.tokens.shape[1], self.corpus.length
        words_of = np.bincount(dataset.documents, weights=dataset.lengths - dataset.lead).astype(int)
        begin = writer.start(dataset, len(rules))
        writer.note(hookpoint="rules", subject="planted rules", architecture="rules")
        row = 0
        for text, n_words in zip(texts, words_of, strict=False):
            spans = [match.span() for match in TOKEN.finditer(text)][:n_words]
            firing: list[list[int]] = [[] for _ in spans]
            for latent, rule in enumerate(rules):
                for at in _matched_words(rule, text, spans):
                    firing[at].append(latent)
            for low in range(0, len(spans), size):
                here = [
                    (row * length + dataset.lead + i, latent)
                    for i, latents in enumerate(firing[low : low + size])
                    for latent in latents
                ]
                if row >= begin and here:
                    position, latents = (np.array(column, dtype=np.int64) for column in zip(*here, strict=True))
                    strength = derive_rng(self.seed, "rules", row).uniform(1, 4, size=len(here))
                    writer.add(position, latents, strength.astype(np.float32))
                row += 1
                if row > begin:
                    writer.advance(row)

    def _words(self) -> tuple[TokenDataset, list[str]]:
        """Return the corpus as words, and the documents' texts."""
        numbers: dict[str, int] = {}
        texts: list[str] = []

        def encode(text: str) -> list[int]:
            texts.append(text)
            return [numbers.setdefault(word, len(numbers) + 1) for word in TOKEN.findall(text)]

        tokens, lengths, documents, names = self.corpus.pack(encode, lead=[0], pad=0)
        used = {0: b"", **{number: word.encode() for word, number in numbers.items()}}
        return TokenDataset(tokens, lengths, tokens > 0, documents, names, used, lead=1), texts


def _matched_words(rule: re.Pattern[str], text: str, spans: list[tuple[int, int]]) -> Iterator[int]:
    """Yield the words that overlap the rule's matches, each once, in order."""
    at, last = 0, -1
    for match in rule.finditer(text):
        begin, end = match.span(1 if rule.groups else 0)
        while at < len(spans) and spans[at][1] <= begin:
            at += 1
        word = at
        while word < len(spans) and spans[word][0] < end:
            # A word includes the space before it; a match of that space alone does not count.
            if word > last and end > begin and text[max(begin, spans[word][0]) : min(end, spans[word][1])].strip():
                yield word
                last = word
            word += 1
