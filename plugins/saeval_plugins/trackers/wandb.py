"""Logs runs to Weights & Biases, or to trackio on this machine."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from saeval.plugin import InputError, RunProgress, RunResult, Tracker
from saeval_plugins.trackers import _facts


class _OpenRuns(Tracker):
    """Base class of trackers whose run stays open from the first progress report to the end."""

    project: str = "saeval"
    """Project to log to."""
    _open: dict[str, Any] = PrivateAttr(default_factory=dict)

    @abstractmethod
    def _begin(self, key: str, run: RunResult | RunProgress) -> Any:
        """Open or reopen a run."""

    def _settled(self, run: Any, result: RunResult, key: str, folder: Path) -> None:
        """Log final facts other than numbers."""

    def follow(self, progress: RunProgress) -> None:
        """Log progress."""
        key = _facts.key(progress, progress.folder)
        if key not in self._open:
            self._open[key] = self._begin(key, progress)
        self._open[key].log({"seconds": progress.seconds, **progress.numbers})

    def track(self, result: RunResult, folder: Path) -> None:
        """Log the run, and close it."""
        key = _facts.key(result, folder)
        run = self._open.pop(key, None) or self._begin(key, result)
        try:
            run.log(_facts.numbers(result))
            self._settled(run, result, key, folder)
        finally:
            run.finish()


class Wandb(_OpenRuns):
    """Logs numbers, settings and files to Weights & Biases; WANDB_API_KEY, WANDB_MODE and other wandb variables apply.

    A wandb run opened by your own code is not changed.
    """

    name = "wandb"

    entity: str | None = None
    """User or team; default: wandb's own default."""

    def check(self) -> None:
        """Check that wandb is installed and has a key or is offline."""
        _facts.installed("wandb", "wandb>=0.19.10")
        if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or (Path.home() / ".netrc").exists()):
            raise InputError("wandb has no key; set WANDB_API_KEY, or WANDB_MODE=offline to log on this machine only")

    def _begin(self, key: str, run: RunResult | RunProgress) -> Any:
        import wandb

        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=key,
            name=run.run_id,
            resume="allow",
            reinit="create_new",  # a training loop that calls saeval may have its own run open
            mode=os.environ.get("WANDB_MODE") or None,
            tags=[run.task],
            settings=wandb.Settings(silent=True, console="off"),
        )

    def _settled(self, run: Any, result: RunResult, key: str, folder: Path) -> None:
        import wandb

        run.config.update(_facts.settings(result), allow_val_change=True)
        artifact = wandb.Artifact(key, type="saeval-run")
        for file in _facts.files(folder):
            artifact.add_file(str(file))
        run.log_artifact(artifact)


class Trackio(_OpenRuns):
    """Logs numbers and settings to trackio, on this machine or, with `space`, in a Space of the Hugging Face hub."""

    name = "trackio"

    space: str | None = None
    """Space to log to, `user/name`."""

    def check(self) -> None:
        """Check that trackio is installed."""
        _facts.installed("trackio", "trackio")

    def _begin(self, key: str, run: RunResult | RunProgress) -> Any:
        import trackio

        config = _facts.settings(run) if isinstance(run, RunResult) else {"task": run.task, "spec_sha": run.spec_sha}
        return trackio.init(
            project=self.project, name=key, config=config, space_id=self.space, resume="allow", embed=False
        )
