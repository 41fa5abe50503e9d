"""Writes Every Eval Ever records (schema 0.3.0): one JSON document per cell, at the path its datastore expects."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import saeval
from saeval._util import InputError, counted, file_name, write_atomic
from saeval.exchange.board_facts import beside, ended
from saeval.exchange.every_eval_ever_samples import write_samples
from saeval.records import RunResult, ScoreRow
from saeval.results import RunCell

SCHEMA_VERSION = "0.3.0"
"""Version of `eval.schema.json` in github.com/evaleval/every_eval_ever that the records follow."""
_UNKNOWN = {"deployment_type": "unknown", "model_availability": "unknown"}


def write(result: RunResult, cells: Sequence[RunCell], folder: Path, names: Mapping[str, str]) -> list[str]:
    """Write `data/<collection>/<developer>/<model>/<uuid>.json` per cell, and `<uuid>_samples.jsonl` beside it.

    The names depend only on the run, so exporting it again gives the same names.
    """
    lost = [
        "Every Eval Ever asks for the evaluator and their relation to the model, which a run does not contain: the "
        "records state `unknown` and `other`.",
        "Floors, lifts and coverage are included only as free text (score_details.details).",
        "Only windows that a scorer judged one by one are included, without the marks of fuzzing, and only the latents "
        "and explanations of these windows.",
    ]
    for cell in cells:
        document, omitted = _document(result, cell, names)
        lost += omitted
        developer, _, model = document["model_info"]["id"].rpartition("/")
        place = [f"saeval-{result.task}", developer or "unknown", model]
        digest = hashlib.sha256(f"{result.run_id} {result.spec_sha} {cell.name}".encode()).digest()
        name = f"{uuid.UUID(bytes=digest[:16], version=4)}.json"
        file = folder.joinpath("data", *map(file_name, place), name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if (samples := write_samples(file, cell, document)) is not None:
            document["detailed_evaluation_results"] = samples
        write_atomic(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return lost


def _document(result: RunResult, cell: RunCell, names: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the record, and a sentence about each kind of metric that it omits."""
    model = names.get("model", cell.result.subject) or "unknown"
    moment, now = ended(cell), time.time()
    rows = [row for rows in cell.rows().values() for row in rows]
    scored = [row for row in rows if row.value is not None]
    directed = [row for row in scored if row.higher_is_better is not None]  # the schema requires a direction
    if not directed:
        undirected = "has only scores of which neither high nor low values are better, which the format cannot hold"
        raise InputError(f"{cell.name}: {undirected if scored else 'has no score to export'}")
    omitted = []
    if empty := len(rows) - len(scored):
        omitted.append(f"{cell.name}: {counted(empty, 'metric is', 'metrics are')} omitted, which have no value.")
    for row in scored:
        if row.higher_is_better is None:
            why = "neither high nor low values are better"
            omitted.append(f"{cell.name}: {row.scorer}.{row.metric} is omitted: {why}.")
    about = {
        "task_version": result.task_version, "spec_sha": result.spec_sha, "run_id": result.run_id,
        "seed": str(result.seed), "synthetic": str(result.synthetic).lower(),
        "recorded": str(result.recorded).lower(), "reproducible": str(result.reproducible).lower(),
    }  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"saeval-{result.task}/{model}/{cell.name}/{moment or now}",
        **({"evaluation_timestamp": str(moment)} if moment is not None else {}),
        "retrieved_timestamp": str(now),
        "source_metadata": {
            "source_name": f"saeval task {result.task}",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
            "additional_details": about,
        },
        "eval_library": {"name": "saeval", "version": result.saeval_version or saeval.__version__},
        "model_info": _model(cell, model, names),
        "evaluation_results": [_score(result, cell, row) for row in directed],
    }, omitted


def _model(cell: RunCell, model: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what was evaluated: a coder on a model. The record's id is the model's; the coder is in the details."""
    facts = {name: value for name, value in cell.result.coder.items() if isinstance(value, str | int | float)}
    facts |= cell.result.measures | {"hookpoint": names.get("source", cell.hookpoint)}
    facts |= {"cell": cell.name, "explainer": cell.result.explainer, "baseline": cell.result.baseline or "no"}
    return {
        "name": f"{cell.name} on {model}",
        "id": model,
        "additional_details": {**{name: str(value) for name, value in facts.items()}, **_UNKNOWN},
    }


def _score(result: RunResult, cell: RunCell, row: ScoreRow) -> dict[str, Any]:
    low, high = row.range
    config: dict[str, Any] = {
        "evaluation_description": f"{row.metric} of {row.scorer}, mean over latents ({row.plugin})",
        "metric_id": f"saeval.{row.scorer}.{row.metric}",
        "metric_name": row.metric,
        "lower_is_better": not row.higher_is_better,
        "score_type": "continuous",
        "min_score": "-Infinity" if low is None else low,
        "max_score": "Infinity" if high is None else high,
    }
    if row.judge is not None:
        judge = {"name": row.judge, "id": row.judge, "additional_details": dict(_UNKNOWN)}
        config["llm_scoring"] = {
            "judges": [{"model_info": judge}],
            "input_prompt": f"Prompts of {row.plugin}; saeval keeps them by latent in the run's calls.parquet.",
            "additional_details": {"judge_check": row.verdict or "not checked"},
        }
    uncertainty: dict[str, Any] = {"num_samples": row.n}
    if row.ci95 is not None:
        lower, upper = row.ci95
        uncertainty["confidence_interval"] = {
            "lower": lower, "upper": upper, "confidence_level": 0.95, "method": row.method,
        }  # fmt: skip
    return {
        "evaluation_result_id": f"{cell.name}/{row.scorer}.{row.metric}",
        "evaluation_name": f"saeval {result.task}: {row.scorer}",
        "source_data": {
            "dataset_name": cell.result.corpus or "unknown corpus",
            "source_type": "other",
            "additional_details": {"content": "hash of the corpus as the subject's tokens"},
        },
        "metric_config": config,
        "score_details": {"score": row.value, "details": beside(row), "uncertainty": uncertainty},
    }
