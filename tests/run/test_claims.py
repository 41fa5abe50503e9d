"""Claims are held against a run's own numbers: on planted scores with a known truth, and through whole runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from planted_run import spec, truthful_server

from saeval import SpecError
from saeval._run.claims import evaluate
from saeval._run.sampling import Records
from saeval._run.state import Scored
from saeval.cli.group import main
from saeval.plugin import AUROC, BALANCED_ACCURACY, Metric, Score, Usage
from saeval.plugin.registry import Registry
from saeval.records.metrics import RECALL
from saeval.records.results import Finding, read_result
from saeval.records.scores import Explanation
from saeval.report.markdown import markdown_report
from saeval.report.terminal import finding_line
from saeval.task.loader import load_task
from saeval.task.spec import FindingSpec

NATS = Metric("nats", low=float("-inf"), high=float("inf"))
METRICS = {"detection": (BALANCED_ACCURACY, RECALL), "embedding": (AUROC,), "intervention": (NATS,)}


class Weights:
    def __init__(self, directions: np.ndarray | None):
        self.found = directions

    def directions(self) -> Any:
        return None if self.found is None else torch.from_numpy(self.found)


def cell(axes: Mapping[str, Any], scores: Mapping[str, Any], *, store: str = "", baseline: str | None = None,
         directions: np.ndarray | None = None, tokens: Mapping[str, int] | None = None) -> Any:  # fmt: skip
    """A cell with planted scores: by `label.metric` or `label.metric of explanation`, a row of values, one a latent."""
    columns: dict[tuple[str, str], dict[str, Any]] = {}
    for name, values in scores.items():
        key, _, explanation = name.partition(" of ")
        label, _, metric = key.partition(".")
        columns.setdefault((label, explanation or "explanation"), {})[metric] = values
    scored = {}
    for (label, explanation), metrics in columns.items():
        into = scored[label, explanation] = Scored(tried=max(map(len, metrics.values())))
        into.spent.add(Usage(input_tokens=(tokens or {}).get(label, 0), usd=0.0))
        for latent in range(into.tried):
            into.take(latent, Score(values={m: float(v[latent]) for m, v in metrics.items() if latent < len(v)}))
    name = ",".join(f"{k}={v}" for k, v in axes.items()) or "all"
    parts = {k: SimpleNamespace(part=SimpleNamespace(plugin=SimpleNamespace(metrics=m))) for k, m in METRICS.items()}
    source = SimpleNamespace(plugin=SimpleNamespace(weights=lambda: Weights(directions)))
    ids = {k: str(v) for k, v in axes.items()}
    return SimpleNamespace(
        cell=SimpleNamespace(name=name, axes=ids, baseline=baseline, scorers=parts, source=source,
                             floors=("random_explanation",)),
        store=SimpleNamespace(path=store or name, latents=frozenset()), scored=scored, records=Records(),
        explanation=lambda variant, latent: Explanation(text="x"),
        scores=lambda label, variant: scored.get((label, variant), Scored()),
    )  # fmt: skip


def told(*cells: Any, **claim: Any) -> Finding:
    """What these cells say of a claim."""
    task = SimpleNamespace(run=SimpleNamespace(seed=0), findings=[FindingSpec(claim="it is so", **claim)])
    (found,) = evaluate(task, {c.cell.name: c for c in cells})  # type: ignore[arg-type]
    return found


def around(mean: float, n: int = 40, sd: float = 0.1, seed: int = 0) -> np.ndarray:
    """Scores with exactly this mean."""
    x = np.random.default_rng(seed).normal(0, sd, n)
    return np.clip(x - x.mean() + mean, 0, 1)


A, B = {"coder": "sae"}, {"coder": "neurons"}
APART = {"score": "embedding", "cells": A, "is": "above", "than_cells": B}


@pytest.mark.parametrize(
    ("a", "b", "outcome"), [(0.7, 0.6, "shown"), (0.6, 0.7, "contradicted"), (0.65, 0.65, "not shown")]
)
def test_difference_of_two_coders_is_what_was_planted(a, b, outcome):
    found = told(cell(A, {"embedding.auroc": around(a)}), cell(B, {"embedding.auroc": around(b, seed=1)}), **APART)
    assert (found.outcome, found.n) == (outcome, (40, 40))
    assert found.difference == pytest.approx(a - b, abs=1e-6) and found.ci95[0] < found.difference < found.ci95[1]
    mirrored = told(
        cell(A, {"embedding.auroc": around(a)}),
        cell(B, {"embedding.auroc": around(b, seed=1)}),
        **{**APART, "is": "below"},
    )
    assert mirrored.outcome == {"shown": "contradicted", "contradicted": "shown"}.get(outcome, outcome)


def test_same_latents_are_compared_latent_by_latent():
    hard = around(0.6, sd=0.2)  # latents differ far more than the two samplers do
    better = np.clip(hard + 0.02 + np.random.default_rng(3).normal(0, 0.01, 40), 0, 1)
    two = {"embedding.auroc": better}, {"embedding.auroc": hard}
    paired = told(cell(A, two[0], store="one"), cell(B, two[1], store="one"), **APART)
    unpaired = told(cell(A, two[0]), cell(B, two[1]), **APART)
    assert (paired.outcome, paired.n) == ("shown", (40,)) and paired.quantity.endswith("paired")
    assert (unpaired.outcome, unpaired.n) == ("not shown", (40, 40))


def test_cells_that_share_their_latents_count_each_latent_once():
    cells = [cell({"kl": k}, {"embedding.auroc": around(0.6, n=10)}, store="one") for k in (1, 2, 3)]
    assert told(*cells, score="embedding", **{"is": "above"}, than="chance").n == (10,)


def test_few_latents_tell_nothing_however_far_apart_they_are():
    found = told(cell(A, {"embedding.auroc": [0.9] * 7}), cell(B, {"embedding.auroc": [0.1] * 40}), **APART)
    assert found.outcome == "cannot be told" and "7 latents are too few" in found.reason


@pytest.mark.parametrize(
    ("mean", "sd", "outcome"),
    [(0.505, 0.05, "shown"), (0.505, 0.45, "not shown"), (0.62, 0.05, "contradicted"), (0.4, 0.05, "contradicted")],
)
def test_near_holds_only_where_the_whole_interval_is_near(mean, sd, outcome):
    values = {"embedding.auroc of random_explanation": np.array([mean - sd, mean + sd] * 20)}
    found = told(cell(A, values), score="embedding of random_explanation", than="chance", **{"is": "near"})
    assert found.outcome == outcome and found.difference == pytest.approx(mean - 0.5)


NEAR = {"score": "embedding", "cells": A, "is": "near", "than_cells": B}


def readings(lost, seed, n=200, lift=0.061):
    """Two samplers of one SAE, of which the first loses a share of the lift."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.5 + lift, 0.1, n)
    noisy = [true + rng.normal(0, 0.04, n) - gone for gone in (lost * lift, 0)]
    return [
        cell(axes, {"embedding.auroc": np.clip(values, 0, 1)}, store="one")
        for axes, values in zip((A, B), noisy, strict=True)
    ]


def test_near_is_not_shown_where_a_quarter_of_the_lift_is_gone():
    shown = {
        lost: sum(told(*readings(lost, seed), **NEAR).outcome == "shown" for seed in range(60)) for lost in (0, 0.25)
    }
    absolute = sum(told(*readings(0.25, seed), **NEAR, within=0.05).outcome == "shown" for seed in range(20))
    assert shown[0.25] <= 5 and shown[0] >= 50 and absolute == 20


def test_near_says_how_far_apart_scores_may_be_and_how_often_such_a_run_would_show_it():
    found = told(*readings(0, 1), **NEAR)
    assert found.margin == pytest.approx(0.25 * 0.061, abs=0.006) and 0.7 < found.power <= 1
    assert f"within ± {found.margin:.3f} (power {found.power:.2f})" in found.quantity
    few = told(*readings(0, 1, n=20), **NEAR)
    assert few.power < 0.3 and few.outcome == "not shown"
    assert told(*readings(0, 1), **NEAR, within=0.05).margin == 0.05
    assert told(*readings(0, 1), **{**NEAR, "is": "above"}).margin is None


def test_lift_is_measured_from_the_floor_and_near_needs_something_to_lose():
    values = {"embedding.auroc": around(0.6), "embedding.auroc of random_explanation": around(0.56)}
    found = told(cell(A, values), cell(B, values), **NEAR)
    assert found.margin == pytest.approx(0.01, abs=1e-6)
    values["embedding.auroc of random_explanation"] = around(0.62)
    found = told(cell(A, values), cell(B, values), **NEAR)
    assert found.outcome == "cannot be told" and "no lift to compare" in found.reason


def test_named_metric_and_metric_without_bounds_are_read():
    one = cell(
        A,
        {
            "detection.balanced_accuracy": around(0.9),
            "detection.recall": around(0.2),
            "intervention.nats": around(0.5) * 8,
        },
    )
    assert told(one, score="detection.recall", than=0.5, **{"is": "below"}).outcome == "shown"
    assert told(one, score="detection", than=0.5, **{"is": "below"}).outcome == "contradicted"
    assert told(one, score="intervention", than=3, **{"is": "above"}).outcome == "shown"
    assert "has no chance level" in told(one, score="intervention", than="chance", **{"is": "above"}).reason


def test_scores_of_different_ranges_are_compared_within_both():
    nats = around(0.5, sd=0.02) * 8 - 7  # about -3
    one, two = (cell(axes, {"detection.balanced_accuracy": around(0.5), "intervention.nats": nats}) for axes in (A, B))
    paired = told(one, score="detection", than="intervention", **{"is": "above"})
    claim = {"score": "detection", "cells": A, "than": "intervention", "than_cells": B, "is": "above"}
    for found in (paired, told(one, two, **claim)):
        low, high = found.ci95
        assert found.difference == pytest.approx(3.5) and 3.3 < low < 3.5 < high < 3.7


def test_claims_are_about_contestants_unless_they_name_a_baseline():
    cells = [cell(A, {"embedding.auroc": around(0.7)}), cell(B, {"embedding.auroc": around(0.5)}, baseline="neurons")]
    found = told(*cells, score="embedding", **{"is": "above"}, than_cells={"baseline": "neurons"})
    assert found.outcome == "shown" and found.difference == pytest.approx(0.2, abs=1e-6)


def test_cells_that_are_not_there_leave_a_claim_open():
    found = told(cell(A, {"embedding.auroc": around(0.7)}), **APART)
    assert found.outcome == "cannot be told" and found.reason == "no cell is coder=neurons"


@pytest.mark.parametrize(
    ("noise", "sign", "outcome"), [(0.05, 1, "shown"), (0.05, -1, "contradicted"), (5.0, 1, "not shown")]
)
def test_correlation_of_scorers_is_what_was_planted(noise, sign, outcome):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=40)
    one = cell(A, {"embedding.auroc": x, "detection.balanced_accuracy": sign * x + noise * rng.normal(size=40)})
    found = told(one, correlation=("embedding", "detection"), **{"is": "above"})
    assert found.outcome == outcome and found.n == (40,)


def test_scores_that_are_all_the_same_correlate_with_nothing():
    one = cell(A, {"embedding.auroc": around(0.5), "detection.balanced_accuracy": [0.5] * 40})
    assert told(one, correlation=("embedding", "detection"), **{"is": "above"}).outcome == "cannot be told"


@pytest.mark.parametrize(("tokens", "outcome"), [(1200, "shown"), (800, "contradicted")])
def test_tokens_are_counted_and_not_estimated(tokens, outcome):
    scores = {"detection.balanced_accuracy": [0.5, 0.5], "embedding.auroc": [0.5, 0.5]}
    one = cell(A, scores, tokens={"detection": tokens, "embedding": 200})
    found = told(one, tokens=("detection", "embedding"), than=5, **{"is": "above"})
    assert (found.outcome, found.difference) == (outcome, tokens / 200 - 5)


def layers(mix: float, k: int = 6) -> list[Any]:
    """Dictionaries of which each keeps a share of the directions of the one before, in another order."""
    rng = np.random.default_rng(0)
    found, directions = [], rng.normal(size=(40, 16)).astype(np.float32)
    for layer in range(k):
        found.append(cell({"layer": layer}, {}, directions=directions[rng.permutation(40)]))
        fresh = rng.normal(size=(40, 16)).astype(np.float32)
        directions = (1 - mix) * directions + mix * fresh
    return found


def test_layers_that_drift_apart_are_most_alike_where_they_are_near():
    drifting = layers(0.3)
    near = told(*drifting, similarity="decoder", along="layer", **{"is": "below"})
    assert near.outcome == "shown" and near.difference < -0.5 and near.p <= 0.05 and near.n == (6,)
    assert told(*drifting, similarity="decoder", along="layer", **{"is": "above"}).outcome == "contradicted"
    assert told(*layers(1.0), similarity="decoder", along="layer", **{"is": "below"}).outcome == "not shown"
    few = told(*drifting[:4], similarity="decoder", along="layer", **{"is": "below"})
    assert few.outcome == "cannot be told" and "4 of at least 5 cells" in few.reason


@pytest.mark.parametrize(
    ("mix", "k", "outcome"), [(0.1, 2, "shown"), (0.1, 4, "shown"), (1.0, 2, "not shown"), (1.0, 4, "not shown")]
)
def test_dictionaries_are_alike_where_they_share_directions(mix, k, outcome):
    assert told(*layers(mix, k), similarity="decoder", **{"is": "above"}).outcome == outcome


def test_coder_without_directions_leaves_similarity_open():
    found = told(*(cell({"layer": i}, {}) for i in range(2)), similarity="decoder", **{"is": "above"})
    assert found.outcome == "cannot be told" and "no decoder directions" in found.reason


def test_cells_whose_latents_cannot_be_compared_leave_similarity_open():
    def directions(name, d=16):
        return cell({"coder": name}, {}, directions=np.random.default_rng(0).normal(size=(20, d)).astype(np.float32))

    whole, dead, silent = map(directions, ("whole", "dead", "silent"))
    dead.store = SimpleNamespace(path="dead", latents=None, firings=np.zeros(20))
    silent.explanation = lambda variant, latent: None
    for other, basis, why in (
        (directions("narrow", 8), "decoder", "different spaces: 16 and 8 dimensions"),
        (dead, "decoder", "none of its latents fires"),
        (silent, "explanations", "has no explanations to embed"),
    ):
        found = told(whole, other, similarity=basis, **{"is": "above"})
        assert found.outcome == "cannot be told" and why in found.reason


def test_claims_without_anything_in_them_are_seldom_shown():
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(150):
        two = [cell(axes, {"embedding.auroc": np.clip(rng.normal(0.6, 0.12, 24), 0, 1)}) for axes in (A, B)]
        outcomes.append(told(*two, **APART).outcome)
    assert outcomes.count("shown") <= 9 and outcomes.count("contradicted") <= 9  # 3.75 expected of each
    assert outcomes.count("not shown") >= 130


# --- in specs, runs and reports -----------------------------------------------------------------------------

CLAIMS = [
    {"claim": "The true explanation scores above a random one", "score": "detection", "is": "above", "than": "detection of random_explanation"},
    {"claim": "The true explanation scores below a random one", "score": "detection", "is": "below", "than": "detection of random_explanation"},
    {"claim": "Three latents tell something", "score": "fuzzing", "is": "above", "than": "chance"},
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    with truthful_server() as server:
        task = {**spec(server), "source": {"use": "synthetic", "with": {"n_latents": 12, "documents": 80}}}
        task |= {"latents": {"n": 10, "min_windows": 20}, "findings": CLAIMS}
        (folder / "task.yaml").write_text(yaml.safe_dump(task))
        done = CliRunner().invoke(main, ["run", "--task", str(folder / "task.yaml"), "--out", str(folder / "run")])
        assert done.exit_code == 0, done.output
        again = {**task, "findings": CLAIMS[:1]}
        (folder / "again.yaml").write_text(yaml.safe_dump(again))
        asked = len(server.calls)
        CliRunner().invoke(main, ["run", "--task", str(folder / "again.yaml"), "--out", str(folder / "run2")])
        same = (
            load_task(folder / "again.yaml", registry=Registry()).sha
            == load_task(folder / "task.yaml", registry=Registry()).sha
        )
    return folder, done.output, same, len(server.calls) - asked


def test_run_reports_its_claims_in_results_and_in_every_report(planted):
    folder, shown, _, _ = planted
    run = read_result(folder / "run")
    assert [f.outcome for f in run.findings] == ["shown", "contradicted", "cannot be told"]
    html = (folder / "run" / "report" / "index.html").read_text()
    for found in run.findings:
        assert found.claim in html and finding_line(found).partition(" (")[0] in shown
        assert f"| {found.claim} | {found.outcome} |" in markdown_report(run)


def test_claims_do_not_make_another_task_and_ask_nothing(planted):
    *_, same, asked = planted
    assert same and asked == 0


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        ({"score": "detecton"}, "no scorer 'detecton', did you mean 'detection'"),
        ({"score": "detection.recal"}, "detection has no metric 'recal', did you mean 'recall'"),
        ({"score": "detection of nobody"}, "no explanation baseline 'nobody'"),
        ({"score": "detection", "cells": {"sampling": "top"}}, "no axis 'sampling'"),
        ({"score": "detection", "correlation": ["detection", "fuzzing"]}, "give exactly one of"),
        ({"correlation": ["detection", "fuzzing"], "than": "chance"}, "only a score can be compared with a score"),
        ({}, "give exactly one of"),
    ],
)
def test_claims_about_what_is_not_there_are_refused(claim, sentence, tmp_path):
    with truthful_server() as server:
        task = spec(server, findings=[{"claim": "x", "is": "above", **claim}])
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(SpecError, match=sentence.replace("?", r"\?")):
        load_task(tmp_path / "t.yaml", registry=Registry())


def test_results_of_earlier_versions_have_no_findings(planted):
    folder, *_ = planted
    data = json.loads((folder / "run" / "results.json").read_text())
    del data["findings"]
    (folder / "old.json").write_text(json.dumps(data))
    assert read_result(folder / "old.json").findings == []


def test_orders_of_cells_that_are_tried_are_all_of_them():
    # With five cells in a row and similarity that falls with distance, only the row and its mirror image fit as well.
    found = told(*layers(0.15, 5), similarity="decoder", along="layer", **{"is": "below"})
    assert len(list(combinations(range(5), 2))) == 10 and found.p >= 2 / 120
