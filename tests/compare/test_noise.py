"""Noise of single latents' scores, reliability, reruns and variance components are as in simulations that know them."""

from __future__ import annotations

import numpy as np
import pytest

from saeval._compare import disattenuated, prediction_interval, reliability, score_noise
from saeval._compare.noise import components, wilson
from saeval._compare.stats import correlated
from saeval.records import Outcome, Score


def judged(hits, alarms, n=20):
    """A score of n + n windows, answered at random with these chances."""
    rng = np.random.default_rng(int(1e6 * hits + 1e3 * alarms))
    return _score(rng, hits, alarms, n)


def _score(rng, hits, alarms, n):
    answers = [(True, p) for p in rng.random(n) < hits] + [(False, p) for p in rng.random(n) < alarms]
    return Score.of([Outcome(example=f"0:{i}", active=a, predicted=bool(p)) for i, (a, p) in enumerate(answers)])


def scored(latents, n, seed, spread=0.1):
    """Scores and noise of latents whose true hit rates vary, read twice on other windows."""
    rng = np.random.default_rng(seed)
    true = np.clip(rng.normal(0.7, spread, latents), 0.3, 1)
    readings = [[_score(rng, t, 0.2, n) for t in true] for _ in range(2)]
    return [
        ([s.values["balanced_accuracy"] for s in reading], [score_noise(s).variance for s in reading])
        for reading in readings
    ]


@pytest.mark.parametrize("n", [8, 30])
def test_reliability_is_the_correlation_of_two_scorings_on_other_windows(n):
    (first, noise), (second, _) = scored(800, n, seed=n)
    assert reliability(first, noise) == pytest.approx(correlated(first, second).pearson, abs=0.08)


def test_correlations_are_corrected_to_that_of_true_scores():
    rng = np.random.default_rng(3)
    true = rng.multivariate_normal([0.6, 0.6], [[0.01, 0.006], [0.006, 0.01]], size=900).clip(0.1, 0.95)
    scores = [[_score(rng, t, 0.1, 20) for t in column] for column in true.T]
    values = [[s.values["balanced_accuracy"] for s in column] for column in scores]
    known = [reliability(v, [score_noise(s).variance for s in c]) for v, c in zip(values, scores, strict=True)]
    seen = correlated(*values).pearson
    assert seen < 0.45 and disattenuated(seen, known) == pytest.approx(0.6, abs=0.1)


def test_a_latents_interval_covers_its_true_score_and_is_never_empty():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        noise = score_noise(_score(rng, 0.8, 0.1, 20))
        covered += noise.interval[0] <= 0.85 <= noise.interval[1]
    assert covered >= 0.91 * 400
    perfect = score_noise(_score(rng, 1.0, 0.0, 10))
    assert perfect.variance == 0 and perfect.interval[0] < 0.9 and perfect.interval[1] == 1.0
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0


def test_the_interval_of_an_auroc_covers_and_perfect_ranking_is_not_certain():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        values = [(True, v) for v in rng.normal(1, 1, 20)] + [(False, v) for v in rng.normal(0, 1, 20)]
        covered += _area(values)[0] <= 0.760 <= _area(values)[1]
    assert 0.92 * 300 <= covered <= 0.99 * 300
    low, high = _area([(True, 1.0)] * 8 + [(False, 0.0)] * 8)
    assert low < 0.85 and high == 1.0


def _area(values):
    from saeval.records.metrics import auroc

    outcomes = tuple(Outcome(example=f"0:{i}", active=a, probability=float(v)) for i, (a, v) in enumerate(values))
    area = auroc([a for a, _ in values], [v for _, v in values])
    return score_noise(Score(values={"auroc": area}, outcomes=outcomes)).interval


def test_scores_that_are_no_share_of_windows_have_no_known_noise():
    assert score_noise(Score(values={"pearson": 0.4})) is None
    assert score_noise(Score.failed("no")) is None
    assert reliability([0.5, 0.6, 0.7], [float("nan")] * 3) is None and reliability([0.5] * 5, [0.1] * 5) is None
    assert reliability([0.5, 0.6, 0.7], [9.0] * 3) == 0.0


def test_confidence_intervals_cover_means_and_prediction_intervals_cover_reruns():
    rng = np.random.default_rng(2)
    n, within, mean_in, rerun_in, rerun_in_ci = 60, 0.1, 0, 0, 0
    for _ in range(1000):
        one, other = (rng.normal(0.7, within, n) for _ in range(2))
        half = 1.96 * one.std(ddof=1) / n**0.5
        ci = one.mean() - half, one.mean() + half
        low, high = prediction_interval(one.mean(), ci)
        mean_in += ci[0] <= 0.7 <= ci[1]
        rerun_in += low <= other.mean() <= high
        rerun_in_ci += ci[0] <= other.mean() <= ci[1]
    assert mean_in >= 930 and rerun_in >= 930 and rerun_in_ci < 880


def test_components_of_scores_with_known_parts_are_found():
    rng = np.random.default_rng(4)
    found = []
    for _ in range(1000):
        true = rng.normal(0.7, 0.1, 60) + rng.normal(0, 0.05, 60)  # latents, and their windows
        judged = [true + rng.normal(0, 0.02) + rng.normal(0, 0.03, 60) for _ in range(2)]
        explained = judged[0] + rng.normal(0, 2**0.5 * 0.04, 60) + rng.normal(0, 2**0.5 * 0.03, 60)
        noise = [0.05**2 + 0.03**2] * 60
        found.append(components(judged[0], noise, {"judge": judged, "explainer": (judged[0], explained)}))
    means = {name: np.mean([getattr(parts, name) for parts in found]) ** 0.5 for name in ("latents", "windows")}
    assert means["windows"] == pytest.approx(0.05, abs=0.003)
    assert means["latents"] == pytest.approx((0.1**2 - 0.04**2) ** 0.5, abs=0.005)
    assert np.mean([parts.noise["judge"] for parts in found]) ** 0.5 == pytest.approx(0.03, abs=0.002)
    assert np.mean([parts.noise["explainer"] for parts in found]) ** 0.5 == pytest.approx(0.04, abs=0.003)
    assert np.mean([parts.shared["judge"] for parts in found]) == pytest.approx(0.02**2, rel=0.15)


def test_prediction_intervals_cover_reruns_that_share_a_known_component():
    rng = np.random.default_rng(5)
    covered = narrow = 0
    for _ in range(1000):
        one, other = (rng.normal(0.7, 0.1, 60) + rng.normal(0, 0.02) for _ in range(2))
        half = 2.0 * one.std(ddof=1) / 60**0.5
        ci = one.mean() - half, one.mean() + half
        low, high = prediction_interval(one.mean(), ci, shared=0.02**2)
        covered += low <= other.mean() <= high
        low, high = prediction_interval(one.mean(), ci)
        narrow += low <= other.mean() <= high
    assert covered >= 930 and narrow < 800
