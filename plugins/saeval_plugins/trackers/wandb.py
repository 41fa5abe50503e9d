"""Trackers that follow Weights & Biases' interface: wandb itself, and trackio, which keeps everything on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saeval import InputError, RunResult, Tracker
from saeval_plugins.trackers import _facts


class Wandb(Tracker):
    """Logs numbers, settings and files to Weights & Biases; WANDB_API_KEY, WANDB_MODE and its other variables hold."""

    name = "wandb"

    project: str = "saeval"
    """Project to log to."""
    entity: str | None = None
    """User or team; wandb's own default when left out."""

    def track(self, result: RunResult, folder: Path) -> None:
        """Log the run, and its files as an artifact."""
        wandb = _imported("wandb")
        key = _facts.key(result, folder)
        run = wandb.init(
            project=self.project, entity=self.entity, id=key, name=result.run_id, resume="allow",
            config=_facts.settings(result), tags=[result.task], settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        try:
            run.log(_facts.numbers(result))
            artifact = wandb.Artifact(key, type="saeval-run")
            for file in _facts.files(folder):
                artifact.add_file(str(file))
            run.log_artifact(artifact)
        finally:
            run.finish()


class Trackio(Tracker):
    """Logs numbers and settings to trackio, on this machine or, with `space`, in a Space of the Hugging Face hub."""

    name = "trackio"

    project: str = "saeval"
    """Project to log to."""
    space: str | None = None
    """Space to log to, `user/name`."""

    def track(self, result: RunResult, folder: Path) -> None:
        """Log the run."""
        trackio = _imported("trackio")
        key = _facts.key(result, folder)
        trackio.init(
            project=self.project,
            name=key,
            config=_facts.settings(result),
            space_id=self.space,
            resume="allow",
            embed=False,
        )
        try:
            trackio.log(_facts.numbers(result))
        finally:
            trackio.finish()


def _imported(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{module} is not installed; `pip install {module}`") from None
