"""Built-in experiment trackers."""

from __future__ import annotations

from saeval.plugin import Tracker, hookimpl
from saeval_plugins.trackers.mlflow import Mlflow
from saeval_plugins.trackers.wandb import Trackio, Wandb


@hookimpl
def saeval_trackers() -> list[type[Tracker]]:
    return [Mlflow, Trackio, Wandb]
