"""Lifts take out what windows alone explain, keep what explanations add, and say how sure they are."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from made_run import cell, floor_sample, run_of, score_row
from scipy import stats as scipy_stats

from saeval._compare import stats
from saeval._compare.judge_errors import correct_for_judge, verdict
from saeval._compare.leaderboard import Leaderboard, _Ranked
from saeval._compare.lift_rows import Reading, with_lifts
from saeval._compare.lifts import Paired, _log_likelihood, _pooled, _spread, lifts
from saeval._compare.pairwise import _few_in_both
from saeval._compare.pooled import _against, _means
from saeval._compare.score_rows import Floors, ScorerRun, score_row as made_row
from saeval.plugin import derive_rng
from saeval.records.metrics import BALANCED_ACCURACY, PEARSON, Metric
from saeval.records.results import split_ranking


def paired(own, floor, n=100, m=50, sd=(0.1, 0.1), r=0.0, shared=None, shared_floor="", **changes):
    x, f = sd[0] ** 2, sd[1] ** 2
    values = {"own": own, "error": sd[0] / n**0.5, "shared_own": own if shared is None else shared, "floor": floor,
              "m": m, "covariance": (x, f, r * sd[0] * sd[1]), "shared": shared_floor}  # fmt: skip
    return Paired(**{**values, **changes})


def errors(found):
    return np.sqrt(np.diag(found.covariance))


def difference(found, i=0, j=1):
    return float(found.values[i] - found.values[j]), stats.difference_errors(found.covariance, [(i, j)])[0]


# --- the model of floors


def test_floors_that_agree_cost_nothing_against_raw_scores():
    found = lifts([paired(0.75, 0.5), paired(0.70, 0.5)])
    assert found.values == pytest.approx([0.25, 0.20], abs=1e-6)
    raw = math.hypot(0.01, 0.01)
    value, error = difference(found)
    assert value == pytest.approx(0.05, abs=1e-6) and raw <= error < 1.08 * raw
    assert found.floors == pytest.approx([0.5, 0.5]) and 0 < found.spread < 0.01


def test_floors_that_differ_are_taken_out_of_the_difference():
    found = lifts([paired(0.75, 0.65), paired(0.60, 0.50)])
    value, error = difference(found)
    assert abs(value) < 0.01 and error > 1.3 * math.hypot(0.01, 0.01)
    assert found.floors == pytest.approx([0.65, 0.5], abs=0.01)


def test_floors_that_differ_by_noise_alone_are_pooled():
    near = lifts([paired(0.75, 0.51), paired(0.75, 0.49)])
    assert abs(difference(near)[0]) < 0.005
    assert near.floors[0] - near.floors[1] < 0.005


def test_a_judge_that_goes_by_windows_alone_gives_no_lift_even_where_floors_would_be_pooled():
    # Score and floor of a latent are the same number, and only half of the latents have a floor.
    found = lifts([paired(0.53, 0.52, r=1.0, shared=0.52), paired(0.50, 0.505, r=1.0, shared=0.505)])
    assert found.values == pytest.approx([0, 0], abs=1e-6)
    assert errors(found) == pytest.approx([0, 0], abs=1e-4)


def test_more_cells_whose_floors_agree_make_a_lift_more_certain():
    few, many = (lifts([paired(0.7, 0.5)] * k) for k in (1, 12))
    assert errors(many)[0] < 0.85 * errors(few)[0]
    assert errors(few)[0] == pytest.approx(math.hypot(0.01, 0.1 / 50**0.5), rel=1e-3)


def test_the_error_of_the_common_floor_is_shared_and_cancels_between_cells():
    found = lifts([paired(0.7, 0.5)] * 4)
    assert found.covariance[0, 1] > 0
    assert difference(found)[1] < math.hypot(*errors(found)[:2])


def test_a_floor_that_cells_share_counts_once():
    alone = lifts([paired(0.7, 0.5)])
    same = lifts([paired(0.7, 0.5, shared_floor="f")] * 4)
    assert errors(same) == pytest.approx(errors(alone)[0]) and same.values == pytest.approx(alone.values[0])
    assert difference(same)[1] == pytest.approx(math.hypot(0.01, 0.01), rel=1e-3)  # of the scores: the floor cancels
    two = lifts([paired(0.7, 0.5, shared_floor=name) for name in "ffgg"])
    assert errors(two) == pytest.approx(errors(lifts([paired(0.7, 0.5)] * 2))[0])


def test_a_cell_with_few_latents_leaves_the_lifts_of_cells_that_share_its_floor():
    few = paired(0.74, 0.53, n=4, m=4, r=0.9, shared_floor="f")
    full = [paired(own, 0.5, n=100, m=100, r=0.9, shared_floor="f") for own in (0.7, 0.65)]
    alone, found = lifts(full), lifts([few, *full])
    assert found.values[1:] == pytest.approx(alone.values, abs=0.003)
    assert errors(found)[1:] == pytest.approx(errors(alone), rel=0.02)


def test_intervals_of_lifts_cover_the_truth_where_explainers_that_share_a_floor_fail_on_different_latents():
    rng, runs, truth = derive_rng(12), 250, 0.1
    covered = np.zeros(4)
    for _ in range(runs):
        windows = rng.normal(0, 0.1, (2, 80))  # what latents' windows add to score and floor, for each floor
        cells = []
        for name, n, with_floor in (("f", 12, 12), ("f", 40, 40), ("f", 80, 80), ("", 80, 40)):
            drawn = rng.choice(80, n, replace=False)
            easy = windows[0 if name else 1, drawn]
            own, floor = 0.5 + truth + easy + rng.normal(0, 0.04, n), 0.5 + easy[:with_floor]
            (x, both), (_, f) = np.cov(own[:with_floor], floor)
            error, judged_twice = own.std(ddof=1) / n**0.5, own[:with_floor].mean()
            sample = {"m": with_floor, "shared": judged_twice, "covariance": (x, f, both), "shared_floor": name}
            cells.append(paired(own.mean(), floor.mean(), error=error, **sample))
        found = lifts(cells)
        value, error = difference(found)
        near = np.abs(found.values - truth) <= 2.0 * errors(found)
        covered += [*near[:3], abs(value) <= 2.0 * error]
    assert (0.91 * runs <= covered).all() and (covered <= 0.99 * runs).all()


def test_floors_pooled_over_seeds_are_shared_if_they_are_in_every_seed():
    one, other, mixed, unknown = (
        _against([floor_sample(0.7, 0.5, shared=name) for name in names], 1.0).shared
        for names in (("a", "b"), ("a", "b"), ("a", "c"), ("a", ""))
    )
    assert one == other != mixed and one and not unknown


def test_lifts_and_readings_of_cells_that_share_a_floor_hold_what_they_promise():
    rng, runs, covered, depends = derive_rng(11), 80, 0, 0
    plain = Metric("x", higher_is_better=True)
    for lift in (0.1, 0.0) * runs:
        floor = dict(enumerate(rng.normal(0, 0.1, 25)))
        held = Floors({"r": floor}, ("r",), shared={"r": "same"})
        scores = [dict(enumerate(rng.normal(lift, 0.1, 50))) for _ in range(4)]
        rows = [made_row(ScorerRun("detection", "p"), plain, values, rng, floors=held) for values in scores]
        cells, lifted = with_lifts([cell(str(i), [row]) for i, row in enumerate(rows)])
        low, high = cells[0].scores[0].lift_ci95
        covered += low <= lift <= high
        depends += lift == 0 and next(iter(lifted.values())).reading.depends
    assert covered > 0.92 * 2 * runs
    assert depends <= 0.08 * runs


def test_the_likelihood_of_floors_is_that_of_their_differences():
    floor, variance = np.array([0.52, 0.47, 0.6]), np.array([0.01, 0.02, 0.005])
    contrast = np.array([[1, -1, 0], [0.5, 0.5, -1]])  # any that takes the mean out
    apart = scipy_stats.multivariate_normal(cov=contrast @ np.diag(variance) @ contrast.T)
    other = np.array([0.03, 0.01, 0.02])
    again = scipy_stats.multivariate_normal(cov=contrast @ np.diag(other) @ contrast.T)
    expected = apart.logpdf(contrast @ floor) - again.logpdf(contrast @ floor)
    assert _log_likelihood(floor, variance) - _log_likelihood(floor, other) == pytest.approx(expected)


def test_pooled_floors_are_the_posterior_of_a_common_mean_and_a_known_spread():
    floor, error2, tau = np.array([0.52, 0.47, 0.6]), np.array([0.01, 0.02, 0.005]), 0.08
    flat = (np.eye(3) - np.full((3, 3), 1 / 3)) / tau**2  # of floors about a mean that may be anything
    covariance = np.linalg.inv(np.diag(1 / error2) + flat)
    values, found = _pooled(floor, error2, tau)
    assert values == pytest.approx(covariance @ (floor / error2))
    assert found == pytest.approx(covariance)


def test_the_spread_of_floors_is_weighed_by_prior_and_likelihood():
    floor, error2, sd = np.array([0.52, 0.47, 0.6]), np.array([0.001, 0.002, 0.0005]), 0.2
    taus, weights = _spread(floor, error2, sd)
    assert taus[0] == 0 and weights.sum() == pytest.approx(1)
    steps = np.diff(taus[1:])
    assert steps == pytest.approx(steps[0]) and taus[1] == pytest.approx(steps[0] / 2)  # middles of equal steps
    scale = 0.4 * sd
    assert taus[-1] + steps[0] / 2 == pytest.approx(4 * scale)
    prior = scipy_stats.halfnorm(scale=scale).pdf(taus)
    prior[0] = 30 * prior[1:].sum()  # the odds that floors agree
    logs = np.array([_log_likelihood(floor, error2 + tau**2) for tau in taus])
    posterior = prior * np.exp(logs)
    assert weights == pytest.approx(posterior / posterior.sum())
    assert [list(x) for x in _spread(floor[:1], error2[:1], sd)] == [[0], [1]]


def test_very_likely_spreads_do_not_overflow():
    floor = derive_rng(9).normal(0.5, 0.01, 300)
    _, weights = _spread(floor, np.full(300, 1e-4), 0.2)
    assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("tau", [0.02, 0.3])
def test_lifts_are_the_posterior_of_a_model_of_scores_and_floors_with_shared_errors(tau, monkeypatch):
    monkeypatch.setattr("saeval._compare.lifts._spread", lambda *_: (np.array([tau]), np.ones(1)))
    latents = (80, 60, 90)
    cells = [
        paired(0.74, 0.52, n=latents[0], m=40, sd=(0.2, 0.1), r=0.5, shared=0.73),
        paired(0.66, 0.47, n=latents[1], m=30, sd=(0.2, 0.1), r=0.5, shared=0.67),
        paired(0.70, 0.60, n=latents[2], m=90, sd=(0.2, 0.1), r=0.5),
    ]
    found = lifts(cells)
    # Floors of all latents by double sampling: regression on the scores, which all latents have.
    slope = 0.5 * 0.1 / 0.2
    floors = np.array([c.floor + slope * (c.own - c.shared_own) for c in cells])
    error2 = np.array([0.1**2 * ((1 - 0.25) / c.m + 0.25 / n) for c, n in zip(cells, latents, strict=True)])
    shared = [0.5 * 0.2 * 0.1 / n for n in latents]
    # Unknown: three true scores and three true floors, whose common mean may be anything.
    precision = np.zeros((6, 6))
    precision[3:, 3:] = (np.eye(3) - np.full((3, 3), 1 / 3)) / tau**2
    seen = np.zeros(6)
    for i, c in enumerate(cells):
        own = np.linalg.inv([[c.error**2, shared[i]], [shared[i], error2[i]]])
        places = np.ix_([i, i + 3], [i, i + 3])
        precision[places] += own
        seen[[i, i + 3]] += own @ [c.own, floors[i]]
    covariance = np.linalg.inv(precision)
    minus = np.hstack([np.eye(3), -np.eye(3)])
    assert found.values == pytest.approx(minus @ covariance @ seen, abs=1e-6)
    assert found.covariance == pytest.approx(minus @ covariance @ minus.T, rel=1e-4, abs=1e-9)
    assert found.floors == pytest.approx(_pooled(floors, error2, tau)[0], abs=1e-6) and found.spread == tau


def test_the_spread_of_lifts_over_possible_spreads_of_floors_is_in_their_errors(monkeypatch):
    cells = [paired(0.74, 0.52), paired(0.66, 0.40)]
    single = []
    for tau in (0.01, 0.2):
        monkeypatch.setattr("saeval._compare.lifts._spread", lambda *_, tau=tau: (np.array([tau]), np.ones(1)))
        single.append(lifts(cells))
    mixed_weights = np.array([0.25, 0.75])
    monkeypatch.setattr("saeval._compare.lifts._spread", lambda *_: (np.array([0.01, 0.2]), mixed_weights))
    mixed = lifts(cells)
    values = np.array([found.values for found in single])
    assert mixed.values == pytest.approx(mixed_weights @ values) and mixed.spread == pytest.approx(0.1525)
    within = sum(w * found.covariance for w, found in zip(mixed_weights, single, strict=True))
    between = np.cov(values.T, aweights=mixed_weights, ddof=0)
    assert mixed.covariance == pytest.approx(within + between)


def test_a_lift_is_never_more_certain_than_so_few_differences_allow():
    found = lifts([paired(1.0, 0.5, sd=(0.0, 0.0), error=0.03, least_error=0.05)] * 2)
    assert errors(found).min() >= 0.05


def test_a_cell_with_few_floors_leans_on_the_spread_of_the_others():
    alone = lifts([paired(0.7, 0.5, m=2, sd=(0.1, 0.0)), paired(0.7, 0.5, m=50, sd=(0.1, 0.2))])
    assert errors(alone)[0] > 0.015  # its own two floors happen to be alike


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.91), (0.1, 0.86)])
def test_intervals_of_lifts_cover_the_truth(spread, least):
    rng = derive_rng(1, "lifts cover", str(spread))
    covered = 0
    for _ in range(150):
        floors = 0.5 + spread * rng.standard_normal(3)
        cells = []
        for at in floors:
            own, floor = rng.normal(at + 0.2, 0.15, 60), rng.normal(at, 0.1, 30)
            (x, both), (_, f) = np.cov(own[:30], floor)
            cells.append(paired(own.mean(), floor.mean(), 60, 30, error=own.std(ddof=1) / 60**0.5,
                                shared_own=own[:30].mean(), covariance=(x, f, both)))  # fmt: skip
        found = lifts(cells)
        covered += abs(found.values[0] - 0.2) <= 2.0 * errors(found)[0]
    assert least <= covered / 150 <= 0.995


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_intervals_of_lifts_cover_the_truth_where_score_and_floor_go_together(noise):
    rng = derive_rng(1, "lifts cover", str(noise))
    covered = 0
    for _ in range(300):
        cells = []
        for _ in range(2):
            easy = rng.normal(0.7, 0.1, 50)  # how easy a latent's windows are, which its score and its floor share
            own, floor = easy + rng.normal(0, noise, 50), (easy - 0.2 + rng.normal(0, noise, 50))[:25]
            (x, both), (_, f) = np.cov(own[:25], floor)
            cells.append(paired(own.mean(), floor.mean(), 50, 25, error=own.std(ddof=1) / 50**0.5,
                                shared_own=own[:25].mean(), covariance=(x, f, both)))  # fmt: skip
        found = lifts(cells)
        covered += abs(found.values[0] - 0.2) <= 2.06 * errors(found)[0]  # of t with 24 degrees of freedom
    assert 0.925 <= covered / 300 <= 0.985


# --- tests


def test_signs_are_flipped_in_all_ways_where_there_are_few():
    d = [0.3, 0.1, -0.05, 0.2]
    sums = [sum(s * x for s, x in zip(signs, d, strict=True)) for signs in product((1, -1), repeat=4)]
    exact = np.mean([s >= sum(d) - 1e-12 for s in sums])
    assert stats.depends_p(d, derive_rng(0)) == exact == 2 / 16
    assert stats.paired_p(d, derive_rng(0)) == np.mean([abs(s) >= abs(sum(d)) - 1e-12 for s in sums]) == 4 / 16
    assert stats.depends_p([-x for x in d], derive_rng(0)) == 15 / 16


def test_drawn_flips_come_near_all_flips_and_their_p_is_never_nought():
    d = derive_rng(2).normal(0.05, 0.1, 30)
    expected = scipy_stats.ttest_1samp(d, 0, alternative="greater").pvalue
    assert stats.depends_p(d, derive_rng(3), 9999) == pytest.approx(expected, abs=0.01)
    assert stats.depends_p([1.0] * 40, derive_rng(0), 999) == 1 / 1000
    assert stats.depends_p([0.0] * 40, derive_rng(0), 999) == 1


def test_very_many_differences_are_tested_by_normal_theory():
    rng = derive_rng(4)
    d = rng.normal(0, 1, 30_000)
    for shift, low, high in ((0.0, 0.001, 0.999), (0.1, 0.0, 0.001), (-0.1, 0.999, 1.0)):
        assert low <= stats.depends_p(d + shift, rng) <= high


def test_fishers_combination_equals_scipys():
    ps = [0.04, 0.2, 0.9]
    assert stats.fisher(ps) == pytest.approx(scipy_stats.combine_pvalues(ps, "fisher").pvalue)
    assert stats.fisher([]) == 1


def test_pairs_are_a_family_and_errors_that_are_shared_cancel():
    shared = np.full((3, 3), 0.04) + np.eye(3) * 0.0001
    ps = stats.apart_p([0.5, 0.46, 0.45], shared, [(0, 1), (0, 2), (1, 2)])
    z = scipy_stats.norm.sf(np.array([0.04, 0.05, 0.01]) / 0.0002**0.5) * 2
    assert ps == pytest.approx([z[0] * 2, z[1] * 3, z[2]], rel=1e-9)
    assert stats.apart_p([0.5, 0.5, 0.4], np.zeros((3, 3)), [(0, 1), (0, 2)]) == [1, 0]


def test_detectable_differences_grow_with_the_family():
    one, ten = stats.detectable_difference([0.02, 0.02]), stats.detectable_difference([0.02] * 45)
    assert one == pytest.approx(0.02 * (scipy_stats.norm.isf(0.025 / 2) + scipy_stats.norm.isf(0.2)))
    assert ten == pytest.approx(0.02 * (scipy_stats.norm.isf(0.025 / 45) + scipy_stats.norm.isf(0.2)))
    assert stats.detectable_difference([]) is None and stats.detectable_difference([math.inf]) is None
    assert stats.detectable_difference([0.01, 0.03, 0.02]) == stats.detectable_difference([0.02] * 3)


def test_equal_differences_leave_the_error_that_they_can_hide():
    assert stats.least_error([0.0] * 50, 0, 1) == pytest.approx((1 - 0.05 ** (1 / 50)) / 1.96)
    assert stats.least_error([0.0] * 50, -1, 1) == pytest.approx(2 * (1 - 0.05 ** (1 / 50)) / 1.96)
    assert stats.least_error(derive_rng(1).random(50), 0, 1) < 0.001
    assert stats.least_error([3.0] * 50, -math.inf, math.inf) == pytest.approx(6 * (1 - 0.05 ** (1 / 50)) / 1.96)
    assert stats.least_error([], 0, 1) == math.inf


# --- a judge's errors


def test_correction_divides_what_is_above_chance_by_what_a_judge_lets_through():
    value, (low, high) = correct_for_judge((0.7, 0.02), (0.9, 0.01))
    assert value == pytest.approx(0.5 + 0.2 / 0.8)
    assert low < value < high and high - low > 2 * 1.96 * 0.02 / 0.8  # wider than for a judge known exactly
    exact = correct_for_judge((0.7, 0.02), (0.9, 0.0))
    assert exact[1] == pytest.approx((0.75 - 1.96 * 0.025, 0.75 + 1.96 * 0.025))


def test_a_perfect_judge_corrects_nothing_and_scores_stay_in_range():
    assert correct_for_judge((0.7, 0.01), (1.0, 0.0))[0] == pytest.approx(0.7)
    assert correct_for_judge((0.97, 0.02), (0.8, 0.01))[0] == 1.0
    assert correct_for_judge((0.02, 0.01), (0.8, 0.01))[1][0] == 0.0
    assert correct_for_judge((0.5, 0.01), (0.8, 0.01))[0] == pytest.approx(0.5)


@pytest.mark.parametrize(("score", "check"), [((0.7, 0.02), (0.9, 0.03)), ((0.55, 0.04), (0.8, 0.05))])
def test_the_ends_of_a_corrected_interval_are_what_both_errors_just_reach(score, check):
    value, ends = correct_for_judge(score, check)
    slope = 2 * check[0] - 1
    assert value == pytest.approx(0.5 + (score[0] - 0.5) / slope)
    for end in ends:
        r = end - 0.5
        missed = abs(score[0] - 0.5 - r * slope)
        assert missed == pytest.approx(1.96 * math.hypot(score[1], 2 * r * check[1]))
    assert ends[0] < value < ends[1]


def test_a_judge_that_may_know_nothing_cannot_be_corrected_for():
    assert correct_for_judge((0.7, 0.02), (0.5, 0.01)) is None
    assert correct_for_judge((0.7, 0.02), (0.52, 0.02)) is None
    assert correct_for_judge((0.7, 0.02), (0.4, 0.01)) is None


@pytest.mark.parametrize(
    ("value", "interval", "said"),
    [(0.95, (0.8, 0.97), "pass"), (0.95, (0.79, 0.97), "weak"), (0.7, (0.61, 0.8), "weak"), (0.7, (0.6, 0.8), "fail"),
     (0.9, None, "pass"), (0.5, (0.4, 0.6), "fail")],
)  # fmt: skip
def test_verdicts_go_by_the_lower_end(value, interval, said):
    assert verdict(value, interval) == said


# --- rows


def row_of(own, floor, metric=BALANCED_ACCURACY, **floors):
    values = dict(enumerate(own))
    floor = floor if isinstance(floor, dict) else dict(enumerate(floor))
    held = Floors({"other": floor}, **{"uninformed": ("other",), **floors})
    return made_row(ScorerRun("detection", "saeval/detection 0.1.0"), metric, values, derive_rng(0), floors=held)


def test_a_row_keeps_what_lifts_are_made_of():
    own, floor = derive_rng(5).random((2, 40))
    row = row_of(own, floor[:25], same={"other": (30, 40)})
    sample = row.against
    assert (sample.variant, sample.n, sample.same, sample.answers) == ("other", 25, 0.75, 40)
    assert (sample.own, sample.value) == (pytest.approx(own[:25].mean()), pytest.approx(floor[:25].mean()))
    (a, b), (_, c) = np.cov(own[:25], floor[:25])
    assert sample.covariance == pytest.approx((a, c, b))
    assert row.floor == {"other": pytest.approx(floor[:25].mean()), "chance": 0.5}
    assert row.lift is None  # until all cells are there


def test_a_row_has_the_mean_length_of_the_explanations():
    scoring = ScorerRun("detection", "saeval/detection 0.1.0")
    lengths = [made_row(scoring, BALANCED_ACCURACY, {0: 0.5}, derive_rng(0), words=words) for words in ((3, 4, 8), ())]
    assert [row.explanation_words for row in lengths] == [5.0, None]


def test_a_floor_has_the_same_digits_wherever_it_is_shown():
    for seed in range(20):
        own, floor = derive_rng(seed).random((2, 45))
        row, alone = row_of(own, floor), row_of(floor, own)
        backwards = row_of(own, dict(reversed(list(enumerate(floor)))))
        assert row.floor["other"] == row.against.value == alone.value == alone.against.own == backwards.floor["other"]
        rows = [row, row_of(floor, own)]
        pooled = _against([found.against for found in rows], 1.0)
        assert pooled.value == _means([found.floor for found in rows])["other"]


def test_only_baselines_that_know_nothing_make_a_floor():
    own = derive_rng(6).random(30)
    row = row_of(own, own * 0.9, uninformed=())
    assert row.against is None and "other" in row.floor


def test_where_less_is_better_a_lower_score_is_a_lift():
    error = Metric("error", higher_is_better=False)
    rng = derive_rng(7)
    rows = [row_of(rng.normal(0.3, 0.05, 60), rng.normal(0.5, 0.05, 30), error) for _ in range(2)]
    assert all(row.against.p < 0.001 for row in rows)
    worse = row_of(rng.normal(0.5, 0.05, 60), rng.normal(0.3, 0.05, 30), error)
    assert worse.against.p > 0.99
    assert (worse.unparsed, worse.skipped, worse.windows, worse.answered) == (0, 0, 0, 0)
    assert ScorerRun("detection", "saeval/detection 0.1.0").tried == 0
    cells, lifted = with_lifts([cell(str(i), [row]) for i, row in enumerate(rows)])
    assert all(c.scores[0].lift == pytest.approx(0.2, abs=0.03) for c in cells)
    assert all(of.reading.depends for of in lifted.values())


def test_the_interval_of_a_lift_is_that_of_t_with_as_many_latents_as_the_floor_has():
    rng = derive_rng(8)
    rows = [row_of(rng.normal(0.7, 0.1, 40), rng.normal(0.5, 0.1, 9), same={"other": (30, 60)}) for _ in range(2)]
    cells, lifted = with_lifts([cell(str(i), [row]) for i, row in enumerate(rows)])
    (found,) = lifted.values()
    expected = lifts(
        [Paired(r.value, stats.standard_error(r.value, r.ci95, 0, 1), r.against.own, r.against.value, 9,
                r.against.covariance, r.against.least_error) for r in rows]
    )  # fmt: skip
    assert found.values == pytest.approx(expected.values) and found.covariance == pytest.approx(expected.covariance)
    for i, made in enumerate(cells):
        half = scipy_stats.t(8).ppf(0.975) * expected.covariance[i, i] ** 0.5
        lift = made.scores[0].lift
        assert lift == pytest.approx(expected.values[i])
        assert made.scores[0].lift_ci95 == pytest.approx((lift - half, lift + half))
    reading = found.reading
    assert (reading.same, reading.answers, reading.latents) == (0.5, 120, 18)
    assert reading.p == pytest.approx(scipy_stats.combine_pvalues([r.against.p for r in rows]).pvalue)


def test_intervals_of_lifts_stay_within_what_the_metric_allows():
    row = row_of([1.0, -1.0, 0.9, -0.9], [-1.0, 1.0], PEARSON)
    (made,), _ = with_lifts([cell("a", [row])])
    low, high = made.scores[0].lift_ci95
    assert low == -2 and high == 2


# --- boards


def board(*cells, rank_by="detection.balanced_accuracy"):
    return Leaderboard.of(run_of(*cells, rank_by=rank_by))


def contestant(name, own, floor, baseline=None, half=0.02, **sample):
    made = floor_sample(own, floor, n=48, **sample)
    return cell(name, [score_row("detection", own, half, against=made)], baseline)


def told(found):
    return [(s.cell.axes["coder"], s.rank_text) for s in found.standings]


def test_what_windows_alone_explain_does_not_rank():
    found = board(contestant("a", 0.80, 0.70), contestant("b", 0.60, 0.50))
    assert found.ranking == "lift" and [rank for _, rank in told(found)] == ["1-2", "1-2"]
    raw = board(contestant("a", 0.80, 0.70), contestant("b", 0.60, 0.50), rank_by="detection.balanced_accuracy.raw")
    assert raw.ranking == "raw" and told(raw) == [("a", "1"), ("b", "2")]
    assert any("as requested" in note for note in raw.notes)


def test_lifts_reorder_cells_whose_raw_scores_say_the_opposite():
    small = {"covariance": (0.0025, 0.0025, 0.0)}
    found = board(contestant("loud", 0.80, 0.75, **small), contestant("true", 0.75, 0.50, **small))
    assert told(found) == [("true", "1"), ("loud", "2")]
    assert found.row(found.standings[0].cell, "detection").lift > 0.2


def test_a_board_without_floors_ranks_raw_scores_and_says_so():
    found = board(cell("a", [score_row("detection", 0.8)]), cell("b", [score_row("detection", 0.6)]))
    assert found.ranking == "raw" and told(found) == [("a", "1"), ("b", "2")]
    assert any("no floors" in note for note in found.notes)
    mixed = board(contestant("a", 0.8, 0.5), cell("b", [score_row("detection", 0.6)]))
    assert mixed.ranking == "raw" and any("not every contestant has a floor" in note for note in mixed.notes)


def test_board_whose_contestants_have_no_score_yet_asks_for_no_floors():
    unscored = cell("a", [score_row("detection", None)])
    notes = board(unscored, cell("b", [score_row("detection", 0.6)], "neurons")).notes
    assert any("no contestant has a score" in note for note in notes)
    assert not any("shuffled_explanation" in note for note in notes)


def test_notes_explain_what_ranks_and_every_mark_and_nothing_else():
    lifted = board(contestant("a", 0.8, 0.5), contestant("b", 0.6, 0.5)).notes
    assert [note.partition(":")[0] for note in lifted[:2]] == ["rank", "lift"]
    assert "if lifts are not distinguishable" in lifted[0] and "two contestants in lift of detection" in lifted[-1]
    plain = [cell(name, [score_row("detection", value)]) for name, value in (("a", 0.8), ("b", 0.6))]
    raw = board(*plain).notes
    assert "if scores are not distinguishable" in raw[0] and "in raw detection" in raw[-1] and len(raw) == 3
    marked = {"n": 19}, {"off": True}, {"answered": 1823}, {"n": 20, "off": False, "answered": 1824}
    for changes, mark in zip(marked, ("*: ", "≠: ", "!: ", None), strict=True):
        notes = board(*plain, cell("c", [score_row("detection", 0.7, **changes)])).notes
        assert [note[:3] for note in notes[3:]] == [mark] * (mark is not None)


@pytest.mark.parametrize(("n", "starred"), [(19, True), (20, False)])
def test_few_latents_of_a_floor_are_marked(n, starred):
    found = board(*(contestant(name, own, 0.5) for name, own in (("a", 0.8), ("b", 0.6))))
    assert not any(note.startswith("*") for note in found.notes)
    few = [
        cell(name, [score_row("detection", own, 0.02, against=floor_sample(own, 0.5, n=n))])
        for name, own in (("a", 0.8), ("b", 0.6))
    ]
    assert any(note.startswith("*") for note in board(*few).notes) is starred


def test_the_reading_of_a_scorer_is_that_of_its_least_dependent_judge():
    for order in (("good", "blind"), ("blind", "good")):
        rows = {
            "good": score_row("detection", 0.8, judge="openai/good", against=floor_sample(0.8, 0.5, p=0.001)),
            "blind": score_row("detection", 0.8, judge="openai/blind", against=floor_sample(0.8, 0.5, p=0.7)),
        }
        found = board(*(cell(name, [rows[name]]) for name in order))
        assert found.readings["detection"].p == pytest.approx(0.7)


def test_everything_shares_a_rank_unless_scores_depend_on_explanations_at_5_percent():
    cells = [cell(name, [score_row("detection", value)]) for name, value in (("a", 0.9), ("b", 0.1))]
    for least_p, ranks in (
        (0.0501, {"coder=a": (1, 2), "coder=b": (1, 2)}),
        (0.05, {"coder=a": (1, 1), "coder=b": (2, 2)}),
    ):
        ranked = _Ranked(cells, np.array([0.9, 0.1]), np.diag([1e-4, 1e-4]), "lift", "", least_p)
        assert ranked.ranks([0, 1]) == ranks


@pytest.mark.parametrize(("answers", "same", "ignores"), [(20, 0.98, True), (19, 0.98, False), (20, 0.97, False)])
def test_a_judge_ignores_explanations_if_enough_answers_are_the_same(answers, same, ignores):
    assert Reading(p=0.01, same=same, answers=answers, latents=30).ignores is ignores
    assert Reading(p=0.01, same=None, answers=answers, latents=30).ignores is False


def test_columns_are_the_main_metric_and_others_meant_for_boards():
    also = {"on_board": True, "metric": "f1"}
    rows = [
        score_row("detection", 0.7), score_row("detection", 0.6, **also), score_row("detection", 0.5, metric="accuracy"),
        score_row("fuzzing", 0.7, on_board=True),
    ]  # fmt: skip
    expected = (("detection", "balanced_accuracy"), ("detection", "f1"), ("fuzzing", "balanced_accuracy"))
    assert board(cell("a", rows)).shown == expected


def test_a_judge_that_ignores_explanations_separates_nothing():
    blind = {"same": 1.0, "answers": 4000, "p": 1.0, "covariance": (0.01, 0.01, 0.01)}
    found = board(contestant("a", 0.56, 0.56, **blind), contestant("b", 0.49, 0.49, **blind))
    assert [rank for _, rank in told(found)] == ["1-2", "1-2"]
    assert [found.row(s.cell, "detection").lift for s in found.standings] == pytest.approx([0, 0], abs=1e-6)
    assert any("this judge ignores the explanation: 100% of its answers on 8000 windows" in n for n in found.notes)


def test_latents_and_windows_of_a_floor_that_cells_share_count_once():
    alike = {"same": 1.0, "p": 0.6, "covariance": (0.01, 0.01, 0.0)}
    counts = {"a": (6, 12), "b": (4, 8), "c": (6, 12)}  # latents and windows
    for floors, latents, windows in (("fff", 6, 12), ("ffg", 12, 24), ("", 16, 32)):
        names = dict(zip(counts, floors, strict=False))
        samples = {
            name: floor_sample(0.52, 0.5, n=n, answers=answers, shared=names.get(name, ""), **alike)
            for name, (n, answers) in counts.items()
        }
        found = board(*(cell(name, [score_row("detection", 0.52, against=of)]) for name, of in samples.items()))
        reading = found.readings["detection"]
        assert (reading.latents, reading.answers, reading.same) == (latents, windows, 1.0)
        said = "no lift was detected over 6 latents" if floors == "fff" else f"on {windows} windows"
        assert any(said in note for note in found.notes)


@pytest.mark.parametrize(("same", "answers", "said"), [
    (0.98, 400, "ignores the explanation"), (0.979, 400, "no lift was detected"), (1.0, 8, "no lift was detected"),
    (None, 0, "no lift was detected"),
])  # fmt: skip
def test_what_is_said_of_a_judge_without_lift_goes_by_its_answers(same, answers, said):
    doubtful = {"same": same, "answers": answers, "p": 0.4}
    found = board(contestant("a", 0.62, 0.5, **doubtful), contestant("b", 0.48, 0.5, **doubtful))
    assert [rank for _, rank in told(found)] == ["1-2", "1-2"]
    assert any(said in note for note in found.notes)


def test_counts_of_one_are_singular_on_boards_and_in_comparisons():
    assert "over 1 latent (p 1)" in Reading(p=1.0, same=None, answers=0, latents=1).text
    assert _few_in_both([3], [3, 4], [3]) == "only 1 latent number is in both (2 and 1 latent)"
    assert _few_in_both([], [3], [4, 5]) == "only 0 latent numbers are in both (1 and 2 latents)"


def test_contestants_are_tested_against_baseline_coders_as_one_family():
    found = board(
        contestant("good", 0.75, 0.5), contestant("poor", 0.61, 0.5),
        contestant("random_sae", 0.60, 0.5, "random_sae"), contestant("neurons", 0.60, 0.5, "neurons"),
    )  # fmt: skip
    against = {(a.cell, a.baseline): a for a in found.against}
    assert len(against) == 4
    good, poor = against["coder=good", "coder=random_sae"], against["coder=poor", "coder=neurons"]
    assert good.p < 0.001 and good.difference == pytest.approx(0.15, abs=1e-6) and good.ci95[0] > 0.1
    assert poor.p == 1 or poor.p > 0.05
    assert found.smallest_against == pytest.approx(
        stats.detectable_difference([(good.ci95[1] - good.ci95[0]) / 2 / 1.96] * 4), rel=1e-6
    )


def test_no_baseline_is_beaten_under_a_judge_that_ignores_explanations():
    blind = {"same": 1.0, "answers": 4000, "p": 1.0}
    found = board(contestant("a", 0.9, 0.5, **blind), contestant("random_sae", 0.5, 0.5, "random_sae", **blind))
    assert [a.p for a in found.against] == [1.0]


def test_judges_are_not_pooled():
    one = contestant("a", 0.8, 0.5)
    other = contestant("b", 0.6, 0.5, p=0.9, same=1.0)
    other.scores[0] = other.scores[0].model_copy(update={"judge": "another/judge"})
    found = board(one, other)
    assert [rank for _, rank in told(found)] == ["1-2", "1-2"]
    assert any("ignores the explanation" in note for note in found.notes)


def test_results_of_earlier_versions_lose_their_lift_over_chance():
    found = board(cell("a", [score_row("detection", 0.8, lift=0.3)]))
    assert found.row(found.standings[0].cell, "detection").lift is None


def test_ranking_columns_are_split():
    assert split_ranking("my.scorer.auroc.lift") == ("my.scorer.auroc", "lift")
    assert split_ranking("fuzzing.lift") == ("fuzzing", "lift")
    assert split_ranking("fuzzing.auroc") == ("fuzzing.auroc", None)
