"""A run made up for the tests of reports: two contestants, two baseline cells, three scorers, two explanation baselines."""

from __future__ import annotations

from typing import Any

from saeval.records.results import CellResult, Ledger, RunResult
from saeval.records.rows import FloorSample, ScoreRow

SCORERS = {"detection": "balanced_accuracy", "fuzzing": "balanced_accuracy", "embedding": "auroc"}
VARIANTS = ("explanation", "random_explanation", "top_tokens")


def floor_sample(own: float, value: float, **changes: Any) -> FloorSample:
    """A floor judged on 24 latents."""
    return FloorSample(
        **{
            "variant": "random_explanation", "n": 24, "own": own, "value": value, "covariance": (0.02, 0.004, 0.0),
            "least_error": 0.001, "p": 0.001, "same": 0.55, "answers": 960, **changes,
        }
    )  # fmt: skip


def score_row(scorer: str, value: float | None, half: float = 0.04, **changes: Any) -> ScoreRow:
    """One row with a symmetric interval."""
    ci = None if value is None else (max(0.0, value - half), min(1.0, value + half))
    return ScoreRow(
        **{
            "scorer": scorer, "plugin": f"saeval/{scorer} 0.1.0", "metric": SCORERS.get(scorer, "balanced_accuracy"),
            "higher_is_better": True, "range": (0.0, 1.0), "value": value, "median": value, "ci95": ci, "n": 0 if value is None else 48,
            "tried": 50, "failed": 50 if value is None else 2, "unparsed": 3, "coverage": 0.0 if value is None else 0.96,
            "floor": {"chance": 0.5}, "lift": None, "windows": 1920, "answered": 1917,
            "judge": None if scorer == "embedding" else "openai/judge-1", "explanation_words": 112.5, "usd": 0.12, **changes,
        }
    )  # fmt: skip


def cell(name: str, scores: list[ScoreRow], baseline: str | None = None, **axes: str) -> CellResult:
    """One cell, of the axis `coder` and others."""
    return CellResult(
        cell=f"coder={name}", axes={"coder": name, **axes}, baseline=baseline,
        coder={"plugin": "saeval/sae_lens 0.1.0", "architecture": "topk"}, subject="some/model-1b",
        explainer="saeval/default 0.1.0 with openai/explainer-1",
        measures={"l0": 32.25, "frac_alive": 0.875}, counts={"requested": 50, "eligible": 900, "sampled": 50, "explained": 49}, scores=scores,
    )  # fmt: skip


def run_of(*cells: CellResult, **changes: Any) -> RunResult:
    """A run of these cells."""
    return RunResult(
        **{
            "run_id": "made", "task": "face-off", "task_version": "1.0", "description": "Two coders.", "spec_sha": "0123456789abcdef" * 2,
            "saeval_version": "0.1.0", "seed": 7, "rank_by": "detection.balanced_accuracy", "partial": False, "synthetic": False,
            "reproducible": True, "cells": list(cells), "warnings": ["coder=topk: something a reader must know."],
            "ledger": [Ledger(role="judge", model="openai/judge-1", calls=900, cached=100, failed=4, input_tokens=123456,
                              output_tokens=7890, usd=None)],
            "components": {"packages": {"saeval": "0.1.0", "torch": "2.9.0"}}, "seconds": {"collect": 12.5}, **changes,
        }
    )  # fmt: skip


def made_run(**changes: Any) -> RunResult:
    """Two contestants that the ranking scorer tells apart, and two baseline coders; every value is a different number."""
    cells = []
    for i, (name, baseline) in enumerate(
        [("topk", None), ("jumprelu", None), ("random_sae", "random_sae"), ("neurons", "neurons")]
    ):
        rows = []
        for j, scorer in enumerate(SCORERS):
            for k, variant in enumerate(VARIANTS):
                value = round(0.611 + 0.1 * i * (i < 2) - 0.031 * i * (i > 1) - 0.007 * j - 0.0421 * k, 4)
                main = (
                    {"floor": {"random_explanation": 0.513, "chance": 0.5}, "against": floor_sample(value, 0.513)}
                    if k == 0
                    else {"floor": {}}
                )
                rows.append(score_row(scorer, value, variant=variant, **main))
                if SCORERS[scorer] == "balanced_accuracy":
                    rows.append(score_row(scorer, value - 0.1, variant=variant, metric="f1", floor={}))
        cells.append(cell(name, rows, baseline))
    return run_of(*cells, **changes)
