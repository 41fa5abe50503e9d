"""Reads and writes EleutherAI's `auto_interp_explanations` files, `<hookpoint>_feature.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saeval._util import InputError, counted, file_name, latent_number, read_json, read_json_lines, write_atomic
from saeval.exchange.imported import Imported, ImportedCell
from saeval.records import MAIN, Explanation, RunResult
from saeval.results import RunCell, cell_file

_END = "_feature.json"
_TEXT = ("explanation", "description", "text", "interpretation")
_LATENT = ("latent", "feature", "index", "id")


def write(result: RunResult, cells: Sequence[RunCell], folder: Path, names: dict[str, str]) -> list[str]:
    """Write `<hookpoint>_feature.json`, a mapping from latent to text; one folder per cell if there are several."""
    lost = []
    for cell in cells:
        root = folder / cell_file(cell) if len(cells) > 1 else folder
        root.mkdir(exist_ok=True)
        text = json.dumps({str(i): text for i, text in cell.texts.items()}, ensure_ascii=False, indent=1)
        write_atomic(root / (file_name(names.get("source", cell.hookpoint)) + _END), text)
        if cell.lost_explanations:
            left = counted(cell.lost_explanations, "other or failed explanation is", "other or failed explanations are")
            lost.append(f"{cell.name}: the files contain one explanation per latent: {left} omitted.")
        lost.append(f"{cell.name}: the files contain only explanations; scores, windows and explainers are omitted.")
    return lost


def read(path: Path) -> Imported:
    """Read one file, or all files in a folder and its subfolders, as one cell each.

    A file is a mapping from latent to text or to a row with an `explanation`, or a list or lines of such rows.

    Raises:
        InputError: If a file has another form.
    """
    if path.is_file():
        files, base = [path], path.parent
    else:
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith((_END, _END + "l")))
        base = path
    if not files:
        raise InputError(f"{path}: contains no <hookpoint>{_END}")
    cells, empty = [], 0
    for file in files:
        hookpoint = file.name.removesuffix("l").removesuffix(".json").removesuffix("_feature")
        inside = file.parent.relative_to(base).as_posix()
        axes = {"hookpoint": hookpoint} if inside == "." else {"folder": inside, "hookpoint": hookpoint}
        cell = ImportedCell(axes, hookpoint)
        for where, latent, text in _rows(file):
            if not text.strip():
                empty += 1
                continue
            number = latent_number(latent, where)
            if cell.explanations.setdefault((MAIN, number), Explanation(text=text.strip())).text != text.strip():
                raise InputError(f"{where}: latent {number} already has another explanation")
        if not cell.explanations:
            raise InputError(f"{file}: contains no explanations")
        cells.append(cell)
    warnings = ["The files contain only explanations; their scores and explainers are unknown."]
    if empty:
        warnings.append(f"{counted(empty, 'empty explanation')} omitted.")
    return Imported("auto_interp_explanations", cells, warnings)


def _rows(file: Path) -> Iterator[tuple[str, Any, str]]:
    """Yield location, latent and text of each row."""
    if file.suffix == ".jsonl":
        for where, row in read_json_lines(file):
            yield where, *_row(where, row)
        return
    whole = read_json(file)
    if isinstance(whole, dict):
        for key, value in whole.items():
            where = f"{file}: {key:.20}"
            yield where, key, value if isinstance(value, str) else _field(where, value, _TEXT)
    elif isinstance(whole, list):
        for i, row in enumerate(whole):
            yield f"{file}: item {i}", *_row(f"{file}: item {i}", row)
    else:
        raise InputError(f"{file}: must be a mapping from latents to explanations, or a list of rows")


def _row(where: str, row: Any) -> tuple[Any, str]:
    return _field(where, row, _LATENT, (int, str)), _field(where, row, _TEXT)


def _field(where: str, row: Any, names: tuple[str, ...], kinds: Any = str) -> Any:
    found = next((row[n] for n in names if n in row), None) if isinstance(row, dict) else None
    if not isinstance(found, kinds):
        raise InputError(f"{where}: has no {' or '.join(names)}; saeval does not know this form of file")
    return found
