"""Noise of single latents' scores, reliability, reruns and variance components are as in simulations that know them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from saeval._compare import disattenuated, prediction_interval, reliability, score_noise
from saeval._compare.noise import Halves, components, wilson, worth_of_more
from saeval._compare.stats import combined_interval, correlated
from saeval._run.state import Scored
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


def test_accuracy_counts_every_window_alike_and_its_interval_holds_it():
    windows = [Outcome(example=f"0:{i}", active=i < 20, predicted=True) for i in range(80)]
    plain, balanced = (
        score_noise(Score(values={name: 0.0}, outcomes=tuple(windows))) for name in ("accuracy", "balanced_accuracy")
    )
    assert plain.variance == pytest.approx(0.25 * 0.75 / 79) and balanced.variance == 0
    assert plain.interval[0] < 0.25 < plain.interval[1] < 0.4 < balanced.interval[0]
    scored = Scored()
    scored.take(0, Score(values={"accuracy": 0.25}, outcomes=tuple(windows)))
    assert scored.bounds == (0.25, 0.25)


def test_halves_of_a_corpus_show_what_its_text_adds_to_windows_judge_and_explainer():
    rng = np.random.default_rng(6)
    text, shift, explainer, windows = 0.06, 0.02, 0.03, 0.05  # of a whole corpus; of the choice of windows in one
    found = []
    for _ in range(1000):
        true = rng.normal(0.7, 0.1, 60)
        scored = true + rng.normal(0, explainer, 60) + rng.normal(0, windows, 60)
        halves = [
            true
            + rng.normal(0, 2**0.5 * shift)
            + rng.normal(0, 2**0.5 * text, 60)
            + rng.normal(0, explainer, 60)
            + rng.normal(0, 2**0.5 * windows, 60)
            for _ in range(2)
        ]
        again = scored + rng.normal(0, 2**0.5 * explainer, 60)
        noise = [2 * windows**2] * 60
        parts = components(
            scored, [windows**2] * 60, {"explainer": (scored, again)}, Halves(tuple(halves), (noise, noise))
        )
        found.append(parts)
    assert np.mean([parts.noise["corpus"] for parts in found]) ** 0.5 == pytest.approx(text, abs=0.003)
    assert np.mean([parts.shared["corpus"] for parts in found]) == pytest.approx(shift**2, rel=0.15)


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


# --- closed forms ---


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (1, 40)])
def test_the_interval_of_a_share_is_scipys(hits, n):
    low, high = scipy_stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((low, high), rel=1e-4, abs=1e-9)


def test_the_variance_of_a_balanced_accuracy_is_a_quarter_of_both_shares_and_unread_windows_do_not_count():
    active, other = [True, True, False, True, True], [True, False, True]
    outcomes = [Outcome(example=f"0:{i}", active=True, predicted=p) for i, p in enumerate(active)]
    outcomes += [Outcome(example=f"1:{i}", active=False, predicted=not p) for i, p in enumerate(other)]
    unread = Outcome(example="2:0", active=True, predicted=None, status="unparsed")
    noise = score_noise(Score.of([*outcomes, unread]))
    expected = (scipy_stats.sem(active) ** 2 + scipy_stats.sem(other) ** 2) / 4
    assert noise.variance == pytest.approx(expected)
    each = [scipy_stats.binomtest(sum(side), len(side)).proportion_ci(method="wilson") for side in (active, other)]
    means = [np.mean(active), np.mean(other)]
    combined = combined_interval([0.5, 0.5], means, [tuple(side) for side in each])
    assert noise.interval == pytest.approx(combined, rel=1e-4)
    assert score_noise(Score.of(outcomes[:6])) is None  # one window on a side has no variance
    assert score_noise(Score.of(outcomes[:7])) is not None


def test_the_noise_of_an_auroc_is_delongs_and_its_interval_newcombes():
    up, down = [0.9, 0.7, 0.7, 0.4], [0.8, 0.4, 0.3, 0.1, 0.1]
    outcomes = [
        Outcome(example=f"{int(active)}:{i}", active=active, probability=p)
        for active, side in ((True, up), (False, down)) for i, p in enumerate(side)
    ]  # fmt: skip
    better = [[1.0 if u > d else 0.5 if u == d else 0.0 for d in down] for u in up]
    area = float(np.mean(better))
    noise = score_noise(Score(values={"auroc": area}, outcomes=tuple(outcomes)))
    by_row, by_column = [np.mean(row) for row in better], [np.mean(column) for column in zip(*better, strict=True)]
    assert noise.variance == pytest.approx(scipy_stats.sem(by_row) ** 2 + scipy_stats.sem(by_column) ** 2)
    for true in noise.interval:
        q1, q2 = true / (2 - true), 2 * true**2 / (1 + true)  # Hanley and McNeil, with the mean of m and n for both
        more = (4 + 5) / 2 - 1
        error2 = (true * (1 - true) + more * (q1 - true**2) + more * (q2 - true**2)) / (4 * 5)
        assert abs(true - area) == pytest.approx(1.96 * error2**0.5, rel=1e-4)
    assert noise.interval[0] < area < noise.interval[1]
    pairs = [outcomes[i] for i in (0, 1, 4, 5)]  # two on either side are enough, one is not
    assert score_noise(Score(values={"auroc": 0.75}, outcomes=tuple(pairs))) is not None
    assert score_noise(Score(values={"auroc": 0.75}, outcomes=tuple(pairs[1:]))) is None


def test_reliability_takes_the_mean_noise_from_the_variance_between_latents_whose_noise_is_known():
    scores, noise = [0.5, 0.7, 0.9, 0.6], [0.004, 0.006, 0.002, float("nan")]
    assert reliability(scores, noise) == pytest.approx(1 - 0.004 / np.var(scores[:3], ddof=1))
    assert reliability(scores[:2], noise[:2]) is None


def test_a_rerun_reaches_as_far_as_two_runs_err_together():
    low, high = prediction_interval(0.7, (0.66, 0.76), (0.0, 0.78), shared=0.01**2)
    assert low == pytest.approx(0.7 - ((0.04**2 + (1.96 * 0.01) ** 2) * 2) ** 0.5, abs=1e-6) and high == 0.78
    assert prediction_interval(0.7, (0.66, 0.76))[1] == pytest.approx(0.7 + 2**0.5 * 0.06)


def test_components_of_one_cell_are_differences_of_variances():
    x, y, z = [0.5, 0.7, 0.9, 0.6], [0.48, 0.72, 0.85, 0.6], [0.7, 0.6, 0.9, 0.8]
    found = components(x, [0.004, 0.006, 0.002, float("nan")], {"judge": (x, y), "explainer": (x, z)})
    judge = np.var(np.subtract(x, y), ddof=1)
    explainer = np.var(np.subtract(x, z), ddof=1)
    assert found.noise == pytest.approx({"judge": judge / 2, "explainer": explainer / 2 - judge / 2})
    assert found.windows == pytest.approx(0.004 - judge / 2)
    assert found.latents == pytest.approx(max(0, np.var(x, ddof=1) - found.windows - explainer / 2))
    d = np.subtract(x, z).mean()
    assert found.shared["explainer"] == pytest.approx(max(0, (d**2 - explainer / 4) / 2))


def test_a_tenth_more_money_buys_latents_or_windows_whichever_they_cost():
    found = worth_of_more(0.02, 0.01, 3.0, 2.0)
    assert found["latents"] == pytest.approx(1 - (1 / 1.1) ** 0.5)
    more = 1 + 0.5 / 2.0  # a tenth of 5 buys a quarter of the windows
    assert found["windows"] == pytest.approx(1 - ((0.02 + 0.01 / more) / 0.03) ** 0.5)
    assert worth_of_more(0.0, 0.0, 1.0, 1.0) == worth_of_more(0.1, 0.1, 1.0, 0.0) == {"latents": 0.0, "windows": 0.0}
