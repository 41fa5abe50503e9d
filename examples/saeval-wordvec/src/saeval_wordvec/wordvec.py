"""Word vectors as activations: every word of a corpus is looked up, and its vector encoded."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import JsonValue, SerializeAsAny

from saeval.plugin import (
    ActivationSource,
    ActivationWriter,
    Coder,
    Corpus,
    InputError,
    Need,
    NeuronCoder,
    SparseCoder,
    SpecPath,
    TokenDataset,
    file_sha256,
)

_WORD = re.compile(r"\s*(?:\w+|[^\w\s])")
_EXAMPLE = Path(__file__).with_name("example")


class WordVectors(ActivationSource):
    """Looks up every word of a corpus in a table of vectors, and encodes what it finds; only firings above 0 count."""

    name = "wordvec"
    contract_options = {"path": _EXAMPLE / "vectors.txt", "corpus": {"path": _EXAMPLE / "prose.txt", "context": 8}}

    path: SpecPath
    """Text file of the vectors, one word with its numbers per line, as written by GloVe, word2vec and fastText."""
    corpus: Corpus
    """The text."""
    coder: SerializeAsAny[Coder] | None = None
    """Coder of the vectors: `{use: sae_lens, with: {path: …}}`. Without one, each dimension is a latent."""

    def check(self) -> None:
        """Check that the files exist."""
        self.corpus.check()
        if not self.path.is_file():
            raise InputError(f"word vectors {self.path}: no such file")
        if self.coder is not None:
            self.coder.check()

    def fingerprint(self) -> JsonValue:
        """Return what activations depend on: vectors, text and the coder's weights."""
        coder = self.coder.fingerprint() if self.coder is not None else None
        return [self.name, file_sha256(self.path), self.corpus.fingerprint(), coder]

    def offers(self) -> frozenset[Need]:
        """Offer the coder's weights; there is no live model."""
        return frozenset({"coder"})

    def weights(self) -> SparseCoder:
        """Return the coder's weights."""
        return self._weights

    def with_coder(self, coder: Coder) -> WordVectors:
        """Return this source with another coder."""
        return self.model_copy(update={"coder": coder})

    @cached_property
    def _weights(self) -> SparseCoder:
        d_in = self._table[1].shape[1]
        return NeuronCoder(d_in) if self.coder is None else self.coder.load("cpu", d_in)

    @cached_property
    def _table(self) -> tuple[dict[str, int], np.ndarray]:
        """Row of each word, and the vectors.  [words, dimensions]"""
        words: dict[str, int] = {}
        rows: list[list[float]] = []
        with self.path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                word, *numbers = line.rstrip().split(" ")
                if number == len(numbers) == 1:  # word2vec's first line: how many words, and how many dimensions
                    continue
                try:
                    rows.append([float(n) for n in numbers])
                except ValueError:
                    raise InputError(f"word vectors {self.path}:{number}: should be a word and its numbers") from None
                if len(rows[-1]) != len(rows[0]) or not rows[0]:
                    raise InputError(
                        f"word vectors {self.path}:{number}: {len(rows[-1])} numbers, the first line has {len(rows[0])}"
                    )
                words.setdefault(word, len(rows) - 1)
        if not rows:
            raise InputError(f"word vectors {self.path}: holds no vectors")
        return words, np.array(rows, dtype=np.float32)

    def collect(self, writer: ActivationWriter) -> None:
        """Encode each word once, then write its activations at every position."""
        import torch

        row_of, vectors = self._table
        numbers: dict[str, int] = {}  # a word with the space before it, by its token id

        def encode(text: str) -> list[int]:
            return [numbers.setdefault(word, len(numbers)) for word in _WORD.findall(text)]

        tokens, lengths, documents, names = self.corpus.pack(encode, lead=[], pad=0)
        mask = np.arange(tokens.shape[1]) < lengths[:, None]
        known = np.array([row_of.get(word.strip().lower(), -1) for word in numbers])
        sparse = self._weights.encode(torch.from_numpy(vectors[known]))
        fires = sparse.values.numpy() > 0
        rows, latents, values = (column.numpy()[fires] for column in sparse)
        has_vector = known[rows] >= 0  # words without a vector were given the last one
        rows, latents, values = rows[has_vector], latents[has_vector], values[has_vector]
        first = np.searchsorted(rows, np.arange(len(numbers) + 1))
        vocabulary = {number: word.encode() for word, number in numbers.items()}
        begin = writer.start(
            TokenDataset(tokens, lengths, mask, documents, names, vocabulary, 0), self._weights.n_latents
        )
        writer.note(
            hookpoint="word vectors", subject=self.path.name, architecture=self._weights.architecture,
            unknown_words=round(float((known[tokens[mask]] < 0).mean()), 4),
        )  # fmt: skip
        for context in range(begin, len(tokens)):
            for offset, token in enumerate(tokens[context, : lengths[context]]):
                here = slice(first[token], first[token + 1])
                position = np.full(here.stop - here.start, context * tokens.shape[1] + offset, dtype=np.int64)
                writer.add(position, latents[here], values[here])
            writer.advance(context + 1)
