"""Tokenises a corpus into contexts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, JsonValue, model_validator

from saeval._util import (
    Documented,
    InputError,
    SpecPath,
    StoreError,
    clean_text,
    content_hash,
    counted,
    file_sha256,
    first_line,
)
from saeval.activations.chat_roles import RoleMarks, tokens_within
from saeval.activations.decoding import special_ids, token_bytes
from saeval.activations.documents import DIVISIONS, corpus_files, divided, read_by_suffix, read_documents
from saeval.activations.duplicates import Duplicates, Sameness
from saeval.activations.row_texts import CHATS, Notes, Template, text_of
from saeval.activations.streams import KeptRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTEXT = 256
"""Default text tokens per context, if neither a spec nor a coder's files state it."""
_VERSION = 2  # increase it if the same options give different tokens
_SEARCHED = 10_000  # documents in which `validate` looks for a role, so that it need not read a whole corpus
_ROLES_VERSION = 2  # increase it if the same roles count different tokens


@dataclass(frozen=True, eq=False)
class TokenDataset:
    """A tokenised corpus: one row per context; no context spans two documents.

    Attributes:
        tokens: Token ids, padded on the right.  [contexts, length] int32
        lengths: Number of tokens per context without padding, with BOS.  [contexts] int32
        mask: Which tokens are ordinary text; BOS, other special tokens and padding are False, and their
            activations are not counted.  [contexts, length] bool
        documents: Number of the document each context was cut from.  [contexts] int32
        document_names: Name of each document.
        vocabulary: The bytes of each token that occurs; empty for special tokens.
        lead: Number of tokens before the text in each context: 1 with BOS, 0 without.
        warnings: Warnings for the results about the text.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    mask: NDArray[np.bool_]
    documents: NDArray[np.int32]
    document_names: tuple[str, ...]
    vocabulary: Mapping[int, bytes]
    lead: int
    warnings: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Number of ordinary text tokens."""
        return int(self.mask.sum())

    def check(self) -> None:
        """Check that the parts of the dataset fit together.

        Raises:
            StoreError: If not, naming the part.
        """
        import numpy as np

        self._check_arrays()
        contexts, width = self.tokens.shape
        if contexts and not 0 <= self.lengths.min() <= self.lengths.max() <= width:
            raise StoreError(
                f"TokenDataset.lengths has the numbers {self.lengths.min()} to {self.lengths.max()}, but a context has "
                f"{counted(width, 'token')}; count the tokens of each context without padding"
            )
        marked = self.tokens[self.mask]
        if (lowest := int(marked.min(initial=0))) < 0:
            raise StoreError(
                f"TokenDataset.tokens has {lowest} where the mask is True; give token ids from 0, and make the mask "
                "False for padding"
            )
        if contexts and not 0 <= self.documents.min() <= self.documents.max() < len(self.document_names):
            raise StoreError(
                f"TokenDataset.document_names has {counted(len(self.document_names), 'name')}, but documents has the "
                f"numbers {self.documents.min()} to {self.documents.max()}; give every document a name"
            )
        if other := [piece for piece in self.vocabulary.values() if not isinstance(piece, bytes)]:
            raise StoreError(f"TokenDataset.vocabulary has {other[0]!r} as a token's text; give bytes, such as b' the'")
        used = np.zeros(max([*self.vocabulary, int(self.tokens.max(initial=0))]) + 1, dtype=bool)
        used[marked] = True
        used[[token for token in self.vocabulary if token >= 0]] = False  # a negative index would count from the end
        if used.any():
            raise StoreError(
                f"TokenDataset.vocabulary lacks the token {int(np.flatnonzero(used)[0])}; give the bytes of each token "
                "that occurs"
            )

    def _check_arrays(self) -> None:
        """Check that the parts with numbers are arrays of the right types and shapes.

        Raises:
            StoreError: If not, naming the part.
        """
        import numpy as np

        for name in ("tokens", "lengths", "documents", "mask"):
            part, kinds, wanted = getattr(self, name), "iu", "integers"
            if name == "mask":  # as an index, a mask of integers would select rows
                kinds, wanted = "b", "True and False"
            if not isinstance(part, np.ndarray):
                raise StoreError(f"TokenDataset.{name} is a {type(part).__name__}; give a NumPy array of {wanted}")
            if part.dtype.kind not in kinds:
                raise StoreError(f"TokenDataset.{name} is an array of {part.dtype}; give one of {wanted}")
        if self.tokens.ndim != 2:
            raise StoreError(
                f"TokenDataset.tokens has the shape {self.tokens.shape}; give one row per context, padded on the right"
            )
        contexts = len(self.tokens)
        expected = {"lengths": (contexts,), "documents": (contexts,), "mask": self.tokens.shape}
        for name, shape in expected.items():
            if (found := getattr(self, name).shape) != shape:
                raise StoreError(
                    f"TokenDataset.{name} has the shape {found}; tokens of shape {self.tokens.shape} need {shape}"
                )

    @property
    def fingerprint(self) -> str:
        """Hash of the whole content."""
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
        lengths: Number of tokens per context without padding, with BOS.  [contexts] int32
        documents: Number of the document each context was cut from.  [contexts] int32
        names: Name of each document.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    documents: NDArray[np.int32]
    names: tuple[str, ...]


class Corpus(Documented):
    """The source of the text, and how much of it to read (paper §3.1)."""

    path: SpecPath | None = None
    """A local file: `.txt` (one document), `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.arrow` (one document per
    row); text files may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`). Or a folder of such files, or a folder written
    with `save_to_disk`."""
    dataset: str | None = None
    """Hub id of a dataset, which is streamed with `datasets`; or the path of a dataset directory."""
    config: str | None = None
    """Configuration of the hub dataset."""
    revision: str | None = None
    """Revision of the hub dataset."""
    split: str | None = None
    """For a dataset, the split to read (default: `train`). For text, how to divide it into documents: `paragraphs`,
    `lines`, or `none`; by default, a corpus of one text is divided into parts of about 2,000 characters."""
    field: str | tuple[str, ...] = "text"
    """Field of a row that contains the text, or a conversation (`messages`), which the tokenizer's chat template
    renders; or several fields, `[title, body]`, whose texts are joined by a blank line."""
    dedup: Sameness | None = None
    """Drop documents that repeat an earlier one: `exact` (the same words), or `near` (80 % of their five-word
    sequences are shared). The results' warnings report the number dropped."""
    roles: tuple[str, ...] | None = None
    """For conversations, count activations only in the turns of these roles, such as `[assistant]`. The model still
    reads the other turns, but windows, activating or not, lie wholly in one turn of these roles: use windows of at
    most half a usual turn (`window` of the sampler). Requires the tokenizer's chat template."""
    tokens: int | None = Field(default=None, gt=0)
    """Maximum text tokens to read; None for all."""
    per_document: int | None = Field(default=None, gt=0)
    """Maximum text tokens to read per document; None for all."""
    context: int | None = Field(default=None, ge=8)
    """Text tokens per context, not counting BOS. Default: the number the SAE was trained with, if its files or its
    release state it; otherwise 256, or the model's maximum if that is less."""
    bos: bool | str | None = None
    """Whether contexts begin with BOS, or the token to begin them with (`<|endoftext|>`) if the tokenizer has no BOS.
    Default: as the SAE was trained; with BOS if its files do not state it. Activations on BOS are never counted, but
    many models need it."""

    @model_validator(mode="after")
    def _one_origin(self) -> Corpus:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path (local file) or dataset (hub id)")
        return self

    @property
    def length(self) -> int:
        """Text tokens per context."""
        return self.context or CONTEXT

    @property
    def local(self) -> Path | None:
        """The local file or folder to read; None for a dataset on the hub."""
        if self.path is not None:
            return self.path
        folder = Path(self.dataset or "").expanduser()
        saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        return folder if saved else None

    @property
    def _dataset_split(self) -> str:
        return self.split if self.split and self.split not in DIVISIONS else "train"

    @property
    def _division(self) -> str | None:
        return self.split if self.split in DIVISIONS else None

    def check(self) -> None:
        """Check that a local corpus exists, is readable, and contains text, of one of the roles if there are any.

        Raises:
            InputError: If not.
        """
        if self.local is None:
            self._check_dataset()
            return
        saved = any((self.local / name).exists() for name in ("dataset_dict.json", "state.json"))
        if self.split not in (None, "train", *DIVISIONS) and not saved:
            raise InputError(f"corpus.split: {self.split!r} is not a way to divide text; use {', '.join(DIVISIONS)}")
        if not any(text.strip() for _, text in self._read(_join, Notes())):
            raise InputError(f"corpus {self.local}: has no text under {self.field!r}")
        if self.roles is not None:
            self._check_roles(self.roles)

    def _check_roles(self, roles: Collection[str]) -> None:
        """Check that a local corpus has a turn of one of the roles, unless that takes more than its first documents.

        In a longer corpus the roles may occur later; `tokenize` reads all of it and raises the same error.

        Raises:
            InputError: If none of the corpus's documents has one.
        """
        marks = RoleMarks(roles)
        for number, _ in enumerate(self._read(marks.marking(_join), Notes()), 1):
            if not marks.seen.isdisjoint(roles) or number > _SEARCHED:
                return
        raise marks.none_found()

    def _check_dataset(self) -> None:
        """Check that `dataset` is not the path of a file or of a missing folder.

        Raises:
            InputError: If it is.
        """
        place = Path(self.dataset or "").expanduser()
        if place.is_file():
            raise InputError(f"corpus.dataset: {self.dataset} is a file; give it as `path`")
        if not place.exists() and (self.dataset or "").startswith((".", "/", "~")):
            raise InputError(f"corpus.dataset: {self.dataset}: no such folder")

    def fingerprint(self) -> JsonValue:
        """Return everything that the tokens depend on: options, and hashes of local files or the hub dataset's name."""
        unset = {name for name in ("dedup", "roles") if getattr(self, name) is None}
        options = self.model_dump(mode="json", exclude={*unset, "path"} if self.path else unset)
        options |= {"context": self.length, "bos": True if self.bos is None else self.bos, "version": _VERSION}
        if self.roles is not None:
            options["roles_version"] = _ROLES_VERSION
        if self.local is None:
            return options
        files = corpus_files(self.local, self._dataset_split)
        if suffixes := read_by_suffix(files):
            options["read_as"] = content_hash(*suffixes)
        return {**options, "sha256": content_hash(*map(file_sha256, files))}

    def texts(
        self, template: Template | None = None, notes: Notes | None = None, keep: Path | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yield name and text of every document; characters that UTF-8 cannot encode become U+FFFD in both.

        Args:
            template: Renders conversations; without it, rows with conversations raise an error.
            notes: Counts what was skipped or divided.
            keep: Folder that saves the rows of a hub dataset, so that an interrupted run resumes.

        Raises:
            InputError: If the corpus is missing or malformed.
        """
        notes = notes or Notes()
        repeated = Duplicates(self.dedup) if self.dedup else None
        carried = RoleMarks.carried if self.roles is not None else iter
        for name, text in divided(self._read(template, notes, keep), self._division, notes, carried):
            notes.documents += 1
            if repeated is not None and not repeated.is_new(text):
                notes.duplicates += 1
                continue
            notes.characters += len(text)
            notes.unreadable += text.count("\ufffd")
            yield clean_text(name), clean_text(text)

    def first_texts(self, n: int = 200) -> list[str]:
        """Return the first documents of a local corpus, conversations as plain text; empty for a hub dataset."""
        if self.local is None:
            return []
        return [text for _, text in islice(divided(self._read(_join, Notes()), self._division, Notes()), n)]

    def holds_chats(self) -> bool:
        """Return whether the first document of a local corpus is a conversation."""
        seen: list[bool] = []

        def note(turns: Sequence[Mapping[str, str]]) -> str:
            seen.append(True)
            return _join(turns)

        if self.local is not None:
            next(self._read(note, Notes()), None)
        return bool(seen)

    def _read(self, template: Template | None, notes: Notes, keep: Path | None = None) -> Iterator[tuple[str, str]]:
        """Yield the texts as they are in files and rows, without division and deduplication."""
        if self.local is not None:
            return read_documents(self.local, self.field, split=self._dataset_split, template=template, notes=notes)
        return self._hub_texts(template, notes, keep)

    def _hub_texts(self, template: Template | None, notes: Notes, keep: Path | None) -> Iterator[tuple[str, str]]:
        from datasets import __version__, load_dataset

        split = self._dataset_split
        fields = (self.field, *CHATS) if isinstance(self.field, str) else self.field
        identity = (self.dataset, self.config, split, self.revision, __version__, *fields)
        try:
            rows = KeptRows(keep, identity, fields).read(
                lambda: load_dataset(self.dataset, self.config, split=split, revision=self.revision, streaming=True)
            )
            for i, row in enumerate(rows):
                text = text_of(row, self.field, f"dataset {self.dataset}, row {i}", template, notes)
                if text is not None:
                    yield str(i), text
        except InputError:
            raise
        except Exception as error:
            line = first_line(error, "")
            raise InputError(
                f"corpus dataset {self.dataset!r} could not be read ({type(error).__name__}: {line}); "
                "check its name, split and your connection, or give a local `path`"
            ) from error

    def lead(self, tokenizer: Any) -> list[int]:
        """Return the tokens that precede the text in each context.

        Raises:
            InputError: If `bos` is not a token of the tokenizer.
        """
        if isinstance(self.bos, str):
            number = tokenizer.get_vocab().get(self.bos)
            if number is None:
                raise no_such_lead(self.bos)
            return [int(number)]
        return [tokenizer.bos_token_id] if self.bos is not False and tokenizer.bos_token_id is not None else []

    def tokenize(self, tokenizer: Any, vocabulary: int | None = None, keep: Path | None = None) -> TokenDataset:
        """Tokenise the corpus and cut it into contexts.

        Args:
            tokenizer: A transformers tokenizer of the subject model.
            vocabulary: Number of rows in the model's embedding; token ids have to be smaller.
            keep: Folder that saves the rows of a hub dataset, so that an interrupted run resumes.

        Raises:
            InputError: If the corpus is missing, malformed, or shorter than two contexts, or if the tokenizer returns
                ids that the embedding does not have.
        """
        import numpy as np

        lead, notes = self.lead(tokenizer), Notes()
        template, marks, within = _template(tokenizer), RoleMarks(self.roles or ()), []
        if self.roles is not None and template is not None:
            template = marks.marking(template)
        fitting = [
            t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None and t < (vocabulary or t + 1)
        ]
        pad = fitting[0] if fitting else 0

        def encode(text: str) -> list[int]:
            if self.roles is None:
                return _ids(tokenizer, text, lead)
            ids, counted = tokens_within(tokenizer, *marks.found(text))
            kept = without_lead(ids, lead)
            within.append(counted[len(ids) - len(kept) :])
            return kept

        tokens, lengths, documents, names = self.pack(encode, lead, pad, template, notes, keep)
        used = np.unique(tokens)
        if vocabulary is not None and len(used) and used[-1] >= vocabulary:
            outside = [int(i) for i in used if i >= vocabulary]
            raise InputError(
                f"the tokenizer gives {tokenizer.convert_ids_to_tokens(outside[0])!r} the id {outside[0]}, but "
                f"the model's embedding has {vocabulary} rows; use the model's own tokenizer, or call "
                "`model.resize_token_embeddings` and train the new rows"
            )
        special = special_ids(tokenizer)
        mask = (np.arange(tokens.shape[1]) < lengths[:, None]) & ~np.isin(tokens, sorted(special))
        mask[:, : len(lead)] = False  # `bos` may name a token that is not special
        if self.roles is not None:
            mask &= self._counted(lengths, documents, within, mask.shape[1], len(lead))
            if not mask.any():
                raise marks.none_found()
        if not mask.any():
            raise InputError(
                "the corpus contains only special tokens, whose activations are not counted; give ordinary text"
            )
        ordinary = [int(i) for i in used if int(i) not in special]
        bytes_of = {**dict.fromkeys(map(int, used), b""), **token_bytes(tokenizer, ordinary)}
        return TokenDataset(tokens, lengths, mask, documents, names, bytes_of, len(lead), tuple(notes.warnings()))

    def _counted(
        self,
        lengths: NDArray[np.int32],
        documents: NDArray[np.int32],
        within: Sequence[NDArray[np.bool_]],
        width: int,
        lead: int,
    ) -> NDArray[np.bool_]:
        """Return which tokens of the contexts are in turns of `roles`, from the mask `within` of each document."""
        import numpy as np

        counted = np.zeros((len(lengths), width), dtype=np.bool_)
        first: dict[int, int] = {}
        for row, document in enumerate(documents.tolist()):
            start = (row - first.setdefault(document, row)) * self.length
            n = int(lengths[row]) - lead
            counted[row, lead : lead + n] = within[document][start : start + n]
        return counted

    def contexts(self, text: str, tokenizer: Any) -> list[list[int]]:
        """Return the token ids of one text, cut into contexts like the corpus."""
        lead = self.lead(tokenizer)
        ids = _ids(tokenizer, clean_text(text), lead)
        return [[*lead, *ids[start : start + self.length]] for start in range(0, len(ids), self.length)]

    def pack(
        self,
        encode: Callable[[str], Sequence[int]],
        lead: Sequence[int],
        pad: int,
        template: Template | None = None,
        notes: Notes | None = None,
        keep: Path | None = None,
    ) -> Packed:
        """Cut the documents into contexts of token ids.

        Args:
            encode: Returns the token ids of a document's text.
            lead: Tokens that every context starts with.
            pad: Padding token.
            template: Renders conversations; see `texts`.
            notes: Counts what was skipped or divided.
            keep: See `tokenize`.

        Raises:
            InputError: If the corpus is missing, malformed, or shorter than two contexts.
        """
        import numpy as np

        rows: list[NDArray[np.int32]] = []  # arrays, since lists of integers take nine times as much memory
        documents: list[int] = []
        names: list[str] = []
        left = self.tokens if self.tokens is not None else 1 << 62
        for name, text in self.texts(template, notes, keep):
            ids = encode(text)[: min(left, self.per_document or left)]
            for start in range(0, len(ids), self.length):
                rows.append(np.array([*lead, *ids[start : start + self.length]], dtype=np.int32))
                documents.append(len(names))
            names.append(name)
            left -= len(ids)
            if left <= 0:
                break
        if len(rows) < 2:
            few = self.tokens is not None and self.tokens < 2 * self.length
            way_out = "set corpus.tokens higher" if few else "give more text or a smaller `context`"
            raise InputError(
                f"corpus {self.path or self.dataset}: {sum(map(len, rows))} tokens in "
                f"{counted(len(names), 'document')}, "
                f"less than two contexts of {self.length}; {way_out}"
            )
        tokens = np.full((len(rows), self.length + len(lead)), pad, dtype=np.int32)
        for row, real in zip(tokens, rows, strict=True):
            row[: len(real)] = real
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        return Packed(tokens, lengths, np.array(documents, dtype=np.int32), tuple(names))


def no_such_lead(token: str) -> InputError:
    """Return the error for a lead token that the tokenizer lacks."""
    return InputError(f"corpus.bos: {token!r} is not a token of the model's tokenizer; choose one that is")


def _ids(tokenizer: Any, text: str, lead: Sequence[int]) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return without_lead(ids, lead)


def without_lead(ids: list[int], lead: Sequence[int]) -> list[int]:
    """Remove leading BOS tokens from a text's tokens, since chat templates and exports may already contain them."""
    begin = 0
    while lead and ids[begin : begin + 1] == [lead[-1]]:
        begin += 1
    return ids[begin:]


def _template(tokenizer: Any) -> Template | None:
    """Return a function that applies the tokenizer's chat template; None if the tokenizer has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    def write(turns: Sequence[Mapping[str, str]]) -> str:
        try:
            return str(tokenizer.apply_chat_template(list(turns), tokenize=False))
        except Exception as error:  # templates raise what their authors chose
            raise InputError(f"the tokenizer's chat template refuses a conversation of the corpus: {error}") from error

    return write


def _join(turns: Sequence[Mapping[str, str]]) -> str:
    """Render a conversation as plain text; replaces the chat template if no tokenizer is loaded."""
    return "\n".join(turn["content"] for turn in turns)
