"""Standard errors and comparisons against closed forms, SciPy and resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lmlab.errors import UserError
from lmlab.evals import bootstrapped, compare_values, mean, pair_rows, ratio


def test_the_error_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(0).normal(size=50)
    assert mean(values).standard_error == pytest.approx(stats.sem(values))
    assert mean([3.0]).standard_error is None


def test_the_error_of_a_ratio_agrees_with_a_bootstrap():
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, 500, 300)
    bits = sizes * generator.normal(1.5, 0.2, 300)
    found = ratio(bits, sizes.tolist())
    drawn = [(lambda i: bits[i].sum() / sizes[i].sum())(generator.integers(0, 300, 300)) for _ in range(2000)]
    assert found.value == pytest.approx(bits.sum() / sizes.sum())
    assert found.standard_error == pytest.approx(np.std(drawn), rel=0.1)


def test_a_bootstrapped_error_of_a_mean_is_the_closed_one():
    values = np.random.default_rng(1).normal(size=200)
    found = bootstrapped(lambda chosen: float(values[chosen].mean()), 200)
    assert found.standard_error == pytest.approx(stats.sem(values), rel=0.1)


def test_mcnemar_is_the_binomial_test_of_disagreements():
    first, second = [1] * 30 + [0] * 10 + [1] * 5 + [0] * 15, [1] * 30 + [0] * 10 + [0] * 5 + [1] * 15
    found = compare_values("accuracy", first, second)
    assert (found.only_first, found.only_second) == (5, 15)
    assert found.p_value == pytest.approx(stats.binomtest(15, 20).pvalue)
    assert found.difference.value == pytest.approx(10 / 60)


def test_equal_models_do_not_differ():
    found = compare_values("accuracy", [1, 0, 1], [1, 0, 1])
    assert (found.difference.value, found.p_value, found.difference.bounds) == (0, 1, (0, 0))


def test_a_paired_bootstrap_agrees_with_the_paired_t_test():
    generator = np.random.default_rng(3)
    first = generator.normal(1.0, 0.5, 200)
    second = first + generator.normal(0.02, 0.15, 200)
    found = compare_values("bits_per_byte", first.tolist(), second.tolist())
    test = stats.ttest_rel(second, first)
    assert found.p_value == pytest.approx(test.pvalue, abs=0.02)
    low, high = test.confidence_interval()
    assert found.difference.bounds == pytest.approx((low, high), abs=0.003)
    assert found.only_first is None


def test_rows_are_paired_by_question_and_skipped_ones_left_out():
    first = [{"id": "a", "gold": 0}, {"id": "b", "gold": 1}, {"id": "c", "gold": 1, "skipped": True}]
    second = [{"id": "b", "gold": 1, "x": 1}, {"id": "c", "gold": 1}, {"id": "d", "gold": 0}]
    assert pair_rows(first, second) == ([first[1]], [second[0]])


def test_other_questions_or_answers_cannot_be_compared():
    with pytest.raises(UserError, match="not answered the same questions"):
        pair_rows([{"id": "a", "gold": 0}], [{"id": "b", "gold": 0}])
    with pytest.raises(UserError, match="Question 'a' is another one"):
        pair_rows([{"id": "a", "gold": 0}], [{"id": "a", "gold": 1}])
