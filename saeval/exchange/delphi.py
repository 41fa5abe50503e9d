"""Reads and writes Delphi's results: one file per explanation, and one per scorer and latent."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saeval._util import InputError, counted, file_name, read_json, sort_key, write_atomic
from saeval.exchange.imported import Imported, ImportedCell, Scoring
from saeval.records import CLASSIFICATION, MAIN, Explanation, Outcome, RunResult, Score
from saeval.results import RunCell, cell_file

_FILE = re.compile(r"(.+)_latent(\d{1,18})\.txt")
_LABELS = {"fuzz": "fuzzing"}
_NAMES = {ours: theirs for theirs, ours in _LABELS.items()}
_QUANTILES = 10
_UNEXPLAINED = "Explanation could not be parsed."
"""The text that Delphi writes if a model's reply contained no explanation."""
_Window = tuple[tuple[str, ...], tuple[float, ...], int]
"""Tokens and activations of a window, and which of several equal windows of a file it is."""


def write(result: RunResult, cells: Sequence[RunCell], folder: Path, names: dict[str, str]) -> list[str]:
    """Write `explanations/`, `scores/` and `run_config.json`; if there are several cells, one folder per cell."""
    lost: list[str] = []
    for cell in cells:
        root = folder / cell_file(cell) if len(cells) > 1 else folder
        hookpoint = file_name(names.get("source", cell.hookpoint))
        _write_explanations(cell, root / "explanations", hookpoint)
        if cell.lost_explanations:
            left = counted(cell.lost_explanations, "other or failed explanation is", "other or failed explanations are")
            lost.append(f"{cell.name}: Delphi keeps one explanation per latent: {left} omitted.")
        lost += _write_scores(cell, root / "scores", hookpoint)
        config = {"model": names.get("model", cell.result.subject), "hookpoints": [hookpoint], "name": cell.name}
        write_atomic(root / "run_config.json", json.dumps(config, indent=4))
    return lost


def _write_explanations(cell: RunCell, folder: Path, hookpoint: str) -> None:
    folder.mkdir(parents=True)
    for latent, text in cell.texts.items():
        write_atomic(folder / f"{hookpoint}_latent{latent}.txt", json.dumps(text, ensure_ascii=False))


def _write_scores(cell: RunCell, root: Path, hookpoint: str) -> list[str]:
    lost = []
    for scorer, rows in cell.rows().items():
        if not any(row.metric == "balanced_accuracy" for row in rows):
            lost.append(f"{cell.name}: Delphi's files cannot represent scores of {scorer}; they are omitted.")
            continue
        folder = root / file_name(_NAMES.get(scorer, scorer))
        folder.mkdir(parents=True)
        unanswered = 0
        for latent, judged in cell.judged(scorer).items():
            items = [_item(row, cell.windows.get((latent, row["example"]), {})) for row in judged]
            unanswered += sum(row["status"] != "ok" for row in judged)
            name = f"{hookpoint}_latent{latent}.txt"
            write_atomic(folder / name, json.dumps(items, ensure_ascii=False))
        if missing := rows[0].tried - len(cell.judged(scorer)):
            omitted = counted(missing, f"latent of {scorer} is", f"latents of {scorer} are")
            lost.append(f"{cell.name}: {omitted} omitted, without judged windows.")
        if unanswered:
            why = "Delphi's files have no field for the reason why a window has no answer"
            lost.append(f"{cell.name}: {why}; the reasons for {counted(unanswered, 'window')} of {scorer} are omitted.")
    return lost


def _item(row: dict[str, Any], window: dict[str, Any]) -> dict[str, Any]:
    """Return one judged window as Delphi's classifier scorers write it."""
    predicted = row["predicted"] if row["status"] == "ok" else None
    return {
        "str_tokens": window.get("tokens", []),
        "activations": window.get("activations", []),
        "distance": -1 if row["decile"] is None else row["decile"],
        "activating": row["active"],
        "prediction": predicted,
        "probability": row["probability"],
        "correct": None if predicted is None else predicted == row["active"],
    }


def read(path: Path) -> Imported:
    """Read a results folder of Delphi, or a folder of such folders, as one cell per hookpoint.

    Raises:
        InputError: If it is neither, or a file is damaged.
    """
    roots = [path] if _is_results(path) else []
    if not roots and path.is_dir():
        roots = sorted(folder for folder in path.iterdir() if _is_results(folder))
    if not roots:
        raise InputError(f"{path}: has no folder explanations/ or scores/; give the results folder of a Delphi run")
    warnings: list[str] = []
    cells = [cell for root in roots for cell in _read_root(root, warnings, root.name if len(roots) > 1 else None)]
    if not any(cell.numbers for cell in cells):
        raise InputError(f"{path}: no file <hookpoint>_latent<number>.txt in explanations/ or scores/")
    warnings.append("Delphi's files do not contain firing rates, prompts and costs.")
    return Imported("Delphi", cells, list(dict.fromkeys(warnings)))


def _is_results(path: Path) -> bool:
    return (path / "explanations").is_dir() or (path / "scores").is_dir()


def _read_root(root: Path, warnings: list[str], name: str | None) -> list[ImportedCell]:
    config = read_json(root / "run_config.json") if (root / "run_config.json").is_file() else {}
    config = config if isinstance(config, dict) else {}
    cells: dict[str, ImportedCell] = {}

    def cell(hookpoint: str) -> ImportedCell:
        if hookpoint not in cells:
            axes = {"hookpoint": hookpoint} if name is None else {"run": name, "hookpoint": hookpoint}
            judge = config.get("explainer_model")
            cells[hookpoint] = ImportedCell(
                axes,
                hookpoint,
                subject=str(config.get("model") or ""),
                explainer=f"Delphi's explainer with {judge}" if isinstance(judge, str) else "",
            )
        return cells[hookpoint]

    first = _first_quantile(root / "scores")
    known: dict[tuple[str, int], dict[_Window, int]] = {}
    for file, hookpoint, latent in _files(root / "explanations"):
        cell(hookpoint).explanations[MAIN, latent] = _explanation(file)
    for folder in sorted(p for p in (root / "scores").iterdir() if p.is_dir()) if (root / "scores").is_dir() else []:
        for file, hookpoint, latent in _files(folder):
            score, examples = _score(file, latent, first, known.setdefault((hookpoint, latent), {}))
            if score is None:
                warnings.append(
                    f"scores/{folder.name} has no windows with predictions, unlike detection and fuzz; it is omitted."
                )
                continue
            label = _LABELS.get(folder.name, folder.name)
            found = cell(hookpoint)
            scoring = found.scorings.setdefault(label, Scoring(f"Delphi {folder.name}", CLASSIFICATION))
            scoring.scores[latent] = score
            found.examples += examples
    return [cells[hookpoint] for hookpoint in sorted(cells, key=sort_key)]


def _files(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield a folder's files, sorted by name, with their hookpoint and latent."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (match := _FILE.fullmatch(file.name)) and file.is_file():
            yield file, match[1], int(match[2])


def _first_quantile(scores: Path) -> int:
    """Return the number of the strongest quantile: 0 in Delphi's main branch, 1 in the paper's code."""
    largest = 0
    for folder in sorted(p for p in scores.iterdir() if p.is_dir()) if scores.is_dir() else []:
        for file, _, _ in _files(folder):
            items = read_json(file)
            rows = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
            seen = [row.get("distance") for row in rows if row.get("activating", row.get("ground_truth")) is True]
            quantiles = [number for number in seen if isinstance(number, int)]
            if 0 in quantiles:
                return 0
            largest = max([largest, *quantiles])
    return 1 if largest >= _QUANTILES else 0


def _explanation(file: Path) -> Explanation:
    text = read_json(file)
    if not isinstance(text, str):
        raise InputError(f"{file}: must contain one JSON string, the explanation")
    if not text.strip() or text.strip() == _UNEXPLAINED:
        return Explanation.failed("the model's reply contained no explanation")
    return Explanation(text=text)


def _score(file: Path, latent: int, first: int, known: dict[_Window, int]) -> tuple[Score | None, list[dict[str, Any]]]:
    """Return the score of a latent and its new windows; None if the file has no windows with predictions.

    Args:
        file: The file of a scorer.
        latent: The latent.
        first: The number of the strongest quantile.
        known: Numbers of the latent's windows in files of other scorers; this file's are added.

    Raises:
        InputError: If a window is malformed.
    """
    items = read_json(file)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"{file}: must contain a JSON list of windows")
    if not items:
        return Score.failed("no window was judged"), []
    if not all("prediction" in item and ("activating" in item or "ground_truth" in item) for item in items):
        return None, []
    windows = [_text(item) for item in items]
    before, numbers = len(known), _numbered(windows, known)
    outcomes = [_outcome(file, i, item, first, n) for i, (item, n) in enumerate(zip(items, numbers, strict=True))]
    examples = [
        {
            "latent": latent,
            "role": "score",
            "active": o.active,
            "decile": o.decile,
            "context": number,
            "start": 0,
            "document": number,
            "tokens": [*tokens],
            "activations": [*activations],
        }
        for number, o, (tokens, activations) in zip(numbers, outcomes, windows, strict=True)
        if number >= before
    ]
    return Score.of(outcomes), examples


def _text(item: dict[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return a window's tokens and activations."""
    activations = filter(_is_number, item.get("activations") or [])
    return tuple(map(str, item.get("str_tokens") or [])), tuple(activations)


def _numbered(windows: Sequence[tuple[Any, Any]], known: dict[_Window, int]) -> list[int]:
    """Return the windows' numbers: the same in all files of a latent, different for equal windows of one file."""
    times: Counter[tuple[Any, Any]] = Counter()
    numbers = []
    for window in windows:
        times[window] += 1
        numbers.append(known.setdefault((*window, times[window]), len(known)))
    return numbers


def _outcome(file: Path, place: int, item: dict[str, Any], first: int, number: int) -> Outcome:
    active, predicted = item.get("activating", item.get("ground_truth")), item["prediction"]
    probability, distance = item.get("probability"), item.get("distance")
    if not isinstance(active, bool) or predicted not in (True, False, None, -1):
        raise InputError(
            f"{file}: window {place}: activating must be true or false, prediction must be true, false or null"
        )
    if probability is not None and (not isinstance(probability, int | float) or not 0 <= probability <= 1):
        raise InputError(
            f"{file}: window {place}: the probability must be between 0 and 1, not {str(probability)!r:.40}"
        )
    quantile = distance - first if active and isinstance(distance, int) else -1
    decile = quantile if 0 <= quantile < _QUANTILES else None
    shared = {"example": f"{number}:0", "active": active, "decile": decile}
    if predicted is None or predicted == -1:
        return Outcome(**shared, status="unparsed", reason="Delphi could not parse the reply")
    return Outcome(**shared, predicted=bool(predicted), probability=probability)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
