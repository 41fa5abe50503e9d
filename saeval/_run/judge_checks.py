"""Stores the results of `judge-check`, so that later runs with the same judge can use them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._compare import verdict
from saeval._util import cache_dir, content_hash, without_secrets, write_atomic
from saeval.records import MAIN, JudgeCheck, RunResult, ScorerCheck, ScoreRow

if TYPE_CHECKING:
    from saeval.task import RolePart, StepPart, Task

_CHECKED = "balanced_accuracy"


def _place(role: RolePart) -> Path:
    """Return the file of a judge, named by the hash of model, plugin, options and temperature."""
    return cache_dir() / "judge-checks" / f"{content_hash('judge', role.identity)}.json"


def keep(task: Task, result: RunResult) -> None:
    """Save the result of a check.

    Args:
        task: The task of the check; its `checks` names the role.
        result: Its result.
    """
    role = task.roles[str(task.checks)]
    scores = [row for cell in result.cells for row in cell.scores if row.value is not None]
    first: dict[tuple[str, str], ScoreRow] = {}
    for row in scores:
        first.setdefault((row.scorer, row.variant), row)
    check = JudgeCheck(
        model=role.model,
        task=result.task,
        task_version=result.task_version,
        when=time.strftime("%Y-%m-%d", time.gmtime()),
        latents=max((row.n for row in scores), default=0),
        scores=list(first.values()),
        scorers=_scorers(task, scores, {d.scorer: d.negatives_n for cell in result.cells for d in cell.deciles}),
    )
    place = _place(role)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, check.model_dump_json())


def _scorers(task: Task, rows: list[ScoreRow], windows: Mapping[str, int]) -> list[ScorerCheck]:
    """Return sensitivity, specificity and verdict under each scorer that judges both kinds of windows."""
    steps = {label: step for cell in task.cells for label, step in cell.scorers.items()}
    found = []
    for row in rows:
        if row.variant != MAIN or row.metric != _CHECKED or row.value is None or row.ci95 is None:
            continue
        recalls = [r.value for r in rows if (r.scorer, r.variant, r.metric) == (row.scorer, MAIN, "recall")]
        sensitivity = next(iter(recalls), None)
        found.append(
            ScorerCheck(
                scorer=row.scorer,
                asks=steps[row.scorer].part.sha,
                balanced_accuracy=row.value,
                ci95=row.ci95,
                n=row.n,
                windows=windows.get(row.scorer, 0),
                sensitivity=sensitivity,
                specificity=None if sensitivity is None else 2 * row.value - sensitivity,
                verdict=verdict(row.value, row.ci95),
            )
        )
    return found


def find(role: RolePart) -> JudgeCheck | None:
    """Return the check of a role's model with exactly these options; None if it was never checked."""
    try:
        return JudgeCheck.model_validate_json(_place(role).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def of_scorer(check: JudgeCheck | None, step: StepPart[Any]) -> ScorerCheck | None:
    """Return the check of a judge under a scorer with the same prompts; None if there is none."""
    return next((found for found in check.scorers if found.asks == step.part.sha), None) if check else None


def command(task: Task, role: RolePart) -> str:
    """Return the command that checks a role's model with the options of this task."""
    spec = task.resolved.get("llms", {}).get(role.role, {})
    aside = {"model", *type(role.settings).model_fields} - {"temperature", "max_tokens"}
    options = [f"llms.judge.{key}={value}" for key, value in spec.items() if key not in aside and value is not None]
    sets = "".join(f" --set {shlex.quote(without_secrets(option))}" for option in options)
    return f"saeval run judge-check --llm judge={shlex.quote(role.model)}{sets}"
