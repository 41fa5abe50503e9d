"""Finds the shipped tasks: inside the wheel, or in the checkout for an editable install."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from saeval.plugin import hookimpl


@hookimpl
def saeval_task_dirs() -> list[Path]:
    packaged = Path(str(files("saeval_plugins"))) / "_tasks"
    return [packaged if packaged.is_dir() else Path(__file__).parents[2] / "tasks"]
