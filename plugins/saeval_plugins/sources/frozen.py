"""Reads the windows of a frozen run instead of collecting activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import JsonValue

from saeval.plugin import ActivationSource, Coder, SpecPath, TokenDataset, file_sha256
from saeval_plugins._frozen import read_frozen

if TYPE_CHECKING:
    from saeval.plugin import ActivationWriter


class FrozenSource(ActivationSource):
    """Reads the windows of a frozen run; each is a context in which only the recorded latents' activations are known.

    Together with the sampler, explainer, scorers and language model named `frozen`, it repeats a run without its model,
    coder, corpus and language models. Coder baselines read the recorded cell of the same name.
    """

    name = "frozen"

    path: SpecPath
    """The frozen run, `.jsonl.xz`."""
    cell: str
    """Name of the recorded cell."""

    def check(self) -> None:
        """Read the file, and check that it has the cell."""
        read_frozen(self.path).cell(self.cell, self.path)

    def fingerprint(self) -> JsonValue:
        """Return the file's hash, independent of its location, and the cell."""
        return [self.name, file_sha256(self.path) if self.path.is_file() else None, self.cell]

    def with_coder(self, coder: Coder) -> ActivationSource:
        """Return the recorded cell of a baseline coder."""
        return self.model_copy(update={"cell": coder.name})

    def collect(self, writer: ActivationWriter) -> None:
        """Write the windows and their activations."""
        import numpy as np

        cell = read_frozen(self.path).cell(self.cell, self.path)
        numbers: dict[str, int] = {}
        rows = [[numbers.setdefault(token, len(numbers)) for token in window] for window in cell.windows]
        tokens = np.array(rows, dtype=np.int32)
        lengths = np.full(len(rows), tokens.shape[1], dtype=np.int32)
        vocabulary = {number: token.encode(errors="replace") for token, number in numbers.items()}
        names = tuple(map(str, range(max(cell.documents) + 1)))
        documents = np.array(cell.documents, dtype=np.int32)
        dataset = TokenDataset(tokens, lengths, np.ones_like(tokens, dtype=bool), documents, names, vocabulary, lead=0)
        begin = writer.start(dataset, cell.n_latents)
        known = np.array(
            [(i, row) for i, latent in cell.latents.items() for row in _rows(latent.sides)], dtype=np.int64
        )
        writer.restrict(known[:, 0], known[:, 1])
        writer.note(**cell.facts, frozen=self.cell)
        fires: dict[int, list[tuple[int, int, float]]] = {}
        for i, latent in cell.latents.items():
            for row, pairs in latent.fires.items():
                fires.setdefault(row, []).extend((int(place), i, value) for place, value in pairs)
        for row in range(begin, len(rows)):
            here = sorted(fires.get(row, ()))
            if here:
                place, latents, value = (np.array(column) for column in zip(*here, strict=True))
                writer.add(row * tokens.shape[1] + place, latents.astype(np.int64), value.astype(np.float32))
            writer.advance(row + 1)


def _rows(sides: object) -> list[int]:
    assert isinstance(sides, dict)
    return sorted({row for side in sides.values() for group in side for row in group})
