"""A task: what its spec names, found, checked and laid out in cells, but not yet run."""

from __future__ import annotations

from saeval.task.loading import SHUFFLED, load_task
from saeval.task.parts import Cell, Part, RolePart, StepPart, Task

__all__ = ["SHUFFLED", "Cell", "Part", "RolePart", "StepPart", "Task", "load_task"]
