"""A task can name any metric of `evaluate` over what a scorer judged."""

from __future__ import annotations

import pytest
from planted_run import spec, truthful_server

import saeval

pytestmark = pytest.mark.slow

METRIC = '''
import datasets
import evaluate


class Hits(evaluate.Metric):
    """Share of the positives that were found."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"hits": sum(p and r for p, r in zip(predictions, references)) / sum(references)}
'''


def test_metric_script_is_computed_over_the_judged_windows(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    script = tmp_path / "hits.py"
    script.write_text(METRIC)
    with truthful_server() as server:
        scorers = {"hits": {"use": "evaluate", "with": {"scorer": {"use": "detection"}, "metric": str(script)}}}
        result = saeval.run(spec(server, scorers=scorers, baselines=["shuffled_explanation"]), out=tmp_path / "run")
    own = {r.metric: r for r in result.cells[0].scores if r.variant == "explanation"}
    assert own["hits"].value == own["recall"].value == 1.0
    assert next(r for r in result.cells[0].scores if r.variant != "explanation").value < 0.7


def test_missing_metric_is_a_reason_not_a_number(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with truthful_server() as server:
        scorers = {"hits": {"use": "evaluate", "with": {"scorer": {"use": "detection"}, "metric": "./no-such-metric"}}}
        with pytest.raises(saeval.SaevalError, match="could not be loaded"):
            saeval.run(spec(server, scorers=scorers, baselines=[], run={"give_up_after": 2}), out=tmp_path / "run")
