"""Reads Neuronpedia's exported activations: some texts per latent, with its value on every token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, JsonValue

from saeval.plugin import ActivationSource, InputError, SpecPath, TokenDataset, file_sha256, read_json_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from saeval.plugin import ActivationWriter

_SUFFIXES = (".jsonl", ".jsonl.gz")
_CAVEAT = (
    "the texts are excerpts that Neuronpedia chose for each latent, mostly those with its strongest activations; "
    "firings, density, L0 and the share of live latents describe the excerpts, not the corpus, and silent windows come "
    "from a latent's own excerpts only."
)


class Neuronpedia(ActivationSource):
    """Reads `activations/batch-*.jsonl.gz` of Neuronpedia's exports.

    Each exported text is one context and one document, even if it was exported for several latents. An export states
    only how strongly *its own* latent fires on each token. Other latents count as unknown there, not as silent: a
    latent's silent windows come from the silent parts of its own texts, and a latent without enough of them is dropped.
    Texts are excerpts, mostly with a latent's strongest activations, so its density over a corpus is unknown; results
    carry a warning. Excerpts that overlap without being equal are not recognised and may appear on both sides of the
    split.

    As in other sources, negative values and values on special tokens are dropped; so are special tokens before the
    text.
    """

    name = "neuronpedia"

    path: SpecPath
    """A `.jsonl` or `.jsonl.gz` file, or a folder of them."""
    source: str | None = None
    """Neuronpedia's name of the hookpoint, such as `9-res-jb`; required if the files contain several."""
    n_latents: int | None = Field(default=None, ge=1)
    """Width of the dictionary; default: one more than the largest latent number."""
    special: tuple[str, ...] = (
        "<bos>", "<eos>", "<pad>", "<s>", "</s>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>",
        "<start_of_turn>", "<end_of_turn>",
    )  # fmt: skip
    """Special tokens."""

    def check(self) -> None:
        """Check that the files exist."""
        self._files()

    def fingerprint(self) -> JsonValue:
        """Return the hashes of the files, and the options."""
        options = self.model_dump(mode="json", exclude={"path"})
        files = self._files() if self.path.exists() else []
        return [self.name, [file_sha256(file) for file in files], options]

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            if found := sorted((f for f in self.path.iterdir() if f.name.endswith(_SUFFIXES)), key=_natural):
                return found
        elif self.path.is_file() and self.path.name.endswith(_SUFFIXES):
            return [self.path]
        raise InputError(f"Neuronpedia's activations {self.path}: no .jsonl or .jsonl.gz file there")

    def collect(self, writer: ActivationWriter) -> None:
        """Read all texts, number their tokens, and write the activations."""
        import numpy as np

        model, place, texts = self._texts()
        specials = frozenset(self.special)
        numbers = dict[str, int]()
        tokens = np.zeros((len(texts), max(map(len, texts))), dtype=np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = [numbers.setdefault(token, len(numbers)) for token in text]
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        ordinary = np.array([token not in specials for token in numbers])
        mask = (np.arange(tokens.shape[1]) < lengths[:, None]) & ordinary[tokens]
        plain = _plain(numbers)
        vocabulary = {
            i: b"" if token in specials else plain(token).encode(errors="replace") for token, i in numbers.items()
        }
        rows = len(texts)
        dataset = TokenDataset(
            tokens, lengths, mask, np.arange(rows, dtype=np.int32), tuple(map(str, range(rows))), vocabulary, lead=0
        )
        pairs = np.array(
            [(latent, row) for row, known in enumerate(texts.values()) for latent in known], dtype=np.int64
        )
        width = self.n_latents or int(pairs[:, 0].max()) + 1
        if width <= pairs[:, 0].max():
            raise InputError(
                f"Neuronpedia's activations {self.path}: latent {pairs[:, 0].max()} is not in a dictionary of {width}"
            )
        begin = writer.start(dataset, width)
        writer.restrict(pairs[:, 0], pairs[:, 1])
        writer.note(
            hookpoint=place or self.name, subject=model, architecture="unknown", made_by="Neuronpedia", caveat=_CAVEAT
        )
        for row, known in enumerate(texts.values()):
            if row < begin:
                continue
            values = np.array(list(known.values()), dtype=np.float32)  # [latents, tokens]
            at, which = np.nonzero(((values > 0) & mask[row, : values.shape[1]]).T)
            latents = np.array(list(known), dtype=np.int64)
            writer.add(row * tokens.shape[1] + at, latents[which], values[which, at])
            writer.advance(row + 1)

    def _texts(self) -> tuple[str, str, dict[tuple[str, ...], dict[int, list[float]]]]:
        """Return the model, the hookpoint, and the values by text and latent.

        Raises:
            InputError: If a file is damaged or malformed, or has several hookpoints and `source` does not choose one.
        """
        texts: dict[tuple[str, ...], dict[int, list[float]]] = {}
        places: dict[tuple[str, str], None] = {}
        for where, row in self._rows():
            model, place = str(row.get("modelId", "")), str(row.get("layer", row.get("source", "")))
            if self.source is not None and place != self.source:
                continue
            places[model, place] = None
            if len(places) > 1:
                names = ", ".join(f"{m} {p}" for m, p in places)
                raise InputError(f"{where}: the files have several hookpoints ({names:.200}); set `source` to one")
            latent, tokens, values = _checked(where, row)
            first = next((i for i, token in enumerate(tokens) if token not in self.special), len(tokens))
            if first < len(tokens):
                known = texts.setdefault(tuple(tokens[first:]), {})
                if known.setdefault(latent, values[first:]) != values[first:]:
                    raise InputError(f"{where}: values of latent {latent} contradict an earlier row with the same text")
        if not texts:
            raise InputError(
                f"Neuronpedia's activations {self.path}: has no texts" + (f" of {self.source}" if self.source else "")
            )
        ((model, place),) = places
        return model, place, texts

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in self._files():
            for where, row in read_json_lines(file):
                if not isinstance(row, dict):
                    raise InputError(f"{where}: should be an object with tokens and values")
                yield where, row


def _checked(where: str, row: dict[str, Any]) -> tuple[int, list[str], list[float]]:
    """Return a row's latent, tokens and values.

    Raises:
        InputError: If the row is malformed.
    """
    index, tokens, values = (row.get(key) for key in ("index", "tokens", "values"))
    if isinstance(index, bool) or not isinstance(index, int | str) or not re.fullmatch(r"[0-9]{1,9}", str(index)):
        raise InputError(f"{where}: index should be a latent number, not {str(index)!r:.40}")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{where}: tokens should be a list of texts")
    if not isinstance(values, list) or len(values) != len(tokens):
        raise InputError(f"{where}: values should be a list of {len(tokens)} numbers, one per token")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) < 3e38 for v in values):
        raise InputError(f"{where}: values should be finite numbers")
    return int(index), tokens, [float(value) for value in values]


def _plain(tokens: dict[str, int]) -> Callable[[str], str]:
    """Return a function that turns tokens into text: `▁` and `Ġ` are spaces, unless already replaced."""
    if any(token.startswith(" ") for token in tokens):
        return str
    table = str.maketrans({"▁": " "} if any("▁" in t for t in tokens) else {"Ġ": " ", "Ċ": "\n", "ĉ": "\t"})
    return lambda token: token.translate(table)


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sort `batch-2` before `batch-10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", file.name)]
