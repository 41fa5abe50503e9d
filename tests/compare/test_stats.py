"""Tests, intervals and agreement equal other libraries' and hold what they promise, by simulation."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from saeval._compare import stats
from saeval._compare.stats import (
    MANY,
    alpha_interval,
    combined_interval,
    correlated,
    holm,
    jackknifed_pairs,
    krippendorff_alpha,
    mantel,
    mean_interval,
    paired_p,
    unpaired_p,
    weighted_mean,
)
from saeval.plugin import derive_rng

# --- p values ---


@settings(deadline=None, max_examples=10)  # theirs takes a tenth of a second
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_equals_statsmodels(ps):
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    expected = list(multipletests(ps, method="holm")[1]) if ps else []
    assert holm(ps) == pytest.approx(expected)


def test_holm_of_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.2])
def test_paired_test_equals_scipys_permutation_test(shift):
    d = derive_rng(1, "paired").normal(shift, 0.1, 11).round(2)
    exact = scipy_stats.permutation_test(
        (d, np.zeros_like(d)), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples",
        n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    assert paired_p(d, derive_rng(2)) == pytest.approx(exact.pvalue, abs=0.015)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.4])
def test_unpaired_test_equals_scipys_permutation_test_of_the_same_statistic(shift):
    rng = derive_rng(3, "unpaired")
    x, y = rng.normal(0.5 + shift, 0.3, 6), rng.normal(0.5, 0.1, 5)

    def statistic(a, b, axis):
        return scipy_stats.ttest_ind(a, b, axis=axis, equal_var=False).statistic

    exact = scipy_stats.permutation_test((x, y), lambda a, b, axis: np.abs(statistic(a, b, axis)), alternative="greater",
                                         n_resamples=np.inf, vectorized=True)  # fmt: skip
    assert unpaired_p(x, y, derive_rng(4)) == pytest.approx(exact.pvalue, abs=0.015)


def test_p_values_of_many_latents_come_near_those_of_t_tests():
    rng = derive_rng(5, "t")
    x, y = rng.beta(8, 2, 300), rng.beta(7, 2.2, 200)
    assert unpaired_p(x, y, rng) == pytest.approx(scipy_stats.ttest_ind(x, y, equal_var=False).pvalue, abs=0.01)
    assert paired_p(x[:200] - y, rng) == pytest.approx(scipy_stats.ttest_1samp(x[:200] - y, 0).pvalue, abs=0.01)


def test_no_difference_has_p_one_and_too_few_latents_have_none():
    assert paired_p([0.0] * 20, derive_rng(0)) == 1
    assert unpaired_p([0.5] * 9, [0.5] * 7, derive_rng(0)) == 1
    assert math.isnan(paired_p([0.3], derive_rng(0))) and math.isnan(unpaired_p([0.3], [0.1, 0.2], derive_rng(0)))


def test_sums_that_differ_by_rounding_alone_are_no_difference():
    assert paired_p([0.1 + 0.2 - 0.3] * 12, derive_rng(0)) == 1
    assert unpaired_p([0.1 + 0.2] * 12, [0.3] * 12, derive_rng(0)) == 1


def test_constants_that_differ_are_told_apart():
    assert paired_p([0.1] * 20, derive_rng(0)) < 0.001
    assert unpaired_p([0.6] * 20, [0.5] * 20, derive_rng(0)) < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paired, skewed", "unpaired, unequal", "unpaired, tied"])
def test_tests_reject_as_often_as_they_say_without_an_effect(kind):
    rng = derive_rng(6, kind)
    rejected = 0
    for _ in range(600):
        if kind == "paired, skewed":
            p = paired_p(rng.beta(2, 6, 60) - 0.25, rng, 399)
        elif kind == "unpaired, unequal":
            p = unpaired_p(rng.normal(0.5, 0.05, 100), rng.normal(0.5, 0.2, 30), rng, 399)
        else:
            p = unpaired_p(rng.integers(0, 3, 40) / 2, rng.integers(0, 3, 60) / 2, rng, 399)
        rejected += p <= 0.05
    assert 0.025 <= rejected / 600 <= 0.08


# --- intervals ---


def test_interval_is_that_of_scipys_bca_bootstrap_stretched():
    x = derive_rng(7, "bca").beta(2, 8, 40)
    theirs = scipy_stats.bootstrap(
        (x,), np.mean, method="BCa", n_resamples=20_000, rng=derive_rng(8)
    ).confidence_interval
    low, high = mean_interval(x, derive_rng(9), low=0, high=1, resamples=20_000)
    stretch = scipy_stats.t.ppf(0.975, 39) / scipy_stats.norm.ppf(0.975) * math.sqrt(40 / 39)
    assert x.mean() - low == pytest.approx((x.mean() - theirs.low) * stretch, rel=0.03)
    assert high - x.mean() == pytest.approx((theirs.high - x.mean()) * stretch, rel=0.03)


def test_interval_of_skewed_scores_is_longer_on_the_side_of_the_tail():
    x = derive_rng(10, "tail").beta(8, 1, 60)
    low, high = mean_interval(x, derive_rng(11), low=0, high=1)
    assert x.mean() - low > 1.1 * (high - x.mean())


KEPT = {
    3: (((0.17038306993986663, 1), (-0.32806133037292545, 0.6340452129844133), (1.5334476294587995, 12.265560439085984), (0.28522545093464147, 1)), 1.0, 0.9017),
    24: (((0.5739719796377718, 0.7354871183081593), (-0.03484524031775596, 0.17841006846920401), (5.155860132493563, 6.610387475062886), (0.5733048506742865, 0.730536159548359)), 0.5795, 0.0582),
    1000: (((0.6694543454382608, 0.6907620909184227), (0.050462337245489985, 0.08252877056116346), (6.014417820486962, 6.220122336586688), (0.6712821743705703, 0.6923181684299956)), 0.0008, 0.0001),
}  # fmt: skip
"""Intervals of scores, of paired differences, without bounds, and of rounded scores; p values, paired and unpaired."""


@pytest.mark.parametrize("n", KEPT)
def test_intervals_and_p_values_of_up_to_many_latents_stay_as_they_were_to_the_last_digit(n):
    x, y = derive_rng(1, "golden", n).beta(4, 2, n), derive_rng(2, "golden", n).beta(4, 2.5, n)
    intervals = (
        mean_interval(x, derive_rng(3), low=0, high=1),
        mean_interval(x - y, derive_rng(3), low=-1, high=1),
        mean_interval(x * 9, derive_rng(4), low=-np.inf, high=np.inf),
        mean_interval(np.round(x, 1), derive_rng(5), low=0, high=1),
    )
    p = paired_p(x - y - 0.04, derive_rng(6)), unpaired_p(x, y[: max(2, n // 2)], derive_rng(7))
    assert (intervals, *p) == KEPT[n]


# --- many latents ---


@pytest.mark.parametrize("draw", ["beta", "binary", "rare", "heavy tail"])
def test_interval_of_more_than_many_latents_is_that_of_the_bootstrap(draw, monkeypatch):
    n = MANY + 1
    rng = derive_rng(16, draw)
    x = {
        "beta": rng.beta(8, 2, n), "binary": (rng.random(n) < 0.3) * 1.0, "rare": (rng.random(n) < 0.002) * 1.0,
        "heavy tail": np.minimum(1, rng.pareto(2.5, n) / 50),
    }[draw]  # fmt: skip
    theory = mean_interval(x, derive_rng(17), low=0, high=1)
    monkeypatch.setattr(stats, "MANY", n)
    resampled = mean_interval(x, derive_rng(17), low=0, high=1)
    assert theory == pytest.approx(resampled, abs=0.06 * (resampled[1] - resampled[0]))  # which resampling leaves open
    assert theory != resampled


@pytest.mark.parametrize("shift", [0.0, 0.002, 0.2])
def test_p_values_of_more_than_many_latents_are_those_of_permutations(shift, monkeypatch):
    rng = derive_rng(18, "many")
    x, y = rng.beta(8, 2, 3001) + shift, rng.beta(8, 2, 3001)
    resampled = [paired_p(x - y, derive_rng(19), 1999), unpaired_p(x, y, derive_rng(19), 1999)]
    monkeypatch.setattr(stats, "MANY", 3000)
    theory = [paired_p(x - y, derive_rng(19), 1999), unpaired_p(x, y, derive_rng(19), 1999)]
    assert theory == pytest.approx(resampled, abs=0.03) and min(theory) >= 1 / 2000


def test_intervals_and_p_values_of_a_million_latents_take_less_than_a_gigabyte(tmp_path):
    code = """
import resource
import numpy as np
from saeval.plugin import derive_rng
from saeval._compare.stats import mean_interval, paired_p, unpaired_p

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

rng = derive_rng(0)
few, many = rng.random(20_000), rng.random(1_000_000)
mean_interval(few[:10], rng, low=0, high=1), paired_p(few[:10], rng), unpaired_p(few[:9], few[:8], rng)  # imports
before = peak()
for x in (few, many):
    mean_interval(x, rng, low=0, high=1), paired_p(x - 0.5, rng, 99), unpaired_p(x, few[:5000], rng, 9)
print((peak() - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 400


DRAWS = {
    "normal": (lambda r, n: r.normal(0.6, 0.1, n).clip(0, 1), 0.6),
    "skewed to 1": (lambda r, n: r.beta(8, 2, n), 0.8),
    "skewed to 0": (lambda r, n: r.beta(2, 6, n), 0.25),
    "very skewed": (lambda r, n: r.beta(0.5, 4, n), 1 / 9),
    "at both ends": (lambda r, n: r.beta(0.3, 0.3, n), 0.5),
    "binary": (lambda r, n: (r.random(n) < 0.3) * 1.0, 0.3),
    "half tied at chance": (lambda r, n: np.where(r.random(n) < 0.5, 0.5, r.beta(8, 2, n)), 0.65),
    "balanced accuracies": (lambda r, n: (r.binomial(10, p := r.beta(6, 2, n)) + r.binomial(10, p)) / 20, 0.75),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 200, 1000])
@pytest.mark.parametrize("name", DRAWS)
def test_intervals_cover_the_mean_in_95_of_100_samples(name, n):
    draw, mean = DRAWS[name]
    rng = derive_rng(12, "coverage", name, n)
    repetitions = 1000 if n < 1000 else 500
    covered = 0
    for _ in range(repetitions):
        low, high = mean_interval(draw(rng, n), rng, low=0, high=1, resamples=500)
        covered += low - 1e-12 <= mean <= high + 1e-12
    error = 2 * math.sqrt(0.93 * 0.07 / repetitions)
    # Of twenty scores that come in few values, or lie at both ends, intervals may be too wide, never too narrow.
    assert 0.93 - error <= covered / repetitions <= (0.99 if n == 20 else 0.97 + error)


@pytest.mark.slow
@pytest.mark.parametrize("n", [(20, 30), (60, 200)])
def test_intervals_of_unpaired_differences_cover(n):
    rng = derive_rng(13, "difference", *n)
    covered = 0
    for _ in range(800):
        x, y = rng.beta(8, 2, n[0]), rng.beta(2, 6, n[1])
        each = [mean_interval(v, rng, low=0, high=1, resamples=500) for v in (x, y)]
        low, high = combined_interval((1, -1), (x.mean(), y.mean()), each)
        covered += low <= 0.8 - 0.25 <= high
    assert 0.925 <= covered / 800 <= 0.98


@pytest.mark.slow
def test_intervals_of_paired_differences_cover_and_are_narrower_where_latents_differ_in_difficulty():
    rng = derive_rng(14, "paired")
    covered = narrower = 0
    for _ in range(600):
        difficulty = rng.beta(2, 2, 50)
        x, y = (0.9 * difficulty + 0.1 * rng.random(50) for _ in range(2))
        low, high = mean_interval(x - y, rng, low=-1, high=1, resamples=500)
        covered += low <= 0 <= high
        each = [mean_interval(v, rng, low=0, high=1, resamples=200) for v in (x, y)]
        a, b = combined_interval((1, -1), (x.mean(), y.mean()), each)
        narrower += high - low < (b - a) / 3
    assert 0.925 <= covered / 600 <= 0.98 and narrower == 600


def test_combined_interval_of_symmetric_ones_adds_squares_and_a_single_one_is_kept():
    assert combined_interval((1, -1), (0.7, 0.5), ((0.67, 0.73), (0.46, 0.54))) == pytest.approx((0.15, 0.25))
    assert combined_interval((1,), (0.7,), ((0.5, 0.75),)) == pytest.approx((0.5, 0.75))
    assert combined_interval((-1,), (0.7,), ((0.5, 0.75),)) == pytest.approx((-0.75, -0.5))


# --- agreement ---


def test_krippendorffs_alpha_of_his_own_examples():
    # K. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), sections A and C.
    two = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert krippendorff_alpha(two) == pytest.approx(0.095, abs=5e-4)
    four = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    assert krippendorff_alpha([[None if c == "." else c for c in row] for row in four]) == pytest.approx(
        0.743, abs=5e-4
    )


@pytest.mark.parametrize(("noise", "truth"), [(0.1, 0.64), (0.02, 1 - 2 * 0.02 * 0.98 / 0.5)])
def test_interval_of_alpha_over_latents_covers_the_alpha_of_all_latents(noise, truth):
    rng, covered = derive_rng(16, noise), 0
    latents = [latent for latent in range(12) for _ in range(20)]
    for _ in range(100):
        active = rng.random(240) < 0.5
        judges = [(active ^ (rng.random(240) < noise)).tolist() for _ in range(2)]
        low, high = alpha_interval(judges, latents)
        assert low <= krippendorff_alpha(judges) <= high
        covered += low <= truth <= high
    assert covered >= 90


def test_interval_of_alpha_is_not_empty_at_full_agreement_and_unknown_where_alpha_is_or_latents_are_few():
    latents = [latent for latent in range(10) for _ in range(2)]
    same = [[True, False] * 10] * 2
    assert alpha_interval(same, latents) == pytest.approx((1 - 2 * (1 - 0.05 ** (1 / 10)), 1))
    assert alpha_interval([[True] * 20] * 2, latents) is None
    assert alpha_interval([same[0][:18]] * 2, latents[:18]) is None


def test_alpha_of_full_agreement_is_one_of_chance_near_nought_and_of_constant_answers_unknown():
    assert krippendorff_alpha([[True, False, True], [True, False, True]]) == 1
    rng = derive_rng(15, "alpha")
    assert abs(krippendorff_alpha([list(rng.random(4000) < 0.7) for _ in range(2)])) < 0.05
    assert math.isnan(krippendorff_alpha([[True, True], [True, True]]))
    assert krippendorff_alpha([[True, False, None], [True, False, True]]) == 1


# --- correlations ---


def test_rank_correlation_has_the_interval_of_bonett_and_wright():
    x, y = derive_rng(20).random(40), derive_rng(21).random(40)
    found = correlated(x + y, y)
    r = scipy_stats.spearmanr(x + y, y).statistic
    half = 1.96 * math.sqrt((1 + r**2 / 2) / 37)
    assert found.spearman == pytest.approx(r) and found.pearson == pytest.approx(
        scipy_stats.pearsonr(x + y, y).statistic
    )
    assert found.ci95 == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)))


def _under_a_ceiling(rng, n):
    """Return two scores of 5 activating and 5 other windows, of latents that are mostly judged right."""
    z = rng.standard_normal((2, n))
    wrong = np.clip(0.05 * np.exp(1.2 * np.stack([z[0], 0.9 * z[0] + 0.19**0.5 * z[1]])) - 0.05, 0, 0.5)
    return 1 - rng.binomial(10, wrong) / 10


@pytest.mark.parametrize("n, covered", [(8, 0.85), (20, 0.9)])
def test_the_interval_of_a_rank_correlation_covers_it_under_a_ceiling(n, covered):
    rng = derive_rng(51, "ceiling")
    truth = scipy_stats.spearmanr(*_under_a_ceiling(rng, 100_000)).statistic
    found = [correlated(*_under_a_ceiling(rng, n)).ci95 for _ in range(200)]
    known = [ci95 for ci95 in found if ci95 is not None]
    assert len(known) > 150 and np.mean([low <= truth <= high for low, high in known]) >= covered


def test_a_rank_correlation_that_depends_on_one_latent_or_shows_no_spread_has_a_wide_interval():
    one = correlated([1.0] * 9 + [0.2], [1.0] * 9 + [0.1])
    assert one.spearman == pytest.approx(1) and one.ci95[0] < 0 and one.ci95[1] == pytest.approx(1)
    few = correlated([1.0] * 7 + [0.2, 0.3, 0.4], [1.0] * 7 + [0.1, 0.2, 0.3])
    assert few.spearman == pytest.approx(1) and few.ci95[0] < 0.8
    low, high = correlated(range(1000), [i % 997 for i in range(1000)]).ci95
    assert 0.9 < low < high < 1
    assert correlated(range(9), range(9), interval=False).ci95 is None


def test_correlation_of_few_or_equal_scores_is_unknown():
    assert correlated([1, 2], [1, 3]) == stats.Correlated(2, None, None, None)
    assert correlated([1, 1, 1, 1], [1, 2, 3, 4]) == stats.Correlated(4, None, None, None)
    assert correlated([0.1 + 0.2, 0.3, 0.3], [1, 2, 3]).spearman is None  # equal but for the order of summing
    assert correlated([1, 2, 3], [1, 3, 9]).ci95 is None


# --- pairs that share members ---


def test_jackknife_of_sums_over_pairs_is_the_standard_error_of_the_mean():
    part = {"a": 0.1, "b": 0.25, "c": 0.3, "d": 0.8}
    mean, (low, high) = jackknifed_pairs(lambda one, other: part[one] + part[other], list(part))
    values = list(part.values())
    assert mean == pytest.approx(2 * np.mean(values))
    half = 2 * scipy_stats.sem(values) * scipy_stats.t(3).ppf(0.975)
    assert (low, high) == pytest.approx((mean - half, mean + half))


def test_drawn_orders_come_near_all_orders_where_many_are_as_extreme():
    places, alike = [0, 0, 0, 1, 1, 1], [9, 9, 1, 1, 1, 9, 1, 1, 1, 1, 1, 1, 9, 9, 9]
    correlation, exact = mantel(places, alike, derive_rng(20))
    drawn = mantel(places, alike, derive_rng(20), all_orders=1)
    assert correlation == drawn[0] < -0.9
    assert exact == pytest.approx(0.1) == pytest.approx(drawn[1], abs=0.015)  # ten divisions into three and three
    assert mantel(places, alike, derive_rng(20), all_orders=6) == (correlation, exact)


def test_many_latents_means_more_than_the_limit(monkeypatch):
    x, y = derive_rng(21).beta(8, 2, 40), derive_rng(22).beta(8, 2, 40)
    monkeypatch.setattr(stats, "MANY", 40)
    resampled = paired_p(x - y, derive_rng(23), 199), unpaired_p(x, y, derive_rng(23), 199)
    assert all(math.isclose(200 * p, round(200 * p), abs_tol=1e-9) for p in resampled)  # counted, not calculated
    monkeypatch.setattr(stats, "MANY", 39)
    theory = paired_p(x - y, derive_rng(23), 199), unpaired_p(x, y, derive_rng(23), 199)
    assert not any(math.isclose(200 * p, round(200 * p), abs_tol=1e-9) for p in theory)


# --- definitions, computed once more by hand ---


def test_a_weighted_mean_has_the_bootstrap_interval_of_the_ratio_stretched_for_its_effective_number():
    x, w = derive_rng(30).beta(5, 2, 30), derive_rng(31).lognormal(0, 1, 30)
    found = weighted_mean(x, w, derive_rng(32), low=0, high=1)
    assert found.value == pytest.approx(np.average(x, weights=w))
    effective = w.sum() ** 2 / (w**2).sum()
    assert found.n == pytest.approx(effective)
    drawn = derive_rng(32).integers(0, 30, size=(2000, 30))
    means = [np.average(x[i], weights=w[i]) for i in drawn]
    stretch = scipy_stats.t(effective - 1).ppf(0.975) / 1.96
    low, high = (found.value + (end - found.value) * stretch for end in np.quantile(means, (0.025, 0.975)))
    assert found.ci95 == pytest.approx((low, high))


def test_equal_weighted_values_reach_as_far_as_so_many_effective_latents_can_miss():
    w = [4.0, 1.0, 1.0, 2.0]
    found = weighted_mean([0.5] * 4, w, derive_rng(0), low=0, high=1)
    missed = 1 - 0.05 ** (22 / 64)  # 64 / 22 effective latents
    assert found.ci95 == pytest.approx((0.5 - 0.5 * missed, 0.5 + 0.5 * missed))
    unbounded = weighted_mean([3.0] * 4, w, derive_rng(0), low=-np.inf, high=np.inf)
    assert unbounded.ci95 == pytest.approx((3 - 9 * missed, 3 + 3 * missed))  # as if from -6 to 6
    assert weighted_mean([0.4], [2.0], derive_rng(0), low=0, high=1) == (0.4, (0, 1), 1.0)
    assert weighted_mean([0.0], [2.0], derive_rng(0), low=-np.inf, high=np.inf).ci95 is None


def test_a_share_of_equal_values_reaches_its_square_of_the_way():
    x = np.array([0.2, 0.5, 0.5004, 0.5008, 0.9])  # three within a thousandth
    missed = 1 - 0.05 ** (1 / 5)
    assert stats._missed(x, 1e-3) == pytest.approx(missed * (3 / 5) ** 2)
    assert stats._missed(x, 0.0) == pytest.approx(missed * (1 / 5) ** 2)


@pytest.mark.parametrize(
    ("ci95", "bounds", "half"),
    [((0.6, 0.9), (0, 1), 0.15), ((0.6, 1.0), (0, 1), 0.2), ((0.0, 0.9), (0, None), 0.8), ((0.6, 1.0), (None, 1), 0.2),
     ((0.6, 1.0), (None, None), 0.2), ((0.0, 1.0), (None, None), 0.5)],
)  # fmt: skip
def test_the_standard_error_comes_from_the_side_of_an_interval_that_is_not_clipped(ci95, bounds, half):
    assert stats.standard_error(0.8, ci95, *bounds) == pytest.approx(half / 1.96)
    assert stats.standard_error(0.8, None, *bounds) == stats.standard_error(None, ci95, *bounds) == math.inf


def test_all_flips_count_where_there_are_few():
    d = [0.3, 0.1, -0.05, 0.2]
    sums = [sum(s * x for s, x in zip(signs, d, strict=True)) for signs in itertools.product((1, -1), repeat=4)]
    assert paired_p(d, derive_rng(0)) == np.mean(np.abs(sums) >= sum(d) - 1e-9) == 4 / 16
    assert stats.depends_p(d, derive_rng(0)) == np.mean(np.array(sums) >= sum(d) - 1e-9) == 2 / 16
    drawn = paired_p(d, derive_rng(0), 15), stats.depends_p(d, derive_rng(0), 15)  # fewer than there are
    assert all(math.isclose(16 * p, round(16 * p), abs_tol=1e-9) for p in drawn)
    assert paired_p([0.3] * 40, derive_rng(0), 99) == stats.depends_p([0.3] * 40, derive_rng(0), 99) == 1 / 100


def test_ranks_are_counted_over_those_told_apart():
    covariance = np.diag([1e-4] * 4)
    assert stats.rank_ranges([0.9, 0.88, 0.7, 0.7], covariance) == [(1, 2), (1, 2), (3, 4), (3, 4)]
    assert stats.rank_ranges([0.9], [[1.0]]) == [(1, 1)]
    correlated_errors = [[0.04, 0.03], [0.03, 0.05]]
    assert stats.difference_errors(correlated_errors, [(0, 1)])[0] == pytest.approx(0.03**0.5)
    assert stats.difference_errors([[1e-20, 0], [0, 0]], [(0, 1)])[0] == 0
    edge = 1.96 * 2**0.5 * 0.01
    for gap, ranks in ((edge * 1.001, [(1, 1), (2, 2)]), (edge * 0.999, [(1, 2), (1, 2)])):
        assert stats.rank_ranges([0.5 + gap, 0.5], np.diag([1e-4] * 2)) == ranks


def test_margins_and_detectable_differences_follow_from_the_width_of_an_interval():
    normal = scipy_stats.norm
    error = 0.03 / 1.96
    expected = normal.cdf(0.05 / error - 1.96) - normal.cdf(-0.05 / error + 1.96)
    assert stats.power_of_near(0.05, (-0.02, 0.04)) == pytest.approx(expected)
    assert stats.power_of_near(0.01, (-0.02, 0.04)) == 0 and stats.power_of_near(0.01, (0.02, 0.02)) == 1
    assert stats.detectable_within((-0.02, 0.04)) == pytest.approx(2.8 * error)


def test_a_rank_correlation_has_its_interval_on_fishers_scale():
    x, y = derive_rng(33).random((2, 12))
    found = correlated(x, y)
    r = scipy_stats.spearmanr(x, y).statistic
    without = [scipy_stats.spearmanr(np.delete(x, i), np.delete(y, i)).statistic for i in range(12)]
    jackknifed = (11 * np.var(np.arctanh(without))) ** 0.5
    half = max(1.96 * ((1 + r * r / 2) / (12 - 3)) ** 0.5, scipy_stats.t.ppf(0.975, 11) * jackknifed)
    assert found.spearman == pytest.approx(r) and found.pearson == pytest.approx(scipy_stats.pearsonr(x, y).statistic)
    assert found.ci95 == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)))
    assert correlated([1, 2, 3], [1, 3, 2]).ci95 is None and correlated([1, 2, 3], [1, 3, 2]).spearman == 0.5
    assert correlated([1, 2], [1, 2]).spearman is None
    low, high = correlated(range(4), range(4)).ci95  # one in twelve random orders of four is perfect or reversed
    assert -1 < low < 0 and high == 1
    assert 0.9 < correlated(range(12), range(12)).ci95[0] < 1


def test_the_method_of_an_interval_is_named_by_the_number_of_values():
    assert stats.interval_method(MANY).startswith("bootstrap") and stats.interval_method(MANY + 1).startswith("normal")


@pytest.mark.parametrize(
    ("common", "a", "b", "enough"),
    [(2, 4, 9, True), (1, 1, 1, False), (4, 8, 20, True), (4, 9, 20, False), (4, 20, 9, False), (5, 9, 20, True)],
)
def test_half_of_the_smaller_side_and_two_at_least_pair_well(common, a, b, enough):
    assert stats.pairs_well(range(common), range(a), range(b)) is enough


def test_equal_values_have_no_skewness():
    assert stats._acceleration(np.full(9, 0.3)) == 0
    x = derive_rng(34).exponential(1, 50)
    assert stats._acceleration(x) == pytest.approx(scipy_stats.skew(x) / 6 / 50**0.5)


def test_an_interval_of_paired_differences_is_that_of_the_mean_difference_from_the_first_source():
    x, y = derive_rng(35).random((2, 40))
    found = stats.difference_interval(x, y, paired=True, low=0, high=1, rngs=[derive_rng(36), derive_rng(37)])
    assert found == mean_interval(x - y, derive_rng(36), low=-1, high=1)
    apart = stats.difference_interval(x, y, paired=False, low=0, high=1, rngs=[derive_rng(36), derive_rng(37)])
    each = [mean_interval(side, derive_rng(seed), low=0, high=1) for side, seed in ((x, 36), (y, 37))]
    assert apart == pytest.approx(combined_interval((1, -1), (x.mean(), y.mean()), each))
