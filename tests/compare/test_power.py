"""The power of a paired comparison is the share of runs in which its test finds the difference."""

from __future__ import annotations

import numpy as np
import pytest

from saeval._compare.power import paired_power, power_interval
from saeval._compare.stats import paired_p
from saeval.plugin import derive_rng


def test_power_is_the_share_of_runs_that_find_the_difference():
    given = derive_rng(1, "power").normal(0.04, 0.1, 60)
    found = paired_power(given, 30, derive_rng(2), runs=400, flips=499)
    rng = derive_rng(3)
    runs = [given[rng.integers(0, 60, 30)] for _ in range(400)]
    alone = np.mean([paired_p(run, rng, 499) <= 0.05 and run.mean() > 0 for run in runs])
    assert found == pytest.approx(alone, abs=0.09) and 0.2 < alone < 0.8


def test_a_difference_of_the_other_sign_and_none_are_not_found():
    assert paired_power([-0.1] * 9, 40, derive_rng(0)) == 0
    assert paired_power([0.1, -0.1] * 9, 50, derive_rng(0)) < 0.1


def test_small_differences_count_ties_count_against_them_and_five_percent_are_enough():
    assert paired_power([0.001] * 5, 30, derive_rng(0), flips=19) == 1  # p is 1 / 20
    assert paired_power([0.001] * 5, 30, derive_rng(0), flips=18) == 0  # and 1 / 19
    assert paired_power([0.1] * 5, 2, derive_rng(0), flips=99) == 0  # half of the flips leave both signs alike


@pytest.mark.parametrize("effect", [0.0, 0.04])
def test_the_interval_of_the_power_covers_it_and_is_wide_where_latents_are_few(effect):
    rng = derive_rng(4, effect)
    runs = [rng.normal(effect, 0.1, 50) for _ in range(300)]
    true = np.mean([paired_p(run, rng, 499) <= 0.05 and run.mean() > 0 for run in runs])
    found = [power_interval(rng.normal(effect, 0.1, 20), 50, rng) for _ in range(60)]
    assert np.mean([low - 0.03 <= true <= high + 0.03 for low, high in found]) >= 0.88
    assert np.median([high - low for low, high in found]) > 0.5
