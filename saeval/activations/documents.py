"""Reads the documents of a local corpus: text files, rows, folders of shards and saved datasets."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from saeval._util import InputError

Document = tuple[str, str]
"""A document's name and its text."""
Template = Callable[[Sequence[Mapping[str, str]]], str]
"""Writes a conversation, as `role` and `content`, the way its model reads it."""

CHATS = ("messages", "conversations", "conversation")
"""Fields under which rows hold a conversation."""
DIVISIONS = ("none", "paragraphs", "lines")
"""Ways to say where documents end in a text."""
PART = (
    2000  # characters of a part, about, where one text is divided by itself; a twentieth of a short text, at least 200
)
_SMALLEST = 200
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_NOT_TEXT = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
_ENDS = ("\n\n", "\n", ". ", " ")


@dataclass
class Notes:
    """What was seen while a corpus was read.

    Attributes:
        rows: Rows read.
        empty: Rows that were skipped, because they hold null instead of text.
        parts: Documents that the corpus' one text was divided into; 0 where it was not.
    """

    rows: int = 0
    empty: int = 0
    parts: int = 0

    def warnings(self) -> list[str]:
        """Say what a reader of results must know."""
        said = []
        if self.empty:
            said.append(f"{self.empty} of {self.rows} rows of the corpus hold no text and were skipped.")
        if self.parts:
            said.append(
                f"The corpus is one text; it was divided into {self.parts} documents, so that explaining and scoring "
                "share none (`corpus.split: none` keeps it whole)."
            )
        return said


# --- Which files ---


def corpus_files(path: Path, split: str = "train") -> list[Path]:
    """Return the files that hold a corpus' text: the file itself, or those of a folder.

    Args:
        path: A file, a folder of files (in any depth), or a folder that `datasets` wrote with `save_to_disk`.
        split: Split to read of a saved dataset that has several.

    Raises:
        InputError: If there are none that can be read.
    """
    if not path.exists():
        raise InputError(f"corpus {path}: no such file or folder")
    if path.is_file():
        if _kind(path) not in _READERS:
            raise InputError(
                f"corpus {path}: cannot read {''.join(path.suffixes[-2:])!r} files; use {', '.join(_READERS)}, the "
                "first three also with .gz behind them"
            )
        return [path]
    if (path / "dataset_dict.json").exists():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").exists())
        if split not in splits:
            raise InputError(
                f"corpus {path}: it has no split {split!r}; set corpus.split to one of: {', '.join(splits)}"
            )
        return corpus_files(path / split)
    if (path / "state.json").exists():
        return [path / row["filename"] for row in _loads(path / "state.json")["_data_files"]]
    found = [f for f in sorted(path.rglob("*")) if f.is_file() and _kind(f) in _READERS and f.name not in _NOT_TEXT]
    found = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    for kinds in ((".jsonl", ".parquet", ".arrow"), (".json",), (".txt",)):  # a README.txt beside shards is no document
        if some := [f for f in found if _kind(f) in kinds]:
            return some
    there = ", ".join(sorted(f.name for f in path.iterdir())[:5]) or "nothing"
    raise InputError(f"corpus {path}: there are no {', '.join(_READERS)} files in this folder; it holds {there}")


def _kind(path: Path) -> str:
    """Return a file's suffix, that of what is inside for a compressed one."""
    compressed = path.suffix == ".gz"
    kind = Path(path.stem).suffix if compressed else path.suffix
    return "" if compressed and kind in (".parquet", ".arrow") else kind


# --- What is in them ---


def read_documents(
    path: Path, field: str, *, split: str = "train", template: Template | None = None, notes: Notes | None = None
) -> Iterator[Document]:
    """Yield the documents of a local corpus.

    Args:
        path: A file or folder; see `corpus_files`.
        field: Field of a row that holds the text.
        split: Split of a saved dataset.
        template: Writes conversations.
        notes: Where is counted what was seen.

    Raises:
        InputError: If something is missing or malformed, naming file and row.
    """
    notes = notes or Notes()
    files = corpus_files(path, split)
    for file in files:
        kind = _kind(file)
        stem = file.name.partition(".")[0]
        if kind == ".txt":
            notes.rows += 1
            with _opened(file) as text:
                yield stem, text.read()
            continue
        prefix = f"{stem}:" if len(files) > 1 else ""
        for name, where, row in _READERS[kind](file):
            text_ = text_of(row, field, where, template, notes)
            if text_ is not None:
                yield f"{prefix}{name}", text_


def text_of(row: Any, field: str, where: str, template: Template | None, notes: Notes) -> str | None:
    """Return the text of a row: that under a field, or its conversation; None where it holds null.

    Args:
        row: The row.
        field: The field.
        where: How messages name the row.
        template: Writes conversations; None where there is no template.
        notes: Where rows are counted.

    Raises:
        InputError: If there is no text, saying what there is.
    """
    notes.rows += 1
    found = isinstance(row, Mapping) and field in row
    value = row[field] if found else None
    chat = None if found else next((k for k in CHATS if isinstance(row, Mapping) and k in row), None)
    if chat is not None and field == "text":
        value = row[chat]
    if isinstance(value, str):
        return value
    seen_text = notes.rows > notes.empty + 1
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    if nothing and isinstance(row, Mapping) and (found or chat or seen_text):
        notes.empty += 1
        return None
    if turns := _turns(value):
        if template is None:
            raise InputError(
                f"corpus {where}: holds a conversation, and the model's tokenizer has no chat template; take the "
                "tokenizer of an instruction-tuned model, or write each conversation into a field `text`"
            )
        return template(turns)
    have = list(row) if isinstance(row, Mapping) else []
    texts = [name for name in have if isinstance(row[name], str) and name != "id"]
    hint = f"; set corpus.field to {texts[0]!r}" if texts else ""
    if "input_ids" in have and not texts:
        hint = ", which are tokens already; give the text they were made of"
    shown = ", ".join(map(str, have)) if have else type(row).__name__
    raise InputError(f"corpus {where}: no text under {field!r}; it has: {shown}{hint}")


def _turns(value: Any) -> list[dict[str, str]]:
    """Return a conversation as roles and contents, whichever names its makers gave them; nothing for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return []
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return []
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list):  # in parts, of which those of text count
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        turns.append({"role": _ROLES.get(role, role), "content": content})
    return turns


def divided(documents: Iterable[Document], how: str | None, notes: Notes) -> Iterator[Document]:
    """Divide texts into documents.

    Args:
        documents: The texts as they were read.
        how: `paragraphs` (apart by a blank line), `lines`, or `none`. By default they stay as they are, but a single
            text is divided into parts of at least 2,000 characters, at paragraph ends where there are any.
        notes: Where is said that this was done.
    """
    if how in ("paragraphs", "lines"):
        pattern = r"\n[ \t\r]*\n\s*" if how == "paragraphs" else r"[\r\n]+"
        for name, text in documents:
            pieces = [piece for piece in re.split(pattern, text) if piece.strip()]
            yield from _numbered(name, pieces)
        return
    left = iter(documents)
    first, second = next(left, None), next(left, None)
    if first is not None and second is None and how is None:
        pieces = list(_parts(first[1]))
        notes.parts = len(pieces) if len(pieces) > 1 else 0
        yield from _numbered(first[0], pieces) if notes.parts else [first]
        return
    yield from (document for document in (first, second) if document is not None)
    yield from left


def _numbered(name: str, pieces: Sequence[str]) -> Iterator[Document]:
    return ((f"{name}#{number}", piece) for number, piece in enumerate(pieces, 1))


def _parts(text: str) -> Iterator[str]:
    """Cut at the best kind of end within reach: of a paragraph, a line, a sentence, a word."""
    part = min(PART, max(_SMALLEST, len(text) // 20))
    while len(text) > 2 * part:
        reach = {
            end: 2 * (PART if end == _ENDS[0] else part) for end in _ENDS
        }  # for a paragraph's end it may be longer
        places = ((text.find(end, part, reach[end]), end) for end in _ENDS)
        cut = next((place + len(end) for place, end in places if place >= 0), 2 * part)
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text


# --- Files ---


def _opened(path: Path) -> IO[str]:
    """Open text as UTF-8, or as the mark at its head says; bytes that are no text become U+FFFD."""
    opening: Callable[[Path], Any] = gzip.open if path.suffix == ".gz" else partial(Path.open, mode="rb")
    try:
        with opening(path) as raw:
            head = raw.read(3)
    except (OSError, EOFError) as error:
        raise InputError(f"corpus {path}: cannot be read ({error})") from None
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    return io.TextIOWrapper(opening(path), encoding=encoding, errors="replace")


def _loads(path: Path) -> Any:
    with _opened(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise InputError(f"corpus {path}:{error.lineno}: not JSON ({error.msg})") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"corpus {path}:{number}: not JSON ({error.msg})") from None
            yield _name(row, number), f"{path}:{number}", row


def _json_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Rows of a JSON array, or of a file that is JSON lines by another name."""
    with _opened(path) as file:
        array = file.read(64).lstrip().startswith("[")
    if not array:
        yield from _jsonl_rows(path)
        return
    for number, row in enumerate(_loads(path), 1):
        yield _name(row, number), f"{path}, row {number}", row


def _name(row: Any, number: int) -> str:
    return str(row.get("id", number)) if isinstance(row, Mapping) else str(number)


def _parquet_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    import pyarrow.parquet as pq

    yield from _arrow_batches(path, lambda: pq.ParquetFile(path).iter_batches(batch_size=1000))


def _arrow_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Rows of an Arrow stream, as `datasets` writes them."""
    import pyarrow as pa

    def batches() -> Iterable[Any]:
        with pa.memory_map(str(path)) as file:
            yield from pa.ipc.open_stream(file)

    yield from _arrow_batches(path, batches)


def _arrow_batches(path: Path, batches: Callable[[], Iterable[Any]]) -> Iterator[tuple[str, str, Any]]:
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in batches():
            for row in batch.to_pylist():
                yield str(number), f"{path}, row {number}", row
                number += 1
    except (ArrowException, OSError) as error:
        line = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(f"corpus {path}: not a readable {path.suffix[1:].capitalize()} file ({line})") from error


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, str, Any]]]] = {
    ".txt": lambda path: iter(()), ".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}  # fmt: skip
