"""Writes SAEBench's automated-interpretability results: one JSON document per SAE."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import saeval
from saeval._util import InputError, counted, latent_number, read_json, write_atomic
from saeval.exchange.imported import Imported, ImportedCell, Scoring
from saeval.records import ACCURACY, MAIN, Explanation, RunResult, Score
from saeval.results import RunCell, cell_file

_LABEL = "saebench_autointerp"
_OURS = "none: made by saeval"
"""Begin of `sae_bench_commit_hash` in saeval's own exports, since no commit of SAEBench made them."""


def write(result: RunResult, cells: Sequence[RunCell], folder: Path, names: dict[str, str]) -> list[str]:
    """Write `<cell>_eval_results.json`; its score is the share of windows judged correctly, mean over latents."""
    lost = [
        "These scores are not comparable with SAEBench's own, which are from 14 windows per latent, 10 of them random "
        "and not verified as non-activating."
    ]
    for cell in cells:
        scorer = _scorer(cell)
        document, lacking = _document(result, cell, scorer, names)
        write_atomic(folder / cell_file(cell, "_eval_results.json"), json.dumps(document, indent=2, ensure_ascii=False))
        if others := [label for label in cell.rows() if label != scorer]:
            lost.append(
                f"{cell.name}: SAEBench has one score per latent, here {scorer}'s; {', '.join(others)} omitted."
            )
        lost.append(f"{cell.name}: SAEBench's document has no fields for intervals, floors, failures and the judge.")
        if lacking:
            lost.append(f"{cell.name}: {counted(lacking, 'latent')} without a score omitted.")
    return lost


def _scorer(cell: RunCell) -> str:
    judging = [
        label for label, rows in cell.rows().items() if {"accuracy", "balanced_accuracy"} <= {r.metric for r in rows}
    ]
    if not judging:
        raise InputError(
            f"{cell.name}: no scorer judged windows one by one, as this format requires; add detection to the task"
        )
    return "detection" if "detection" in judging else judging[0]


def _document(result: RunResult, cell: RunCell, scorer: str, names: dict[str, str]) -> tuple[dict[str, Any], int]:
    """Return the document, and the number of latents that are not in it."""
    details: dict[str, Any] = {}
    accuracy = cell.values(scorer, "accuracy")
    for latent, judged in cell.judged(scorer).items():
        if latent not in accuracy:
            continue
        answered = [row for row in judged if row["status"] == "ok" and row["predicted"] is not None]
        details[str(latent)] = {
            "latent": latent,
            "explanation": cell.texts.get(latent, ""),
            "predictions": [i for i, row in enumerate(answered, 1) if row["predicted"]],
            "correct seqs": [i for i, row in enumerate(answered, 1) if row["active"]],
            "score": accuracy[latent],
            "logs": "",
        }
    scores = [row["score"] for row in details.values()]
    if not scores:
        raise InputError(f"{cell.name}: {scorer} scored no latent")
    coder = cell.result.coder
    model = names.get("model", cell.result.subject)
    metadata = coder.get("metadata")
    lens = metadata if isinstance(metadata, dict) else {}
    known = {name: coder[name] for name in ("architecture", "d_in", "d_sae") if name in coder}
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return {
        "eval_type_id": "autointerp",
        "eval_config": {
            "model_name": model,
            "n_latents": len(scores),
            "override_latents": [int(i) for i in details],
            "random_seed": result.seed,
        },
        "eval_id": f"{result.run_id}-{cell.name}",
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": {
            "autointerp": {
                "autointerp_score": statistics.fmean(scores),
                "autointerp_std_dev": spread,
            }
        },
        "eval_result_details": [],
        "sae_bench_commit_hash": f"{_OURS} {saeval.__version__}",
        "sae_lens_id": _text(lens.get("sae_id")) or cell.hookpoint,
        "sae_lens_release_id": _text(lens.get("release")) or cell.name,
        "sae_lens_version": None,
        "sae_cfg_dict": {
            **known,
            "model_name": model,
            "hook_name": names.get("source", cell.hookpoint),
        },
        "eval_result_unstructured": details,
    }, len(cell.latents) - len(scores)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def read(path: Path) -> Imported:
    """Read one `*_eval_results.json`, or a folder of them, as one cell each.

    Raises:
        InputError: If a document is damaged or belongs to another evaluation.
    """
    files = sorted(path.glob("*_eval_results.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: contains no *_eval_results.json")
    documents = {file: _document_in(file) for file in files}
    cells = [_cell(file, document) for file, document in documents.items()]
    if all(_text(document.get("sae_bench_commit_hash")).startswith(_OURS) for document in documents.values()):
        return Imported("saeval, in SAEBench's format", cells)
    warnings = [
        "SAEBench's score of a latent is the share of 14 windows judged correctly, 10 of them random and not verified "
        "as non-activating. A judge that always answers `none` gets 0.71."
    ]
    return Imported("SAEBench", cells, warnings)


def _document_in(file: Path) -> dict[str, Any]:
    document = read_json(file)
    if not isinstance(document, dict) or document.get("eval_type_id") != "autointerp":
        raise InputError(f"{file}: is not a result of SAEBench's autointerp evaluation")
    return document


def _cell(file: Path, document: dict[str, Any]) -> ImportedCell:
    details = document.get("eval_result_unstructured")
    if not isinstance(details, dict) or not details:
        raise InputError(f"{file}: has no results per latent (eval_result_unstructured), so nothing can be imported")
    config, sae = document.get("eval_config"), document.get("sae_cfg_dict")
    sae = sae if isinstance(sae, dict) else {}
    release, id_ = (_text(document.get(k)) for k in ("sae_lens_release_id", "sae_lens_id"))
    cell = ImportedCell(
        {"sae": "/".join(filter(None, (release, id_))) or file.name.removesuffix("_eval_results.json")},
        hookpoint=_text(sae.get("hook_name")) or id_ or "unknown",
        subject=_text(config.get("model_name")) if isinstance(config, dict) else "",
        coder={k: sae[k] for k in ("architecture", "d_in", "d_sae") if isinstance(sae.get(k), str | int)},
    )
    scoring = cell.scorings[_LABEL] = Scoring("SAEBench autointerp", (ACCURACY,))
    for key, row in details.items():
        where = f"{file}: latent {key:.20}"
        score, text = (row.get(k) for k in ("score", "explanation")) if isinstance(row, dict) else (None, None)
        latent = latent_number(key, where)
        if not isinstance(text, str):
            raise InputError(f"{where}: has no explanation")
        cell.explanations[MAIN, latent] = (
            Explanation(text=text.strip()) if text.strip() else Explanation.failed("empty")
        )
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InputError(f"{where}: the score must be between 0 and 1, not {str(score)!r:.40}")
        scoring.scores[latent] = Score(values={ACCURACY.name: float(score)})
    return cell
