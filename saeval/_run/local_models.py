"""Determines which stages of a task use models in this process."""

from __future__ import annotations

from saeval.task import Task


def collects_with_model(task: Task) -> bool:
    """Return whether activations are read from a model in this process."""
    return any("subject" in cell.source.plugin.offers() for cell in task.cells)


def asks_model_in_process(task: Task) -> bool:
    """Return whether explaining or scoring uses a model in this process: a language model, or the subject."""
    llms = [role.part.plugin for role in task.roles.values()]
    judges = any(llm.in_process and not (llm.synthetic or llm.recorded) for llm in llms)
    return judges or any("subject" in part.plugin.needs() for part in task.parts())
