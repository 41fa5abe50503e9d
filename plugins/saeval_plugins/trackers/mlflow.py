"""Logs runs to MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeval.plugin import RunProgress, RunResult, Tracker
from saeval_plugins.trackers import _facts

_TAG = "saeval.run"


class Mlflow(Tracker):
    """Logs numbers, settings and files to MLflow; MLFLOW_TRACKING_URI and MLflow's other variables apply."""

    name = "mlflow"

    experiment: str = "saeval"
    """Experiment to log to; created if missing."""

    def check(self) -> None:
        """Check that MLflow is installed."""
        _facts.installed("mlflow", "mlflow-skinny")

    def follow(self, progress: RunProgress) -> None:
        """Log progress, by seconds since the run started."""
        client, run_id = self._run(progress, progress.folder)
        _log(client, run_id, progress.numbers, round(progress.seconds))

    def track(self, result: RunResult, folder: Path) -> None:
        """Log the run, replacing what was logged before."""
        from mlflow.entities import Param

        client, run_id = self._run(result, folder)
        _log(client, run_id, _facts.numbers(result), 0)
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in _facts.settings(result).items()])
        for file in _facts.files(folder):
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)

    def _run(self, run: RunResult | RunProgress, folder: Path) -> tuple[Any, str]:
        """Return a client and the id of the tracker's run, which is created if there is none."""
        from mlflow import MlflowClient

        client, key = MlflowClient(), _facts.key(run, folder)
        experiment = client.get_experiment_by_name(self.experiment)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(self.experiment)
        known = client.search_runs([experiment_id], filter_string=f"tags.`{_TAG}` = '{key}'", max_results=1)
        found = known or [client.create_run(experiment_id, run_name=run.run_id, tags={_TAG: key})]
        return client, found[0].info.run_id


def _log(client: Any, run_id: str, numbers: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    now = round(time.time() * 1000)
    metrics = [Metric(_plain(name), value, now, step) for name, value in numbers.items()]
    for start in range(0, len(metrics), 1000):  # most metrics in a request
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def _plain(name: str) -> str:
    """Return a valid MLflow name: other characters replaced, cut to its maximum length."""
    return re.sub(r"[^A-Za-z0-9_\-./ :]", "_", name)[:250]
