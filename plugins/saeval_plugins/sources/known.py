"""Generates text in which fifty latents with exactly known meaning fire rarely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from saeval.plugin import ActivationSource, InputError, TokenDataset, derive_rng
from saeval_plugins._known import COMPANIONS, FILLER, N_LATENTS, neighbour_of, words_of
from saeval_plugins.sources.rules import TOKEN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saeval.plugin import ActivationWriter, Need

_WINDOW, _PER_CONTEXT, _CONTEXTS = 32, 4, 2  # tokens per window, windows per context, contexts per document


class Known(ActivationSource):
    """Plants fifty latents that fire rarely, each on two words, to test whether scorers detect wrong explanations.

    The words are names of animals, tools, fruits, musical instruments and clothes, ten latents per category. Each
    window in which a latent fires also contains a companion word that occurs with this latent only, and often a word of
    the next latent in its category. The explainers `known`, `twice_too_broad`, … explain these latents, and the model
    `oracle/judge` judges them without error. The latents can also be evaluated on any other text. Results are marked as
    synthetic.
    """

    name = "known"
    synthetic = True

    documents: int = Field(default=750, ge=2)
    """Number of documents, of eight windows of 32 words each."""
    rate: float = Field(default=0.005, gt=0, le=0.05)
    """Share of windows that contain a latent's words."""
    together: float = Field(default=0.3, ge=0, le=1)
    """Share of these windows that also contain a word of the next latent."""
    seed: int = 0
    """Seed of the generated text."""

    def offers(self) -> frozenset[Need]:
        """Return what this source offers: activations on any text."""
        return frozenset({"text"})

    def activations_on(self, text: str, latent: int) -> list[tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Return a latent's activations on any text: 1 to 4 on its words."""
        import numpy as np

        if not 0 <= latent < N_LATENTS:
            raise InputError(f"latent {latent} is not among the {N_LATENTS} known ones")
        words, own = tuple(TOKEN.findall(text)), words_of(latent)
        fires = np.array([word.strip() in own for word in words], dtype=np.bool_)
        strength = derive_rng(self.seed, "known", text, latent).uniform(1, 4, size=len(words))
        return [(words, np.where(fires, strength, 0).astype(np.float32))]

    def collect(self, writer: ActivationWriter) -> None:
        """Write the text and each latent's activations, with strengths 1 to 4."""
        import numpy as np

        dataset, latents = self._text()
        begin = writer.start(dataset, N_LATENTS)
        writer.note(hookpoint="known", subject="known latents", architecture="known")
        strength = derive_rng(self.seed, "known strengths").uniform(1, 4, size=latents.shape).astype(np.float32)
        for row in range(begin, len(latents)):
            offset = np.flatnonzero(latents[row] >= 0)
            writer.add(row * latents.shape[1] + offset, latents[row, offset], strength[row, offset])
            writer.advance(row + 1)

    def _text(self) -> tuple[TokenDataset, NDArray[np.int64]]:
        """Return the documents, and the latent that fires on each token (-1 if none).  [contexts, length]"""
        import numpy as np

        rng = derive_rng(self.seed, "known", self.documents, self.rate, self.together)
        vocabulary = ["", *FILLER, *COMPANIONS, *(word for latent in range(N_LATENTS) for word in words_of(latent))]
        number = {word: i for i, word in enumerate(vocabulary)}
        windows = self.documents * _CONTEXTS * _PER_CONTEXT
        tokens = rng.integers(1, 1 + len(FILLER), size=(windows, _WINDOW))
        fires = np.full(tokens.shape, -1)
        free = [rng.permutation(_WINDOW).tolist() for _ in range(windows)]  # places not yet taken

        def put(window: int, word: str, latent: int) -> None:
            if free[window]:
                at = free[window].pop()
                tokens[window, at], fires[window, at] = number[word], latent

        for latent in range(N_LATENTS):
            for window in np.flatnonzero(rng.random(windows) < self.rate).tolist():
                put(window, rng.choice(words_of(latent)), latent)
                put(window, COMPANIONS[latent], -1)
                if rng.random() < self.together:
                    beside = neighbour_of(latent)
                    put(window, rng.choice(words_of(beside)), beside)
        shape = (self.documents * _CONTEXTS, _PER_CONTEXT * _WINDOW)
        lead = ((0, 0), (1, 0))
        padded = np.pad(tokens.reshape(shape), lead).astype(np.int32)
        dataset = TokenDataset(
            tokens=padded,
            lengths=np.full(shape[0], shape[1] + 1, dtype=np.int32),
            mask=padded > 0,
            documents=np.repeat(np.arange(self.documents, dtype=np.int32), _CONTEXTS),
            document_names=tuple(f"document {i}" for i in range(self.documents)),
            vocabulary={0: b"", **{i: f" {word}".encode() for word, i in number.items() if word}},
            lead=1,
        )
        return dataset, np.pad(fires.reshape(shape), lead, constant_values=-1)
