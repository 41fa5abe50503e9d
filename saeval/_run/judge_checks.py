"""What `judge-check` found of a model, kept where every later run that is judged by the same model finds it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from saeval._util import cache_dir, content_hash, write_atomic
from saeval.records import JudgeCheck, RunResult, ScoreRow

if TYPE_CHECKING:
    from saeval.task import RolePart


def _place(role: RolePart) -> Path:
    """A model is known by its name and the plugin that reaches it, whatever its settings in one task or another."""
    return cache_dir() / "judge-checks" / f"{content_hash(role.model, role.part.loaded.id)}.json"


def keep(role: RolePart, result: RunResult) -> None:
    """Keep the result of a check.

    Args:
        role: The role whose model was checked.
        result: The run of a task that declares `checks`.
    """
    scores = [row for cell in result.cells for row in cell.scores if row.value is not None]
    first: dict[tuple[str, str], ScoreRow] = {}
    for row in scores:
        first.setdefault((row.scorer, row.variant), row)
    check = JudgeCheck(
        model=role.model, task=result.task, task_version=result.task_version, when=time.strftime("%Y-%m-%d", time.gmtime()),
        latents=max((row.n for row in scores), default=0), scores=list(first.values()),
    )  # fmt: skip
    place = _place(role)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, check.model_dump_json())


def find(role: RolePart) -> JudgeCheck | None:
    """Return what a check found of a role's model, or None where it was never checked."""
    try:
        return JudgeCheck.model_validate_json(_place(role).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
