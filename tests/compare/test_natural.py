"""Precision, F1 and IoU at the corpus's own rate are pooled before ratios are taken, and say what the judge allows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from saeval._compare import KnownJudge, Tally, natural_rates
from saeval._compare.natural import _ENOUGH, _alarms, _hits, _pooled
from saeval.plugin import derive_rng


def tally(rate, hits, alarms, n=60, positives=20):
    return Tally(rate, hits, positives, alarms, n, n)


def test_rates_follow_their_definitions():
    found = natural_rates([tally(0.005, 18, 3)] * 40, None, derive_rng(0))
    precision = 0.005 * 0.9 / (0.005 * 0.9 + 0.995 * 0.05)
    assert found.precision == pytest.approx(precision) and found.recall == 0.9 and found.false_positive_rate == 0.05
    assert found.f1 == pytest.approx(2 * precision * 0.9 / (precision + 0.9))
    assert found.iou == pytest.approx(0.005 * 0.9 / (0.005 + 0.995 * 0.05))
    assert found.n == 40 and found.rate == pytest.approx(0.005)


def test_pooled_precision_is_not_the_mean_of_precisions_and_its_interval_covers():
    rng = np.random.default_rng(1)
    true, values, covered = 0.005 / (0.005 + 0.995 * 0.005), [], 0
    for run in range(200):
        alarms = rng.binomial(60, 0.005, size=50)
        found = natural_rates([tally(0.005, 20, a) for a in alarms], None, derive_rng(run))
        values.append(found.precision)
        covered += found.precision_ci95[0] <= true <= found.precision_ci95[1]
    assert np.mean(values) == pytest.approx(true, abs=0.05)  # a mean over latents would be about .8
    assert covered >= 0.93 * 200


def test_latents_of_like_rate_are_pooled_and_others_are_not():
    rare, frequent = [tally(0.005, 20, 0.6)] * 30, [tally(0.2, 20, 0.6)] * 10
    both = natural_rates([*rare, *frequent], None, derive_rng(0))
    apart = [natural_rates(part, None, derive_rng(0)).precision for part in (rare, frequent)]
    assert both.precision == pytest.approx(0.75 * apart[0] + 0.25 * apart[1])


@pytest.mark.parametrize(
    ("judge", "ceiling", "said"),
    [
        (KnownJudge(1.0, 0.988, 5000), 0.295, ""),
        (KnownJudge(1.0, 0.95, 480), 0.091, "known to ± 1.96% only, and latents fire in 0.50%"),
        (KnownJudge(0.9, 1.0, 480), 1.0, ""),
        (KnownJudge(1.0, 1.0, 100), 1.0, "only, and latents fire in 0.50%"),
        (None, None, "the judge's false alarms are unknown"),
    ],
)
def test_the_judges_ceiling_and_when_a_precision_cannot_be_told_from_the_judges(judge, ceiling, said):
    found = natural_rates([tally(0.005, 20, 1)] * 40, judge, derive_rng(0))
    assert found.ceiling == (None if ceiling is None else pytest.approx(ceiling, abs=0.001))
    assert said in found.not_identifiable and bool(said) == bool(found.not_identifiable)


def test_without_answers_or_a_known_rate_there_is_nothing():
    assert natural_rates([], None, derive_rng(0)) is None
    assert natural_rates([tally(0.0, 5, 1), tally(0.01, 0, 1, positives=0)], None, derive_rng(0)) is None


def test_a_pooled_rate_is_as_firm_as_the_spread_between_latents_says():
    hits = np.array([18, 12, 20, 9, 15, 17, 11, 14, 16, 13])
    rate, n = _pooled([tally(0.01, h, 1) for h in hits], _hits)
    shares = hits / 20
    assert rate == pytest.approx(shares.mean())
    assert n == pytest.approx(rate * (1 - rate) / scipy_stats.sem(shares) ** 2)


def test_weights_of_windows_count_in_the_rate_and_in_its_firmness():
    part = [Tally(0.01, 10, 20, 1.0, 30.0, 90.0), Tally(0.01, 10, 20, 3.0, 50.0, 100.0)]
    rate, n = _pooled(part, _alarms)
    assert rate == 4 / 80
    residuals = np.array([1.0 - 30 * rate, 3.0 - 50 * rate])
    error2 = 2 / 1 * (residuals**2).sum() / 80**2
    assert n == pytest.approx(min(80**2 / 190, rate * (1 - rate) / error2))  # two latents with alarms are few
    assert _pooled([Tally(0.01, 10, 20, 0.0, 30.0, 90.0)] * 2, _alarms) == (0.0, 60**2 / 180)


def test_the_spread_counts_in_full_where_enough_latents_have_alarms():
    few = [tally(0.01, 10, alarms) for alarms in [6] * (_ENOUGH - 2) + [5]]  # alike: as firm as many more windows
    assert _pooled(few, _alarms)[1] == pytest.approx((_ENOUGH - 1) * 60)
    assert _pooled([*few, tally(0.01, 10, 6)], _alarms)[1] > 10 * _ENOUGH * 60


def test_intervals_are_those_of_independent_draws_from_beta_distributions():
    tallies = [tally(0.02, h, a) for h, a in zip([18, 12, 20, 9, 15, 17], [1, 0, 3, 2, 0, 1], strict=True)]
    found = natural_rates(tallies, None, derive_rng(3))
    rng = np.random.default_rng(9)
    draws = []
    for side in (_hits, _alarms):
        rate, n = _pooled(tallies, side)
        draws.append(scipy_stats.beta(rate * n + 0.5, (1 - rate) * n + 0.5).rvs(200_000, random_state=rng))
    recall, false = draws
    precision = 0.02 * recall / (0.02 * recall + 0.98 * false)
    f1 = 2 / (1 / precision + 1 / recall)
    iou = 0.02 * recall / (0.02 + 0.98 * false)
    for seen, wanted in ((found.precision_ci95, precision), (found.f1_ci95, f1), (found.iou_ci95, iou)):
        assert seen == pytest.approx(tuple(np.quantile(wanted, (0.025, 0.975))), rel=0.05)


def test_nothing_found_and_no_alarm_is_no_precision_rather_than_an_error():
    found = natural_rates([tally(0.01, 0, 0)] * 3, None, derive_rng(0))
    assert (found.precision, found.f1, found.iou, found.recall, found.false_positive_rate) == (0, 0, 0, 0, 0)
    assert natural_rates([tally(1.0, 20, 1)], None, derive_rng(0)) is None
