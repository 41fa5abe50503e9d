"""Writes Hugging Face evaluation results: `.eval_results/*.yaml` for a model repository, and model-card metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saeval._util import InputError, counted, file_name, write_atomic
from saeval.exchange.board_facts import beside, ended
from saeval.records import RunResult, ScoreRow
from saeval.results import RunCell, cell_file

_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def write(result: RunResult, cells: Sequence[RunCell], folder: Path, names: Mapping[str, str]) -> list[str]:
    """Write a folder per contestant: `.eval_results/<task>.yaml` with headline scores, `model-index.yaml` with all.

    Raises:
        InputError: If `names` has no dataset, to which every entry of `.eval_results` must refer.
    """
    import yaml

    dataset = names.get("dataset", "")
    if not _REPO.fullmatch(dataset):
        raise InputError(
            "each result must name the dataset repository of its benchmark; set --dataset OWNER/NAME, for example to "
            "the one that `saeval push` created"
        )
    lost = [
        "The Hub shows `.eval_results` only for datasets that are registered as benchmarks with the task's id in their "
        f"eval.yaml; this was not checked for {dataset}.",
        "The format has no fields for intervals, floors and the judge; they are in `notes`, and in the card's metric "
        "`args`.",
    ]
    for cell in cells:
        if cell.result.baseline:
            lost.append(f"{cell.name}: is a baseline, which has no model repository; omitted.")
            continue
        rows = [row for rows in cell.rows().values() for row in rows if row.value is not None]
        headlines = [scored[0] for scored in cell.rows().values() if scored and scored[0].value is not None]
        if not headlines:
            raise InputError(f"{cell.name}: no headline metric has a score to export")
        place = folder / cell_file(cell)
        (place / ".eval_results").mkdir(parents=True)
        entries = [_entry(result, cell, row, dataset) for row in headlines]
        card = {"model-index": [_card(result, cell, rows, names, dataset)]}
        for file, content in ((f".eval_results/{file_name(result.task)}.yaml", entries), ("model-index.yaml", card)):
            write_atomic(place / file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        if len(rows) > len(headlines):
            others = counted(len(rows) - len(headlines), "metric is", "metrics are")
            lost.append(f"{cell.name}: {others} in model-index.yaml only.")
    return lost


def _entry(result: RunResult, cell: RunCell, row: ScoreRow, dataset: str) -> dict[str, Any]:
    """Return one entry of `.eval_results`; the task's id contains scorer and metric, so that each has its own board."""
    moment = ended(cell)
    date = {} if moment is None else {"date": datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")}
    return {
        "dataset": {"id": dataset, "task_id": f"{result.task}/{row.scorer}.{row.metric}"},
        "value": row.value,
        **date,
        "source": {"url": f"https://huggingface.co/datasets/{dataset}", "name": "saeval run"},
        "notes": _notes(result, cell, row),
    }


def _notes(result: RunResult, cell: RunCell, row: ScoreRow) -> str:
    marks = {"synthetic": result.synthetic, "recorded replies": result.recorded, "partial": result.partial}
    said = [mark for mark, on in marks.items() if on]
    if row.ci95 is not None:
        said.append(f"95 % CI {row.ci95[0]:.3f} to {row.ci95[1]:.3f}")
    said += [f"{name} {value}" for name, value in beside(row).items()]
    return "; ".join(
        [*said, f"cell {cell.name}", f"{result.task} {result.task_version}, saeval {result.saeval_version}"]
    )


def _card(
    result: RunResult, cell: RunCell, rows: Sequence[ScoreRow], names: Mapping[str, str], dataset: str
) -> dict[str, Any]:
    metrics = [
        {
            "type": f"saeval.{row.scorer}.{row.metric}",
            "value": row.value,
            "name": f"{row.metric} ({row.scorer})",
            "args": {**({"ci95": list(row.ci95)} if row.ci95 else {}), **beside(row)},
        }
        for row in rows
    ]
    return {
        "name": f"{names.get('model', cell.result.subject) or 'unknown'} {names.get('source', cell.hookpoint)}",
        "results": [
            {
                "task": {"type": "interpretability", "name": f"{result.task} {result.task_version}"},
                "dataset": {"type": dataset, "name": result.task},
                "metrics": metrics,
                "source": {"name": "saeval run", "url": f"https://huggingface.co/datasets/{dataset}"},
            }
        ],
    }
