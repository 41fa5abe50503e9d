"""Writes files for upload to Neuronpedia, and reads its exported explanations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from saeval._util import InputError, counted, latent_number, read_json_lines, sort_key, write_atomic
from saeval.exchange.imported import Imported, ImportedCell
from saeval.records import MAIN, Explanation, RunResult
from saeval.results import RunCell, cell_file

_FEATURES, _LETTERS, _TOKENS, _WINDOWS = 128, 512, 1024, 40
"""Limits of an upload: features, characters per explanation, tokens per window; and windows written per latent."""
_SCORE_TYPES = {
    "saeval/detection": "eleuther_recall", "saeval/fuzzing": "eleuther_fuzz", "saeval/embedding": "eleuther_embedding",
    "Delphi detection": "eleuther_recall", "Delphi fuzz": "eleuther_fuzz",
}  # fmt: skip
"""Neuronpedia's score type, by scorer, as runs and imports of Delphi's files name it."""
_MADE_BY = ("typeName", "explanationModelName")
_SUFFIXES = (".jsonl", ".jsonl.gz")


def write(result: RunResult, cells: Sequence[RunCell], folder: Path, names: dict[str, str]) -> list[str]:
    """Write a `.jsonl` file per cell; each line is the body of a request to `/api/feature/upload-batch`. Sends nothing.

    Scores are in `scores/`, in a file with the same name.

    Latents without an explanation or without an activating window are omitted, because the site does not accept them.
    """
    lost = []
    for cell in cells:
        known = cell.result.coder.get("metadata")
        id_ = str(known.get("neuronpedia_id", "")) if isinstance(known, dict) else ""
        model, _, source = id_.partition("/")
        model, source = names.get("model", model), names.get("source", source)
        if not model or not source:
            raise InputError(
                f"{cell.name}: Neuronpedia's names of the model and hookpoint are unknown; give --model and --source"
            )
        features, cut = _features(cell)
        batches = [features[i : i + _FEATURES] for i in range(0, len(features), _FEATURES)]
        lines = [{"modelId": model, "source": source, "features": batch} for batch in batches]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(folder / cell_file(cell, ".jsonl"), text)
        if not features:
            raise InputError(f"{cell.name}: no latent has both an explanation and activating windows")
        if cut:
            lost.append(f"{cell.name}: {counted(cut, 'explanation is', 'explanations are')} cut to {_LETTERS} letters.")
        if missing := len(cell.latents) - len(features):
            lost.append(f"{cell.name}: {counted(missing, 'latent')} without explanation or windows omitted.")
        lost += _write_scores(cell, folder, {"modelId": model, "layer": source})
        lost.append(
            f"{cell.name}: the site only accepts explainer names added by its makers, so the explainer is omitted; "
            f"it was {cell.result.explainer}."
        )
    return lost


def _write_scores(cell: RunCell, folder: Path, place: dict[str, str]) -> list[str]:
    """Write `scores/<cell>.jsonl`: a row per latent and scorer with the fields of the site's table of scores.

    The site identifies an explanation by an id that it assigns on upload; until then, latent and text identify it.
    """
    rows, unknown = [], []
    for scorer, scored in cell.rows().items():
        head = scored[0]
        type_ = _SCORE_TYPES.get(head.plugin) or _SCORE_TYPES.get(head.plugin.partition(" ")[0])
        if type_ is None:
            unknown.append(scorer)
            continue
        values = {row.metric: cell.values(scorer, row.metric) for row in scored}
        metric = "accuracy" if "accuracy" in values else head.metric
        names = {"explanationScoreTypeName": type_, "explanationScoreModelName": head.judge or head.plugin}
        for latent, value in values[metric].items():
            details = {name: of[latent] for name, of in values.items() if latent in of}
            score = {"value": value, "jsonDetails": json.dumps({"saeval": head.plugin, "metric": metric, **details})}
            text = cell.texts.get(latent, "")[:_LETTERS]
            rows.append({**place, "index": str(latent), "description": text, **names, **score})
    said = [f"{cell.name}: the site has no type of score for {', '.join(unknown)}; omitted."] if unknown else []
    if rows:
        (folder / "scores").mkdir(exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(folder / "scores" / cell_file(cell, ".jsonl"), text)
        said.append(
            f"{cell.name}: `upload-batch` takes no scores; the files in scores/ have the fields of the site's own "
            f"table, for its makers to import."
        )
    return said


def _features(cell: RunCell) -> tuple[list[dict[str, Any]], int]:
    """Return the cell's features, and the number of truncated explanations."""
    windows: dict[int, list[dict[str, Any]]] = {}
    for row in cell.examples:
        if row["active"] and 0 < len(row["tokens"]) <= _TOKENS:
            windows.setdefault(row["latent"], []).append(row)
    density = {row["latent"]: row["density"] for row in cell.latents}
    features = []
    for latent, text in cell.texts.items():
        if latent not in windows:
            continue
        shown = sorted(windows[latent], key=lambda row: (-max(row["activations"]), row["context"], row["start"]))
        features.append(
            {
                "index": str(latent),
                **({"density": density[latent]} if density.get(latent) is not None else {}),
                "activations": [{"tokens": row["tokens"], "values": row["activations"]} for row in shown[:_WINDOWS]],
                "explanations": [{"text": text[:_LETTERS]}],
            }
        )
    return features, sum(len(cell.texts[int(f["index"])]) > _LETTERS for f in features)


def read(path: Path) -> Imported:
    """Read an export's explanations, `explanations/batch-*.jsonl.gz`, or upload files written by `write`.

    An export becomes one cell per model and hookpoint, an upload one cell per file. If a latent has several
    explanations, the first is the cell's own; the others become variants named after their method and model.

    Raises:
        InputError: If there is no such file, or a row is malformed.
    """
    found = _Found()
    for file in _files(path):
        for where, row in read_json_lines(file):
            if isinstance(row, dict) and "features" in row:
                found.take_upload(where, row, file.name.partition(".")[0])
            else:
                found.take(where, row)
    if not found.cells:
        raise InputError(f"{path}: contains no explanations")
    return Imported("Neuronpedia", list(found.cells.values()), found.warnings())


class _Found:
    """Collects cells and warnings row by row.

    Attributes:
        cells: The cells by model, hookpoint and file of an upload.
    """

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str, str], ImportedCell] = {}
        self._others = self._scored = self._empty = self._windows = 0

    def take_upload(self, where: str, row: dict[str, Any], file: str) -> None:
        """Add a line of an upload: features with explanations and density. Windows are only counted."""
        if not isinstance(row["features"], list):
            raise InputError(f"{where}: features must be a list")
        for feature in row["features"]:
            if not isinstance(feature, dict) or not isinstance(feature.get("explanations"), list):
                raise InputError(f"{where}: each feature must have an index and explanations")
            place = {"modelId": row.get("modelId"), "source": row.get("source"), "index": feature.get("index")}
            for explanation in feature["explanations"]:
                text = explanation.get("text") if isinstance(explanation, dict) else explanation
                cell, latent = self._take(where, {**place, "description": text}, file)
                if cell is not None and isinstance(feature.get("density"), int | float):
                    cell.latents[latent] = {"density": float(feature["density"])}
            self._windows += bool(feature.get("activations"))

    def take(self, where: str, row: Any) -> None:
        """Add a row of an export, which is one explanation."""
        self._take(where, row, "")

    def _take(self, where: str, row: Any, file: str) -> tuple[ImportedCell | None, int]:
        if not isinstance(row, dict) or not isinstance(row.get("description"), str | None):
            raise InputError(f"{where}: must be an explanation with index and description")
        if "index" not in row or "description" not in row:
            missing = "index" if "index" not in row else "description"
            raise InputError(f"{where}: has no {missing}; give a file of explanations")
        latent = latent_number(row["index"], where)
        self._scored += bool(row.get("scores"))
        text = (row["description"] or "").strip()
        if not text:
            self._empty += 1
            return None, latent
        made = [str(row[k]) for k in _MADE_BY if row.get(k)]
        cell = self._cell(row, file)
        cell.explainer = cell.explainer or " with ".join(made)
        variant = MAIN
        notes: dict[str, JsonValue] = {k: row[k] for k in _MADE_BY if isinstance(row.get(k), str)}
        if (MAIN, latent) in cell.explanations:
            self._others += 1
            variant = _unused("/".join(made) or "other", latent, cell)
            notes["candidate"] = True  # for `choose` of the explainer `precomputed`, which ignores other variants
        cell.explanations[variant, latent] = Explanation(text=text, notes=notes)
        return cell, latent

    def _cell(self, row: dict[str, Any], file: str) -> ImportedCell:
        model, place = str(row.get("modelId") or ""), str(row.get("layer") or row.get("source") or "unknown")
        axes = {"model": model, "source": place, "file": file}
        named = {axis: value for axis, value in axes.items() if value}
        return self.cells.setdefault((model, place, file), ImportedCell(named, place, subject=model))

    def warnings(self) -> list[str]:
        """Return what was omitted, and other warnings for readers."""
        said = ["The author of an explanation, if Neuronpedia names one, is in its notes."]
        others, empty, scored, windows = self._others, self._empty, self._scored, self._windows
        if others:
            said.append(f"{counted(others, 'further explanation')} of latents kept as variants.")
        if empty:
            said.append(f"{counted(empty, 'empty explanation')} omitted.")
        if scored:
            said.append(f"Neuronpedia's own scores of {counted(scored, 'explanation')} are omitted.")
        if windows:
            said.append(f"The windows of {counted(windows, 'latent')} are omitted.")
        return said


def _unused(base: str, latent: int, cell: ImportedCell) -> str:
    """Return a name for a variant that the latent does not have yet."""
    variant, n = base, 2
    while (variant, latent) in cell.explanations:
        variant, n = f"{base}-{n}", n + 1
    return variant


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.name.endswith(_SUFFIXES):
        return [path]
    for folder in (path / "explanations", path):
        if folder.is_dir() and (found := [p for p in folder.iterdir() if p.name.endswith(_SUFFIXES)]):
            return sorted(found, key=lambda p: sort_key(p.name))
    raise InputError(f"{path}: contains no .jsonl or .jsonl.gz file; give an export's folder of explanations")
