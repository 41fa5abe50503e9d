"""Reads explanations from JSON lines, JSON, CSV, YAML or Delphi folders; error messages name the line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from saeval.plugin import InputError, content_hash, file_sha256

_LATENT = ("latent", "index", "feature")
_TEXT = ("explanation", "description", "text")
_MAIN = "explanation"
"""The variant of a cell's own explanations in a run's `explanations.jsonl`."""
_DELPHI = re.compile(r"(.+)_latent(\d{1,18})\.txt")
_UNEXPLAINED = "Explanation could not be parsed."
"""The text that Delphi writes if a model's reply contained no explanation."""

Rows = Iterator[tuple[int | str, Any]]
"""Rows of a file with their line numbers, or of a folder with their file names."""


class _Entry(NamedTuple):
    where: int | str
    hookpoint: str | None
    latent: int
    text: str
    further: bool
    """Whether it is one of an import's further explanations of a latent."""


def read_explanations(path: Path, hookpoint: str | None = None) -> dict[int, str]:
    """Return the explanations in a file or folder, by ascending latent.

    Rows name the latent (`latent`, `index` or `feature`) and its explanation (`explanation`, `description` or
    `text`), and may name a `hookpoint`. JSON and YAML may be mappings from latent to text instead. From a run's
    `explanations.jsonl`, only the cell's own successful explanations are read. Empty explanations are omitted.

    Args:
        path: The file, whose suffix gives its format, or a folder of `<hookpoint>_latent<number>.txt`.
        hookpoint: The hookpoint whose rows are read; rows without one are always read.

    Raises:
        InputError: If it cannot be read, contains no explanations, names several hookpoints while `hookpoint` is empty,
            or gives one latent two different explanations.
    """
    found: dict[int, _Entry] = {}
    for entry in _chosen(path, hookpoint, further=False):
        first = found.setdefault(entry.latent, entry)
        if first.text != entry.text:
            place = f"line {first.where}" if isinstance(first.where, int) else first.where
            raise InputError(
                f"{_place(path, entry.where)}: the explanation of latent {entry.latent} differs from that of {place}; "
                "keep one, or let a scorer choose (`choose`)"
            )
    return {latent: found[latent].text for latent in sorted(found)}


def read_candidates(path: Path, hookpoint: str | None = None) -> dict[int, list[str]]:
    """Return all distinct explanations in a file, by ascending latent; a latent's are in the file's order.

    From a run's `explanations.jsonl`, those of baselines are not read, but the further ones of an import are.

    Args:
        path: As for `read_explanations`.
        hookpoint: The hookpoint whose rows are read; rows without one are always read.

    Raises:
        InputError: As for `read_explanations`, except that a latent may have several explanations.
    """
    found: dict[int, dict[str, None]] = {}
    for entry in _chosen(path, hookpoint, further=True):
        found.setdefault(entry.latent, {})[entry.text] = None
    return {latent: [*found[latent]] for latent in sorted(found)}


def _chosen(path: Path, hookpoint: str | None, *, further: bool) -> list[_Entry]:
    """Return the rows of the chosen hookpoint, with an import's further explanations or without them.

    Raises:
        InputError: If there are none, or the file has several hookpoints and `hookpoint` is None.
    """
    entries = [entry for entry in _entries(path) if further or not entry.further]
    named = sorted({entry.hookpoint for entry in entries if entry.hookpoint is not None})
    if hookpoint is None and len(named) > 1:
        raise InputError(f"{path}: explains latents of several hookpoints ({', '.join(named[:5])}); set `hookpoint`")
    if hookpoint is not None and named and hookpoint not in named:
        raise InputError(f"{path}: explains no latents of hookpoint {hookpoint!r}, only of {', '.join(named[:5])}")
    chosen = [entry for entry in entries if entry.hookpoint in (None, hookpoint) or hookpoint is None]
    if not chosen:
        raise InputError(f"{path}: contains no explanations")
    return chosen


def hash_explanations(path: Path) -> str:
    """Return the hash of a file's content, or of all explanations in a folder, independent of its location.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        if path.is_dir():
            return content_hash([[file.name, file_sha256(file)] for file in _delphi_files(path)])
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _entries(path: Path) -> Iterator[_Entry]:
    reader = _folder if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: explanations must be in {', '.join(_READERS)} files or a Delphi folder")
    try:
        for where, row in reader(path):
            try:
                entry = _entry(where, row)
            except ValueError as error:
                raise InputError(f"{_place(path, where)}: {error}") from None
            if entry is not None:
                yield entry
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; a row must be a latent and its explanation") from None


def _entry(where: int | str, row: Any) -> _Entry | None:
    """Parse a row; None if its explanation is empty, failed or a baseline's.

    Raises:
        ValueError: If the row is malformed.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a latent and its explanation, not {_short(row)}")
    notes = row.get("notes")
    further = row.get("variant", _MAIN) != _MAIN
    if row.get("status", "ok") != "ok" or (
        further and not (isinstance(notes, dict) and notes.get("candidate") is True)
    ):
        return None
    latent = _field(row, _LATENT)
    if isinstance(latent, bool) or not isinstance(latent, int | str) or not re.fullmatch(r"[0-9]{1,18}", str(latent)):
        raise ValueError(f"a latent must be a whole number, not {_short(latent)}")
    text = _field(row, _TEXT)
    if not isinstance(text, str | None):
        raise ValueError(f"the explanation of latent {latent} must be text, not {_short(text)}; put it in quotes")
    hookpoint = row.get("hookpoint") or None
    if not isinstance(hookpoint, str | None):
        raise ValueError(f"the hookpoint of latent {latent} must be text, not {_short(hookpoint)}")
    if text is None or not text.strip() or text.strip() == _UNEXPLAINED:
        return None
    return _Entry(where, hookpoint, int(latent), text.strip(), further)


def _field(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise ValueError(f"the row must have a field {', '.join(names[:-1])} or {names[-1]}")


def _json_lines(path: Path) -> Rows:
    for line, text in enumerate(_text(path).split("\n"), 1):
        if text.strip():
            yield line, _parsed(path, text, line)


def _json(path: Path) -> Rows:
    """Read the items of a list or mapping one by one, which preserves line numbers and duplicate keys."""
    text = _text(path)
    whole = _parsed(path, text, 1)
    if not isinstance(whole, list | dict):
        raise InputError(f"{path}: must be a list of rows or a mapping from latent to explanation")
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,:]*")
    line, counted, at = 1, 0, text.index("{" if isinstance(whole, dict) else "[") + 1
    while (at := _end(gap, text, at)) < len(text.rstrip()) - 1:
        line, counted = line + text.count("\n", counted, at), at
        item, at = decoder.raw_decode(text, at)
        if isinstance(whole, dict):
            value, at = decoder.raw_decode(text, _end(gap, text, at))
            item = {"latent": item, "explanation": value}
        yield line, item


def _csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        line = 1
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}:{line + 1}: has more or fewer cells than the header; put text with commas in quotes"
                    )
                yield line + 1, row
                line = reader.line_num
        except csv.Error as error:
            raise InputError(f"{path}:{line + 1}: is not CSV ({error})") from None


def _yaml(path: Path) -> Rows:
    import yaml

    text = _text(path)
    try:
        loader = yaml.SafeLoader(text)
        whole = loader.get_single_node()
        if isinstance(whole, yaml.SequenceNode):
            for node in whole.value:
                yield node.start_mark.line + 1, loader.construct_object(node, deep=True)
        elif isinstance(whole, yaml.MappingNode):
            for key, value in whole.value:
                pair = [loader.construct_object(node, deep=True) for node in (key, value)]
                yield key.start_mark.line + 1, dict(zip(("latent", "explanation"), pair, strict=True))
        else:
            raise InputError(f"{path}: must be a list of rows or a mapping from latent to explanation")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"{path}:{mark.line + 1 if mark else 1}: is not plain YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: is not plain YAML ({str(error).splitlines()[0]})") from None


def _folder(path: Path) -> Rows:
    for file in _delphi_files(path):
        hookpoint, latent = _DELPHI.fullmatch(file.name).groups()  # type: ignore[union-attr]
        text = _parsed(file, _text(file), 1)
        yield file.name, {"hookpoint": hookpoint, "latent": latent, "explanation": text}


def _delphi_files(path: Path) -> list[Path]:
    found = sorted(file for file in path.iterdir() if _DELPHI.fullmatch(file.name))
    if not found:
        raise InputError(f"{path}: no file <hookpoint>_latent<number>.txt there")
    return found


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".yaml": _yaml, ".yml": _yaml,
}  # fmt: skip


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: is not JSON ({error.msg}, column {error.colno})") from None


def _end(gap: re.Pattern[str], text: str, at: int) -> int:
    match = gap.match(text, at)
    return match.end() if match else at


def _place(path: Path, where: int | str) -> str:
    return f"{path}:{where}" if isinstance(where, int) else str(path / where)


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
