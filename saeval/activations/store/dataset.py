"""Reads and writes a tokenised corpus on disk."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from saeval.activations.store.files import map_array
from saeval.activations.tokens import TokenDataset

_ARRAYS = ("tokens", "lengths", "mask", "documents")


def write_dataset(folder: Path, data: TokenDataset) -> None:
    """Write the tokens, the bytes of each token that occurs, and the documents' names."""
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(data, name))
    ids = sorted(data.vocabulary)
    pieces = [data.vocabulary[i] for i in ids]
    np.save(folder / "vocabulary_ids.npy", np.array(ids, dtype=np.int32))
    np.save(folder / "vocabulary_ends.npy", np.cumsum([len(p) for p in pieces], dtype=np.int64))
    np.save(folder / "vocabulary_bytes.npy", np.frombuffer(b"".join(pieces), dtype=np.uint8))
    (folder / "documents.json").write_text(json.dumps(data.document_names, ensure_ascii=False), encoding="utf-8")


def shared_dataset(folder: Path, make: Callable[[], TokenDataset]) -> TokenDataset:
    """Return a tokenised corpus that several processes share: one makes and saves it, the others wait, all read it.

    Args:
        folder: Folder of the tokens; its name identifies corpus and tokenizer.
        make: Tokenises the corpus.
    """
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.exists():
            data, made = make(), folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
            made.mkdir()
            write_dataset(made, data)
            (made / "lead.json").write_text(json.dumps([data.lead, data.warnings]))
            made.rename(folder)
    return _read(folder)


def _read(folder: Path) -> TokenDataset:
    tokens, lengths, mask, documents = (map_array(folder / f"{name}.npy") for name in _ARRAYS)
    ids, ends, blob = (np.load(folder / f"vocabulary_{name}.npy") for name in ("ids", "ends", "bytes"))
    begins = [0, *ends.tolist()]
    vocabulary = {
        token: blob[begin:end].tobytes() for token, begin, end in zip(ids.tolist(), begins, ends.tolist(), strict=False)
    }
    names = tuple(json.loads((folder / "documents.json").read_text(encoding="utf-8")))
    lead, warnings = json.loads((folder / "lead.json").read_text())
    return TokenDataset(tokens, lengths, mask, documents, names, vocabulary, lead, tuple(warnings))
