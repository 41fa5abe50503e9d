"""Precision, F1 and IoU at the corpus's own rate are pooled before ratios are taken, and say what the judge allows."""

from __future__ import annotations

import numpy as np
import pytest

from saeval._compare import KnownJudge, Tally, natural_rates
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
