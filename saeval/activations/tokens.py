"""Text packed into the contexts that a model reads, with what is needed to turn tokens back into text."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, JsonValue, model_validator

from saeval._util import Documented, InputError, SpecPath, clean_text, content_hash, file_sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TokenDataset:
    """A tokenised corpus: one row a context, no context spanning two documents.

    Attributes:
        tokens: Token ids, padded on the right.  [contexts, length] int32
        lengths: Real tokens a context, BOS included.  [contexts] int32
        mask: Where an ordinary text token stands; BOS, other special tokens and padding are False and their
            activations do not count.  [contexts, length] bool
        documents: Number of the document each context was cut from.  [contexts] int32
        document_names: Name of each document.
        vocabulary: The bytes of each token that occurs; none for special tokens.
        lead: Tokens before the text in each context: 1 with BOS, 0 without.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    mask: NDArray[np.bool_]
    documents: NDArray[np.int32]
    document_names: tuple[str, ...]
    vocabulary: Mapping[int, bytes]
    lead: int

    @property
    def n_tokens(self) -> int:
        """Ordinary text tokens."""
        return int(self.mask.sum())

    @property
    def fingerprint(self) -> str:
        """Hash of everything in it."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.tokens, self.lengths, self.mask, self.documents):
            digest.update(str(array.shape).encode())
            digest.update(array.tobytes())
        digest.update(json.dumps([self.lead, *self.document_names]).encode())
        return digest.hexdigest()


class Packed(NamedTuple):
    """Documents cut into contexts.

    Attributes:
        tokens: Token ids, padded on the right.  [contexts, length] int32
        lengths: Real tokens a context, those before the text included.  [contexts] int32
        documents: Number of the document each context was cut from.  [contexts] int32
        names: Name of each document.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    documents: NDArray[np.int32]
    names: tuple[str, ...]


class Corpus(Documented):
    """Where text comes from and how much of it is read (paper §3.1)."""

    path: SpecPath | None = None
    """A local `.txt`, `.jsonl` or `.parquet` file, or a folder of `.txt` files (one document a file or row)."""
    dataset: str | None = None
    """Hub id of a dataset, streamed with `datasets`; or the path of a dataset directory."""
    config: str | None = None
    """Configuration of the hub dataset."""
    revision: str | None = None
    """Revision of the hub dataset."""
    split: str = "train"
    """Split of the hub dataset."""
    field: str = "text"
    """Field of a row that holds the text."""
    tokens: int | None = Field(default=None, gt=0)
    """Text tokens to read at most; None for all."""
    per_document: int | None = Field(default=None, gt=0)
    """Text tokens to read of one document at most; None for all."""
    context: int = Field(default=256, ge=8)
    """Text tokens in one context; BOS stands before them where the tokenizer has one."""
    bos: bool = True
    """Whether contexts begin with BOS. Its activations are never counted, but models need to see it."""

    @model_validator(mode="after")
    def _one_origin(self) -> Corpus:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path (local file) or dataset (hub id)")
        return self

    def check(self) -> None:
        """See whether a local corpus is there and of a kind that can be read.

        Raises:
            InputError: If it is not.
        """
        if self.path is None:
            return
        if not self.path.exists():
            raise InputError(f"corpus {self.path}: no such file or folder")
        if self.path.is_file() and self.path.suffix not in _READERS:
            raise InputError(f"corpus {self.path}: cannot read {self.path.suffix!r} files; use {', '.join(_READERS)}")

    def fingerprint(self) -> JsonValue:
        """Return what the text depends on: the content of a local file, the name and revision of a hub dataset."""
        options = self.model_dump(mode="json", exclude={"path"})
        if self.path is None:
            return options
        files = sorted(self.path.glob("*.txt")) if self.path.is_dir() else [self.path]
        return {**options, "sha256": content_hash(*(file_sha256(f) for f in files))}

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield (name, text) of every document; what UTF-8 cannot encode is U+FFFD in both.

        Raises:
            InputError: If the corpus is missing or malformed.
        """
        self.check()
        for name, text in self._texts():
            yield clean_text(name), clean_text(text)

    def _texts(self) -> Iterator[tuple[str, str]]:
        if self.path is None:
            yield from self._hub_texts()
        elif self.path.is_dir():
            for file in sorted(self.path.glob("*.txt")):
                yield file.stem, file.read_text(encoding="utf-8", errors="replace")
        else:
            yield from _READERS[self.path.suffix](self.path, self.field)

    def _hub_texts(self) -> Iterator[tuple[str, str]]:
        from datasets import load_dataset

        try:
            rows = load_dataset(self.dataset, self.config, split=self.split, revision=self.revision, streaming=True)
            for i, row in enumerate(rows):
                yield str(i), _text_of(row, self.field, f"dataset {self.dataset}, row {i}")
        except InputError:
            raise
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"corpus dataset {self.dataset!r} could not be read ({type(error).__name__}: {line}); "
                "check its name, split and your connection, or give a local `path`"
            ) from error

    def tokenize(self, tokenizer: Any) -> TokenDataset:
        """Pack the corpus into contexts.

        Args:
            tokenizer: A transformers tokenizer of the subject model.

        Raises:
            InputError: If the corpus is missing, malformed, or holds less than two contexts' worth of text.
        """
        import numpy as np

        lead = [tokenizer.bos_token_id] if self.bos and tokenizer.bos_token_id is not None else []
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)

        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        tokens, lengths, documents, names = self.pack(encode, lead, pad)
        used = np.unique(tokens)
        special = [i for i in tokenizer.all_special_ids if i is not None]
        mask = (np.arange(tokens.shape[1]) < lengths[:, None]) & ~np.isin(tokens, special)
        ordinary = [int(i) for i in used if int(i) not in special]
        vocabulary = {**dict.fromkeys(map(int, used), b""), **token_bytes(tokenizer, ordinary)}
        return TokenDataset(tokens, lengths, mask, documents, names, vocabulary, len(lead))

    def pack(self, encode: Callable[[str], Sequence[int]], lead: Sequence[int], pad: int) -> Packed:
        """Cut the documents into contexts of token ids.

        Args:
            encode: Returns the token ids of a document's text.
            lead: Tokens to begin every context with.
            pad: Token that fills up contexts that are too short.

        Raises:
            InputError: If the corpus is missing, malformed, or holds less than two contexts' worth of text.
        """
        import numpy as np

        rows: list[NDArray[np.int32]] = []  # as arrays, for as lists of numbers they take nine times as much memory
        documents: list[int] = []
        names: list[str] = []
        left = self.tokens if self.tokens is not None else 1 << 62
        for name, text in self.texts():
            ids = encode(text)[: min(left, self.per_document or left)]
            for start in range(0, len(ids), self.context):
                rows.append(np.array([*lead, *ids[start : start + self.context]], dtype=np.int32))
                documents.append(len(names))
            names.append(name)
            left -= len(ids)
            if left <= 0:
                break
        if len(rows) < 2:
            raise InputError(
                f"corpus {self.path or self.dataset}: {sum(map(len, rows))} tokens in {len(names)} documents, "
                f"less than two contexts of {self.context}; give more text or a smaller `context`"
            )
        tokens = np.full((len(rows), self.context + len(lead)), pad, dtype=np.int32)
        for row, real in zip(tokens, rows, strict=True):
            row[: len(real)] = real
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        return Packed(tokens, lengths, np.array(documents, dtype=np.int32), tuple(names))


def _text_of(row: Any, field: str, where: str) -> str:
    if not isinstance(row, Mapping) or not isinstance(row.get(field), str):
        have = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise InputError(f"corpus {where}: no text under {field!r}; it has: {have}")
    return str(row[field])


def _read_txt(path: Path, _field: str) -> Iterator[tuple[str, str]]:
    yield path.stem, path.read_text(encoding="utf-8", errors="replace")


def _read_jsonl(path: Path, field: str) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"corpus {path}:{number}: not JSON ({error.msg})") from error
            text = _text_of(row, field, f"{path}:{number}")
            yield str(row.get("id", number)), text


def _read_parquet(path: Path, field: str) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        for i, batch in enumerate(pq.ParquetFile(path).iter_batches(batch_size=1000)):
            for j, row in enumerate(batch.to_pylist()):
                yield str(i * 1000 + j), _text_of(row, field, f"{path}, row {i * 1000 + j}")
    except ArrowException as error:
        raise InputError(f"corpus {path}: not a readable Parquet file ({error})") from error


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


@cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level BPE vocabulary stands for (GPT-2's printable alphabet)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: Any, ids: Sequence[int]) -> dict[int, bytes]:
    """Return the bytes that each token contributes to a text, its leading space included.

    Joined and decoded as UTF-8, the bytes of successive tokens give the text, also where one character
    is spread over several tokens.

    Args:
        tokenizer: A transformers tokenizer: byte-level BPE, SentencePiece-like, or WordPiece; any other is
            asked to decode tokens one by one.
        ids: Tokens asked for.
    """
    names = tokenizer.convert_ids_to_tokens(list(ids))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = repr(getattr(backend, "decoder", None))
    if "ByteLevel" in decoder:
        table = _byte_of()
        return {
            i: bytes(table[c] for c in name) if all(c in table for c in name) else name.encode()
            for i, name in zip(ids, names, strict=True)
        }
    if "WordPiece" in decoder:
        return {
            i: name[2:].encode() if name.startswith("##") else b" " + name.encode()
            for i, name in zip(ids, names, strict=True)
        }
    if any(name.startswith("▁") for name in names) or "▁" in decoder:
        return {i: _sentencepiece_bytes(name) for i, name in zip(ids, names, strict=True)}
    return {i: tokenizer.decode([i]).encode() for i in ids}


def _sentencepiece_bytes(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def token_strings(pieces: Iterable[bytes]) -> tuple[str, ...]:
    """Decode successive tokens' bytes; a character belongs to the token that completes it.

    A window may begin or end inside a character; its broken bytes become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    strings = [decoder.decode(piece) for piece in pieces]
    if strings:
        strings[-1] += decoder.decode(b"", final=True)
    return tuple(strings)
