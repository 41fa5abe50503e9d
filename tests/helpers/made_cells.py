"""Run directories made up for the tests of comparisons: scores, judgements and explanations latent by latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cell_files import write_explanations, write_judgements, write_latents
from made_run import run_of, score_row

from saeval._compare.stats import mean_interval
from saeval.plugin import derive_rng
from saeval.records.results import CellResult, RunResult

Scores = Mapping[str, Mapping[int, float]]


def cell_of(name: str, scores: Scores, failed: int = 0, **changes: Any) -> CellResult:
    """A cell with a row for every `scorer.metric` of its scores, in the order given."""
    rows = []
    for key, values in scores.items():
        scorer, metric = key.split(".")
        x = list(values.values())
        ci = mean_interval(x, derive_rng(0, name, key), low=0, high=1)
        tried = len(x) + failed
        rows.append(score_row(
            scorer, float(np.mean(x)), metric=metric, ci95=ci, n=len(x), tried=tried, failed=failed, coverage=len(x) / tried,
        ))  # fmt: skip
    return CellResult(**{
        "cell": name, "axes": {"coder": name}, "coder": {"plugin": "p 1", "architecture": "topk", "hookpoint": "layers.1"},
        "subject": "some/model-1b", "corpus": "abcdef0123456789", "explainer": "default with m", "measures": {"l0": 32.0},
        "counts": {"requested": tried, "eligible": tried, "sampled": tried, "explained": tried}, "scores": rows, **changes,
    })  # fmt: skip


def write_run(folder: Path, *cells: tuple[CellResult, Scores, Mapping[str, Any]], **changes: Any) -> RunResult:
    """Write a run directory.

    Args:
        folder: Where to.
        cells: Each with its scores, and with `firings` (by latent), `judgements` and `explanations` (rows) where wanted.
        changes: Fields of the run.
    """
    run = run_of(*(cell for cell, _, _ in cells), **{"run_id": folder.name, **changes})
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(run.model_dump_json(by_alias=True))
    for cell, scores, more in cells:
        place = folder / "cells" / cell.cell
        place.mkdir(parents=True)
        latents = sorted({i for values in scores.values() for i in values})
        firings: Mapping[int, int] = more.get("firings", {i: 100 + 7 * i for i in latents})
        write_latents(place / "latents.parquet", [
            {
                "latent": i, "firings": firings.get(i, 0), "windows": 30, "density": 0.01, "explanation_status": "ok",
                "max_activation": firings.get(i, 0) / 10, **{f"score.{k}": v[i] for k, v in scores.items() if i in v},
            } for i in latents
        ])  # fmt: skip
        write_judgements(place / "judgements.parquet", more.get("judgements", []))
        write_explanations(place / "explanations.jsonl", more.get("explanations", []))
    return run


def explained(texts: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rows of explanations."""
    return [
        {"latent": i, "variant": "explanation", "text": text, "status": "ok", "reason": "", "notes": {}}
        for i, text in texts.items()
    ]


def judged(scorer: str, latent: int, answers: Sequence[bool | None]) -> list[dict[str, Any]]:
    """Rows of judgements of windows 0, 1, …; every other one is activating."""
    return [
        {
            "latent": latent, "scorer": scorer, "variant": "explanation", "example": f"{i}:0", "active": i % 2 == 0,
            "predicted": answer, "probability": None, "decile": None, "status": "ok" if answer is not None else "unparsed",
            "reason": "",
        } for i, answer in enumerate(answers)
    ]  # fmt: skip
