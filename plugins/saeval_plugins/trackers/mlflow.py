"""MLflow as a tracker."""

from __future__ import annotations

import re
import time
from pathlib import Path

from saeval.plugin import RunResult, Tracker
from saeval_plugins.trackers import _facts

_TAG = "saeval.run"


class Mlflow(Tracker):
    """Logs numbers, settings and files to MLflow; MLFLOW_TRACKING_URI and its other variables apply."""

    name = "mlflow"

    experiment: str = "saeval"
    """Experiment to log to, made if it is not there."""

    def check(self) -> None:
        """Look whether MLflow is there."""
        _facts.installed("mlflow", "mlflow-skinny")

    def track(self, result: RunResult, folder: Path) -> None:
        """Log the run, over what was logged of it before."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        client, key = MlflowClient(), _facts.key(result, folder)
        experiment = client.get_experiment_by_name(self.experiment)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(self.experiment)
        known = client.search_runs([experiment_id], filter_string=f"tags.`{_TAG}` = '{key}'", max_results=1)
        run_id = (known or [client.create_run(experiment_id, run_name=result.run_id, tags={_TAG: key})])[0].info.run_id
        now = round(time.time() * 1000)
        metrics = [Metric(_plain(name), value, now, 0) for name, value in _facts.numbers(result).items()]
        params = [Param(name, str(value)) for name, value in _facts.settings(result).items()]
        for start in range(0, len(metrics), 1000):  # what one request may hold
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
        client.log_batch(run_id, params=params)
        for file in _facts.files(folder):
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)


def _plain(name: str) -> str:
    """Return a name of the characters that MLflow allows, no longer than it allows."""
    return re.sub(r"[^A-Za-z0-9_\-./ :]", "_", name)[:250]
