"""Trackers with the interface of Weights & Biases: wandb, and trackio, which stays on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from saeval.plugin import InputError, RunResult, Tracker
from saeval_plugins.trackers import _facts


class Wandb(Tracker):
    """Logs numbers, settings and files to Weights & Biases; WANDB_API_KEY, WANDB_MODE and its other variables apply."""

    name = "wandb"

    project: str = "saeval"
    """Project to log to."""
    entity: str | None = None
    """User or team; default: wandb's own default."""

    def check(self) -> None:
        """Look whether wandb is there, and allowed to log."""
        _facts.installed("wandb", "wandb")
        if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or (Path.home() / ".netrc").exists()):
            raise InputError("wandb knows no key; set WANDB_API_KEY, or WANDB_MODE=offline to log on this machine only")

    def track(self, result: RunResult, folder: Path) -> None:
        """Log the run, and its files as an artifact."""
        import wandb

        key = _facts.key(result, folder)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=key,
            name=result.run_id,
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or None,
            config=_facts.settings(result),
            tags=[result.task],
            settings=wandb.Settings(silent=True, console="off"),
        )
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

    def check(self) -> None:
        """Look whether trackio is there."""
        _facts.installed("trackio", "trackio")

    def track(self, result: RunResult, folder: Path) -> None:
        """Log the run."""
        import trackio

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
