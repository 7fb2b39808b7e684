"""Intervals and tests against SciPy and closed forms, and their coverage by simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lmlab import stats

VALUES = np.random.default_rng(0).gamma(2.0, size=40)


def test_the_error_of_a_mean_is_that_of_scipy():
    assert stats.standard_error(VALUES) == pytest.approx(scipy_stats.sem(VALUES))
    assert stats.standard_error([3.0]) is None


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_students_interval_and_test_are_those_of_scipy(level: float):
    found, theirs = stats.t_interval(VALUES, level), scipy_stats.ttest_1samp(VALUES, 0)
    assert found.bounds == pytest.approx(tuple(theirs.confidence_interval(level)))
    shifted = VALUES - VALUES.mean() - 0.2
    assert stats.t_test(shifted) == pytest.approx(scipy_stats.ttest_1samp(shifted, 0).pvalue)
    assert found.half_width == pytest.approx((found.high - found.low) / 2)


def test_one_value_says_nothing_of_its_spread():
    found = stats.t_interval([2.0])
    assert found.value == 2 and math.isnan(found.low) and found.standard_error is None
    assert stats.t_test([2.0]) is None
    assert math.isnan(stats.bootstrap(lambda chosen: float(len(chosen)), 1).high)


def test_equal_differences_leave_no_doubt():
    assert stats.t_test([0.1, 0.1]) == 0
    assert stats.t_test([0.0, 0.0]) == 1, "no difference at all is not a significant one"


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (81, 263)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_interval_is_that_of_scipy(successes: int, trials: int, level: float):
    theirs = scipy_stats.binomtest(successes, trials).proportion_ci(level, "wilson")
    assert stats.wilson(successes, trials, level).bounds == pytest.approx((theirs.low, theirs.high))


def test_wilson_refuses_what_is_no_share():
    for successes, trials in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="no share"):
            stats.wilson(successes, trials)


def test_mcnemar_is_the_binomial_test_of_a_fair_coin():
    assert stats.mcnemar(5, 15) == stats.mcnemar(15, 5) == pytest.approx(2 * scipy_stats.binom.cdf(5, 20, 0.5))
    assert stats.mcnemar(0, 0) == stats.mcnemar(4, 4) == 1


def test_an_overlap_is_fishers_one_sided_test():
    both, first, second, total = 6, 10, 12, 50
    table = [[both, first - both], [second - both, total - first - second + both]]
    expected = scipy_stats.fisher_exact(table, "greater").pvalue
    assert stats.overlap_test(both, first, second, total) == pytest.approx(expected)


def test_normal_quantiles():
    assert stats.normal_quantile(0.95) == pytest.approx(1.959963984540054)
    assert stats.normal_cdf(1.0) == pytest.approx(scipy_stats.norm.cdf(1))


def test_a_ratio_of_equal_denominators_is_a_mean():
    assert stats.ratio_error(VALUES, np.full(40, 3.0)) == pytest.approx(scipy_stats.sem(VALUES / 3))


def test_the_bootstrap_agrees_with_scipys():
    found = stats.bootstrap(lambda chosen: float(np.median(VALUES[chosen])), 40, resamples=4000)
    theirs = scipy_stats.bootstrap((VALUES,), np.median, n_resamples=4000, method="percentile", rng=1)
    assert found.value == np.median(VALUES)
    assert found.standard_error == pytest.approx(theirs.standard_error, rel=0.06)
    assert found.bounds == pytest.approx(tuple(theirs.confidence_interval), abs=0.12)


def test_means_are_resampled_as_any_statistic_is():
    one_by_one = stats.resample(lambda chosen: float(VALUES[chosen].mean()), 40, 50, seed=3)
    assert np.array_equal(stats.resampled_means(VALUES, 50, seed=3), one_by_one)
    clusters = [f"c{number // 7}" for number in range(40)]
    clustered = stats.resample(lambda chosen: float(VALUES[chosen].mean()), 40, 50, 3, clusters)
    np.testing.assert_allclose(stats.resampled_means(VALUES, 50, 3, clusters), clustered)


def test_a_paired_bootstrap_agrees_with_the_paired_t_test():
    generator = np.random.default_rng(3)
    first = generator.normal(1.0, 0.5, 200)
    second = first + generator.normal(0.02, 0.15, 200)
    found, p = stats.paired_bootstrap(first, second)
    test = scipy_stats.ttest_rel(second, first)
    assert p == pytest.approx(test.pvalue, abs=0.02)
    assert found.bounds == pytest.approx(tuple(test.confidence_interval()), abs=0.003)
    assert found.standard_error == pytest.approx(scipy_stats.sem(second - first))


@pytest.mark.parametrize(("units", "clusters"), [([0.5], None), ([0.5, 0.4, 0.6], ["a", "a", "a"])])
def test_one_unit_is_no_evidence_of_a_difference(units: list[float], clusters: list[str] | None):
    found, p = stats.paired_bootstrap(np.zeros(len(units)), units, clusters=clusters)
    assert found.value == pytest.approx(0.5) and np.isnan(found.bounds).all() and found.standard_error is None
    assert p == 1


def test_clusters_of_one_are_units_and_equal_members_count_as_one():
    alone, _ = stats.paired_bootstrap(np.zeros(40), VALUES, clusters=list(range(40)))
    assert alone.bounds == pytest.approx(stats.paired_bootstrap(np.zeros(40), VALUES)[0].bounds)
    repeated, clusters = np.repeat(VALUES, 5), np.repeat(np.arange(40), 5).tolist()
    assert stats.paired_bootstrap(0 * repeated, repeated, clusters=clusters)[0].bounds == pytest.approx(alone.bounds)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    found = stats.jackknife(lambda total: total[0] / total[1], np.stack([VALUES, np.ones(40)], 1))
    assert found.standard_error == pytest.approx(scipy_stats.sem(VALUES))
    assert found.half_width == pytest.approx(scipy_stats.t.ppf(0.975, 39) * scipy_stats.sem(VALUES))
    assert np.isnan(stats.jackknife(lambda total: total, [[1.0], [0.0]]).half_width).all(), "empty groups are none"


@pytest.mark.parametrize("groups", [2, 3, 4, 8])
def test_the_jackknife_of_few_groups_holds_the_truth_as_often_as_it_says(groups: int):
    """With the normal quantile it is 68 % for two groups, and 85 % for five."""
    generator, rounds, hits = np.random.default_rng(groups), 600, 0
    for _ in range(rounds):
        size = generator.integers(60, 200, groups)
        parts = np.stack([generator.binomial(size, generator.beta(4, 12, groups)), size], 1).astype(float)
        found = stats.jackknife(lambda total: total[0] / total[1], parts, 0.9)
        hits += bool(found.low <= 0.25 <= found.high)
    assert 0.84 < hits / rounds < 0.95


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((0, 2, 0, 0), -1.0, 0.6838),  # exact: Clopper-Pearson of 0 of 2 reaches to 0.8419
        ((2, 0, 0, 0), -0.6576, 0.6576),  # Newcombe: Wilson of 2 of 2 begins at 0.3424
        ((5, 3, 4, 100), None, None),
    ],
)
def test_paired_shares_of_few_questions_are_known_badly(counts, low, high):
    found = stats.paired_shares(*counts)
    _, first, second, _ = counts
    assert found.value == pytest.approx((second - first) / sum(counts))
    if low is not None:
        assert found.bounds == pytest.approx((low, high), abs=1e-3)
    assert (found.low <= 0 <= found.high) == (stats.mcnemar(first, second) > 0.05 or first == second)


def test_paired_shares_hold_the_truth_as_often_as_they_say():
    generator, hits = np.random.default_rng(0), 0
    for _ in range(300):
        counts = generator.multinomial(30, [0.4, 0.1, 0.25, 0.25])
        found = stats.paired_shares(*map(int, counts))
        hits += found.low <= 0.15 <= found.high
    assert hits >= 0.95 * 300


def test_draws_that_are_not_finite_are_left_out():
    found = stats.percentile_interval(1.0, [0.0, 1.0, 2.0, math.nan, math.inf], 0.5)
    assert found.bounds == (0.5, 1.5) and found.standard_error == 1
    assert math.isnan(stats.percentile_interval(1.0, [math.nan]).low)


def test_calibration_by_hand():
    # Two predictions of 0.9, one of them right, and one of 0.35 that is half right.
    assert stats.calibration_error([0.9, 0.9, 0.35], [1, 0, 0.5]) == pytest.approx((0.8 + 0.15) / 3)
    assert stats.calibration_error([1.0, 0.0], [1, 0]) == 0


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator, rounds = np.random.default_rng(0), 400
    hits = dict.fromkeys(("t", "wilson", "bootstrap", "jackknife"), 0)
    for _ in range(rounds):
        values = generator.normal(1.0, 2.0, 30)
        right = generator.random(30) < 0.9
        found = {
            "t": (stats.t_interval(values, 0.9), 1.0),
            "wilson": (stats.wilson(int(right.sum()), 30, 0.9), 0.9),
            "bootstrap": (stats.paired_bootstrap(0 * values, values, 0.9, 500, generator)[0], 1.0),
            "jackknife": (stats.jackknife(lambda total: total / 30, values[:, None], 0.9), 1.0),
        }
        for name, (interval, truth) in found.items():
            hits[name] += bool(interval.low <= truth <= interval.high)
    for name, count in hits.items():
        assert 0.85 < count / rounds < 0.95, name


def test_only_clusters_cover_where_units_depend_on_each_other():
    generator, rounds, hits = np.random.default_rng(1), 300, [0, 0]
    clusters = np.repeat(np.arange(30), 8).tolist()
    for _ in range(rounds):
        values = np.repeat(generator.normal(0, 1, 30), 8) + generator.normal(0, 0.5, 240)
        for place, kind in enumerate((None, clusters)):
            found, _ = stats.paired_bootstrap(np.zeros(240), values, 0.9, 300, generator, kind)
            hits[place] += found.low <= 0 <= found.high
    assert hits[0] / rounds < 0.6 and 0.83 < hits[1] / rounds < 0.95


def test_naming_it_loads_neither_numpy_nor_scipy():
    loaded = "import sys, lmlab.stats; print('numpy.linalg' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
