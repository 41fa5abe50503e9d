"""Reads the documents of a local corpus: text files, rows, folders of shards and saved datasets."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from saeval._util import InputError, counted, first_line, parse_json
from saeval.activations.row_texts import CHATS, Fields, Notes, Template, text_of

T = TypeVar("T")
Document = tuple[str, str]
"""A document's name and its text."""
DIVISIONS = ("none", "paragraphs", "lines")
"""Ways to divide a text into documents."""
PART = 2000  # approximate characters per part when dividing a single text; 1/20 of a short text, at least 200
_SMALLEST = 200
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_MAGIC = {
    b"\x1f\x8b": "compressed (gzip); rename it to end in .gz", b"BZh": "compressed (bzip2); rename it to end in .bz2",
    b"\xfd7zX": "compressed (xz); rename it to end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed (zstd); rename it to end in .zst",
    b"PAR1": "a Parquet file; rename it to end in .parquet", b"PK\x03\x04": "a zip archive; unpack it",
    b"%PDF": "a PDF; extract its text",
}  # fmt: skip
"""First bytes of files that are not text, each with the kind of file and the remedy."""
_ALIKE = {".ndjson": ".jsonl", ".text": ".txt"}
_NOT_TEXT = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
_ENDS = ("\n\n", "\n", ". ", " ")
_TABLES = {".csv": ",", ".tsv": "\t"}
_LONGEST_CELL = 1 << 30  # characters of a table's cell
_ARROW_FILE = b"ARROW1"  # first bytes of an Arrow file, which a stream of the same suffix lacks


# --- Which files ---


def corpus_files(path: Path, split: str = "train") -> list[Path]:
    """Return the files that contain the text of a corpus: the file itself, or those in a folder.

    Args:
        path: A file, a folder of files (in any depth), or a folder that `datasets` wrote with `save_to_disk`.
        split: Split to read of a saved dataset that has several.

    Raises:
        InputError: If there is no readable file.
    """
    if not path.exists():
        raise InputError(f"corpus {path}: no such file or folder (for a dataset on the hub, use `dataset`)")
    if path.is_file():
        if _kind(path) not in _READERS:
            kind = repr("".join(path.suffixes[-2:])) + " files" if path.suffix else "files without a suffix"
            raise InputError(
                f"corpus {path}: cannot read {kind}; use {', '.join(_READERS)}; text files may be compressed "
                f"({', '.join(_COMPRESSED)} as second suffix)"
            )
        return [path]
    if (path / "dataset_dict.json").exists():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").exists())
        if not splits:
            raise InputError(f"corpus {path}: this saved dataset has lost the folders of its splits; copy it again")
        if split not in splits:
            raise InputError(
                f"corpus {path}: it has no split {split!r}; set corpus.split to one of: {', '.join(splits)}"
            )
        return corpus_files(path / split)
    if (path / "state.json").exists():
        return _saved_files(path)
    found = [f for f in sorted(path.rglob("*")) if f.is_file() and _kind(f) in _READERS and f.name not in _NOT_TEXT]
    found = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    for kinds in (
        (".jsonl", ".parquet", ".arrow"),
        (".csv", ".tsv"),
        (".json",),
        (".txt",),
    ):  # text files last, since README.txt is not a document
        if some := [f for f in found if _kind(f) in kinds]:
            return some
    there = ", ".join(sorted(f.name for f in path.iterdir())[:5]) or "nothing"
    raise InputError(f"corpus {path}: this folder has no {', '.join(_READERS)} files; it contains {there}")


def _saved_files(folder: Path) -> list[Path]:
    """Return the files of a dataset that `save_to_disk` wrote.

    Raises:
        InputError: If the folder does not list its files, or has lost one.
    """
    listed = _loads(folder / "state.json")
    try:
        files = [folder / row["filename"] for row in listed["_data_files"]]
    except (KeyError, TypeError):
        raise InputError(f"corpus {folder}: state.json lists no data files; save the dataset again") from None
    if lost := next((file for file in files if not file.is_file()), None):
        raise InputError(f"corpus {folder}: the file {lost.name} of this saved dataset is missing; copy it again")
    return files


def read_by_suffix(files: Iterable[Path]) -> list[str]:
    """Return the suffixes of the files that are plain text or tables, which content alone does not tell apart."""
    return [kind for kind in map(_kind, files) if kind in (".txt", *_TABLES)]


def _kind(path: Path) -> str:
    """Return a file's suffix; for a compressed file, the suffix of its content."""
    compressed = path.suffix.lower() in _COMPRESSED
    kind = (Path(path.stem).suffix if compressed else path.suffix).lower()
    return "" if compressed and kind in (".parquet", ".arrow") else _ALIKE.get(kind, kind)


# --- What is in them ---


def read_documents(
    path: Path, field: Fields, *, split: str = "train", template: Template | None = None, notes: Notes | None = None
) -> Iterator[Document]:
    """Yield the documents of a local corpus.

    Args:
        path: A file or folder; see `corpus_files`.
        field: Field of a row that contains the text, or several fields.
        split: Split of a saved dataset.
        template: Renders conversations as text.
        notes: Counts rows and oddities.

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
            yield from _undamaged(file, _whole_text(stem, file, field))
            continue
        prefix = f"{stem}:" if len(files) > 1 else ""
        for name, where, row in _undamaged(file, _READERS[kind](file)):
            text_ = text_of(row, field, where, template, notes)
            if text_ is not None:
                yield f"{prefix}{name}", text_


def _whole_text(name: str, file: Path, field: Fields) -> Iterator[Document]:
    with _opened(file) as lines:
        first = lines.readline()
    with suppress(ValueError):
        row = parse_json(first)
        named = (field, *CHATS) if isinstance(field, str) else field
        if isinstance(row, dict) and any(name in row for name in named):
            raise InputError(f"corpus {file}: contains JSON lines; rename it to end in .jsonl")
    with _opened(file) as text:
        yield name, text.read()


def _undamaged(file: Path, content: Iterator[T]) -> Iterator[T]:
    """Yield the content of a file, with errors of decompression as `InputError`.

    Raises:
        InputError: If a compressed file is truncated, or does not match its suffix.
    """
    try:
        yield from content
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"corpus {file}: is damaged or cut off ({error}); copy it again") from None


def divided(
    documents: Iterable[Document],
    how: str | None,
    notes: Notes,
    carried: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Iterator[Document]:
    """Divide texts into documents.

    Args:
        documents: The texts as they were read.
        how: `paragraphs` (separated by a blank line), `lines`, or `none`. By default texts are not divided, except
            that a single text is divided into parts of at least 2,000 characters, at ends of paragraphs if possible.
        notes: Records the number of parts.
        carried: Marks the pieces of one text, if it was marked in a way that division breaks.
    """
    if how in ("paragraphs", "lines"):
        pattern = r"\n[ \t\r]*\n\s*" if how == "paragraphs" else r"[\r\n]+"
        for name, text in documents:
            pieces = [piece for piece in re.split(pattern, text) if piece.strip()]
            yield from _numbered(name, carried(pieces))
        return
    left = iter(documents)
    first, second = next(left, None), next(left, None)
    if first is not None and second is None and how is None:
        pieces = list(_parts(first[1]))
        notes.parts = len(pieces) if len(pieces) > 1 else 0
        yield from _numbered(first[0], carried(pieces)) if notes.parts else [first]
        return
    yield from (document for document in (first, second) if document is not None)
    yield from left


def _numbered(name: str, pieces: Iterable[str]) -> Iterator[Document]:
    return ((f"{name}#{number}", piece) for number, piece in enumerate(pieces, 1))


def _parts(text: str) -> Iterator[str]:
    """Divide a text at ends of paragraphs, else of lines, sentences or words, depending on what is near enough."""
    part = min(PART, max(_SMALLEST, len(text) // 20))
    # Parts may be longer if they end with a paragraph.
    reach = {end: 2 * (PART if end == _ENDS[0] else part) for end in _ENDS}
    start = 0
    while len(text) - start > 2 * part:
        places = ((text.find(end, start + part, start + reach[end]), end) for end in _ENDS)
        cut = next((place + len(end) for place, end in places if place >= 0), start + 2 * part)
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


# --- Files ---


def _opened(path: Path) -> IO[str]:
    """Open text as UTF-8, or in the encoding of its byte order mark; invalid bytes become U+FFFD."""
    opening = _COMPRESSED.get(path.suffix.lower(), partial(Path.open, mode="rb"))
    try:
        with opening(path) as raw:
            head = raw.read(4)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"corpus {path}: cannot be read ({error})") from None
    if found := next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None):
        raise InputError(f"corpus {path}: is {found}")
    return io.TextIOWrapper(
        opening(path), encoding=_encoding(head), errors="replace", newline="" if _kind(path) in _TABLES else None
    )


def _encoding(head: bytes) -> str:
    """Guess an encoding from the first four bytes: byte order mark, UTF-16 if every other byte is 0, else UTF-8."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    unmarked = {head[1::2]: "utf-16-le", head[::2]: "utf-16-be"}
    return marked or unmarked.get(b"\0\0", "utf-8")


def _zstandard(path: Path) -> io.BufferedReader:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


_COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}


def _loads(path: Path) -> Any:
    with _opened(path) as file:
        try:
            return parse_json(file.read())
        except json.JSONDecodeError as error:
            raise InputError(f"corpus {path}:{error.lineno}: not JSON ({error.msg})") from None


def _json_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield rows of JSON lines, or of a file with one JSON value: a list, an object with a list in it, or one row."""
    with _opened(path) as file:
        head = file.read(64).lstrip()
    if not (head.startswith("[") or _is_one_object(path)):
        yield from _lines_of_json(path)
        return
    for number, row in enumerate(_listed(_loads(path)), 1):
        yield _name(row, number), f"{path}, row {number}", row


def _is_one_object(path: Path) -> bool:
    """Check whether a file is a single JSON object, on several lines or with a list of rows in it."""
    with _opened(path) as lines:
        first = next((line for line in lines if line.strip()), "")
        more = any(line.strip() for line in lines)
    try:
        row = parse_json(first)
    except json.JSONDecodeError:
        return first.strip() == "{"
    return not more and _listed(row) != [row]


def _listed(value: Any) -> list[Any]:
    """Return the rows of a JSON value: a list's items, an object's columns, named rows or list of rows, or itself."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    inside = list(value.values())
    if columns := _columns(value):
        return columns
    if inside and all(isinstance(row, dict) for row in inside):  # by name
        return [{"id": name, **row} for name, row in value.items()]
    lists = [rows for rows in inside if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)]
    return lists[0] if len(lists) == 1 and not any(name in value for name in ("text", *CHATS)) else [value]


def _columns(value: dict[str, Any]) -> list[Any]:
    """Return the rows of a table given by columns: lists of equal length, or (pandas) mappings from row numbers."""
    columns = {k: list(v.values()) if _is_numbered(v) else v for k, v in value.items()}
    lists = all(isinstance(column, list) and column and not isinstance(column[0], dict) for column in columns.values())
    if not lists or len({len(column) for column in columns.values()}) != 1:
        return []
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _is_numbered(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(name.isdigit() for name in value)


def _lines_of_json(path: Path) -> Iterator[tuple[str, str, Any]]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except json.JSONDecodeError as error:
                raise InputError(f"corpus {path}:{number}: not JSON ({error.msg})") from None
            yield _name(row, number), f"{path}:{number}", row


def _table_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield the rows of a table whose first line names its columns."""
    csv.field_size_limit(_LONGEST_CELL)
    with _opened(path) as file:
        header = file.readline()
    usual = _TABLES[_kind(path)]
    delimiter = next((mark for mark in (usual, ";", "\t", "|") if mark in header), usual)
    with _opened(path) as file:
        rows = csv.DictReader(_without_blanks(file, delimiter), delimiter=delimiter, strict=True)
        try:
            for number, row in enumerate(rows, 1):
                if any(cell.strip() for cell in row.pop(None, ())):
                    raise InputError(f"corpus {path}:{rows.line_num}: {_too_many_cells(rows.fieldnames, delimiter)}")
                yield _name(row, number), f"{path}:{rows.line_num}", row
        except csv.Error as error:
            raise InputError(
                f"corpus {path}:{rows.line_num + 1}: not a table ({error}); enclose the text in double quotes, and "
                "double those within it"
            ) from None


def _without_blanks(lines: Iterable[str], delimiter: str) -> Iterator[str]:
    """Yield a table's lines without the blanks between a closing quote and the next delimiter or end of line.

    As for `csv`, only a quote at the beginning of a cell opens it; others are text, such as that of `5" pipe`.
    """
    end = rf"[{re.escape(delimiter)}\r\n]"
    rest = rf"[^{re.escape(delimiter)}\r\n]*+"
    opened = r'"[^"]*+(?:""[^"]*+)*+'
    # Each match is one cell, so that the next one begins where a cell does.
    cell = re.compile(rf'({opened}") +(?={end}|\Z)|((?:{opened}"?+)?+{rest}{end}?)')
    closed = re.compile(rf'(?:(?:{opened}"|(?!")){rest}{end})*+(?:{opened}"|(?!")){rest}\Z')
    inside = False  # whether the line begins within quotes
    for line in lines:
        if '"' not in line:
            yield line
            continue
        whole = f'"{line}' if inside else line
        cleaned = cell.sub(r"\1\2", whole) if '" ' in line else whole
        yield cleaned[1:] if inside else cleaned
        inside = not closed.match(whole)


def _too_many_cells(columns: Sequence[str] | None, delimiter: str) -> str:
    if not columns:
        return "the first line of a table must name its columns, but it is empty"
    return (
        f"this row has more cells than the {counted(len(columns), 'column')} of the first line; enclose text that "
        f"contains {delimiter!r} in double quotes"
    )


def _name(row: Any, number: int) -> str:
    named = row.get("id") if isinstance(row, Mapping) else None
    return str(number if named is None else named)


def _parquet_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    import pyarrow.parquet as pq

    yield from _arrow_batches(path, lambda: pq.ParquetFile(path).iter_batches(batch_size=1000))


def _arrow_rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield the rows of an Arrow stream, the format that `datasets` writes, or of an Arrow file (Feather)."""
    import pyarrow as pa

    def batches() -> Iterable[Any]:
        with pa.memory_map(str(path)) as file:
            if file.read(len(_ARROW_FILE)) != _ARROW_FILE:
                file.seek(0)
                yield from pa.ipc.open_stream(file)
                return
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

    yield from _arrow_batches(path, batches)


def _arrow_batches(path: Path, batches: Callable[[], Iterable[Any]]) -> Iterator[tuple[str, str, Any]]:
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in batches():
            for row in batch.to_pylist():
                yield str(number), f"{path}, row {number}", row
                number += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        line = first_line(error)
        raise InputError(f"corpus {path}: not a readable {path.suffix[1:].capitalize()} file ({line})") from error


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, str, Any]]]] = {
    ".txt": lambda path: iter(()), ".jsonl": _json_rows, ".json": _json_rows, ".csv": _table_rows, ".tsv": _table_rows,
    ".parquet": _parquet_rows, ".arrow": _arrow_rows,
}  # fmt: skip
