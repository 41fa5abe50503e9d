"""Writes the judged windows of a cell as instance-level records of Every Eval Ever, one per line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeval._util import write_atomic
from saeval.records import MAIN
from saeval.results import RunCell

SCHEMA_VERSION = "instance_level_eval_0.2.2"
"""Version of `instance_level_eval.schema.json` in github.com/evaleval/every_eval_ever that the lines follow."""


def write_samples(file: Path, cell: RunCell, record: dict[str, Any]) -> dict[str, Any] | None:
    """Write `<uuid>_samples.jsonl` beside a cell's record.

    Args:
        file: The record's file.
        cell: The cell.
        record: The record; lines refer to its evaluation and its results.

    Returns:
        The record's field that refers to the file; None if no window was judged one by one.
    """
    lines = [json.dumps(sample, ensure_ascii=False) for sample in _samples(cell, record)]
    if not lines:
        return None
    text = "\n".join(lines) + "\n"
    place = file.with_name(f"{file.stem}_samples.jsonl")
    write_atomic(place, text)
    return {
        "format": "jsonl",
        "file_path": place.name,
        "hash_algorithm": "sha256",
        "checksum": hashlib.sha256(text.encode()).hexdigest(),
        "total_rows": len(lines),
    }


def _samples(cell: RunCell, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a sample per judged window of the cell's own explanations."""
    results = {result["evaluation_result_id"]: result["evaluation_name"] for result in record["evaluation_results"]}
    named = {label: f"{cell.name}/{label}.{rows[0].metric}" for label, rows in cell.rows().items()}
    judges = {label: rows[0].judge for label, rows in cell.rows().items()}
    for row in cell.judgements:
        result = named.get(row["scorer"])
        asked = row["predicted"] is not None or row["status"] != "ok"
        if row["variant"] != MAIN or result not in results or not asked:
            continue
        window = cell.windows.get((row["latent"], row["example"]))
        text = None if window is None else "".join(window["tokens"])
        explanation = cell.texts.get(row["latent"], "")
        about = {"latent": str(row["latent"]), "scorer": row["scorer"], "window": row["example"]}
        about |= {"judge": str(judges[row["scorer"]])} if judges[row["scorer"]] else {}
        about |= {key: str(row[key]) for key in ("decile", "probability") if row[key] is not None}
        yield {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": record["evaluation_id"],
            "model_id": record["model_info"]["id"],
            "evaluation_name": results[result],
            "evaluation_result_id": result,
            **_judged(row, explanation, text),
            "metadata": about,
        }


def _judged(row: dict[str, Any], explanation: str, text: str | None) -> dict[str, Any]:
    """Return a sample's fields for question, answer and evaluation."""
    shown = f"Explanation: {explanation}\nWindow: {row['example'] if text is None else text}"
    reference, said = str(int(row["active"])), None if row["predicted"] is None else str(int(row["predicted"]))
    answered = said is not None
    from_reply = {
        "turn_idx": 0,
        "source": "output.raw",
        "extracted_value": said,
        "extraction_method": "custom",
        "is_terminal": True,
    }
    return {
        "sample_id": f"{row['latent']}/{row['example']}/{reference}",
        "sample_hash": hashlib.sha256((shown + reference).encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": shown, "reference": [reference], "choices": ["0", "1"]},
        "output": {"raw": [said] * answered},
        "answer_attribution": [from_reply] * answered,
        "evaluation": {"score": float(said == reference), "is_correct": said == reference},
        "error": None if row["status"] == "ok" else row["status"],
    }
