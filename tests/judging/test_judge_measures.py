"""Estimates from few labels, intervals for one answer, length and order, and the validation of a judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, f1_score

from lmlab.errors import UserError
from lmlab.judging import (
    at_equal_length,
    both_orders,
    draw_labels,
    estimate_mean,
    fit_conformal,
    length_controlled,
    macro_f1,
    rogan_gladen,
    validate_judge,
)
from lmlab.judging.measures.consistency import self_consistency
from lmlab.judging.measures.own_family import of_family


def drawn(rng: np.random.Generator, n: int, corr: float, of_chapter: float, N: int = 834, chapters: int = 202):
    """People's grades of n of N items, a biased judge's of all, and chapters; the true mean is 1.8."""
    chapter = rng.integers(0, chapters, N)
    z = rng.normal(0, math.sqrt(of_chapter), chapters)[chapter] + rng.normal(0, math.sqrt(1 - of_chapter), N)
    judge = 2.15 + 0.8 * (corr * z + math.sqrt(1 - corr**2) * rng.normal(0, 1, N))
    people = np.full(N, np.nan)
    known = draw_labels(N, n, int(rng.integers(1 << 31)))
    people[known] = 1.8 + 0.8 * z[known]
    return people, judge, chapter.tolist()


@pytest.mark.parametrize(("n", "corr", "of_chapter"), [(15, 0.0, 0.2), (15, 0.9, 0.0), (60, 0.6, 0.2), (120, 0.3, 0.2)])
def test_intervals_of_estimates_hold_and_are_never_wider_than_those_of_people(
    n: int, corr: float, of_chapter: float
) -> None:
    """A fast part of what benchmarks/tutor.py does 2,000 times for each setting."""
    rng = np.random.default_rng(n)
    held, ratios = 0, []
    for _ in range(250):
        found = estimate_mean(*drawn(rng, n, corr, of_chapter))
        held += found.mean.low <= 1.8 <= found.mean.high
        ratios.append(found.mean.half_width / found.people.half_width)
        assert found.judge > 2  # the judge alone is off
    assert 0.90 <= held / 250 <= 0.99 and max(ratios) <= 1
    if corr == 0.6:
        assert np.mean(ratios) < 0.85


def test_without_clusters_the_estimate_is_that_of_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    people, judge, _ = drawn(rng, 60, 0.7, 0.0)
    known = np.isfinite(people)
    y, f, rest = people[known], judge[known], judge[~known]
    n, m = len(y), len(rest)
    weight = np.cov(y, f)[0, 1] / (f.var(ddof=1) + (n / m) * rest.var(ddof=1))
    found = estimate_mean(people, judge)
    assert found.weight == pytest.approx(weight, rel=1e-9)
    assert found.mean.value == pytest.approx(y.mean() + weight * (rest.mean() - f.mean()))
    variance = (y - weight * f).var(ddof=1) / n + weight**2 * rest.var(ddof=1) / m
    half = scipy_stats.t.ppf(0.975, n - 1) * math.sqrt(variance * (n - 1) / (n - 2))
    assert found.mean.half_width == pytest.approx(half)
    alone = scipy_stats.t.interval(0.95, n - 1, y.mean(), scipy_stats.sem(y))
    assert found.people.bounds == pytest.approx(alone)


def test_chapters_widen_the_interval_and_too_few_are_refused() -> None:
    rng = np.random.default_rng(1)
    chapters = np.repeat(np.arange(10), 12).tolist()
    people = 1.5 + np.repeat(rng.normal(0, 0.6, 10), 12) + rng.normal(0, 0.2, 120)
    judge = rng.normal(0, 1, 120)
    alone, clustered = (estimate_mean(people, judge, each).people.half_width for each in (None, chapters))
    assert clustered > 2 * alone
    people[24:] = np.nan
    with pytest.raises(UserError, match="2 independent clusters"):
        estimate_mean(people, judge, chapters)
    judge[0] = np.nan
    with pytest.raises(UserError, match="no grade for 1 of 120"):
        estimate_mean(people, judge)


def test_a_judge_that_says_nothing_leaves_people_alone() -> None:
    people = np.array([1.0, 2.0, 3.0, 2.0, np.nan, np.nan])
    found = estimate_mean(people, np.full(6, 2.0))
    assert found.weight == 0 and found.mean == found.people and found.mean.value == 2


def test_labels_are_drawn_at_random_and_by_their_shares() -> None:
    assert draw_labels(100, 10, 1) == draw_labels(100, 10, 1) != draw_labels(100, 10, 2)
    groups = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    found = [groups[each] for each in draw_labels(100, 20, 0, groups)]
    assert (found.count("a"), found.count("b"), found.count("c")) == (12, 6, 2)
    with pytest.raises(UserError):
        draw_labels(5, 6)


def test_shares_are_corrected_for_the_judges_errors() -> None:
    found = rogan_gladen(400, 1000, (90, 100), (80, 100))
    p, q0, q1 = 0.4, 0.9, 0.8
    value = (p + q0 - 1) / (q0 + q1 - 1)
    variance = p * (1 - p) / 1000 + (1 - value) ** 2 * q0 * (1 - q0) / 100 + value**2 * q1 * (1 - q1) / 100
    assert found.value == pytest.approx(value) and found.standard_error == pytest.approx(math.sqrt(variance) / 0.7)
    with pytest.raises(UserError, match="nearly nothing"):
        rogan_gladen(400, 1000, (55, 100), (50, 100))


def test_conformal_intervals_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = wide = 0
    for _ in range(2000):
        people = np.clip(np.round(2 * rng.normal(1.8, 0.8, 61)) / 2, 0, 3)
        judge = np.clip(people + 0.3 + rng.normal(0, 0.5, 61), 0, 3)
        fitted = fit_conformal(judge[:60], people[:60], 0.9)
        found = fitted.interval(judge[60])
        held += found.low <= people[60] <= found.high
        grid = fitted.on_grid(judge[60])
        wide += grid.low <= people[60] <= grid.high
        assert 0 <= grid.low <= found.low <= found.high <= grid.high <= 3 and (2 * grid.low) % 1 == 0
    assert abs(held / 2000 - 0.9) < 0.02 and wide >= held


def test_with_few_items_a_conformal_interval_is_the_whole_scale() -> None:
    judge, people = np.linspace(0, 3, 19), np.linspace(0, 3, 19) + 0.1
    assert math.isinf(fit_conformal(judge[:18], people[:18]).radius)
    assert fit_conformal(judge[:18], people[:18]).interval(1.0).bounds == (0.0, 3.0)
    assert fit_conformal(judge, people).radius == pytest.approx(0.1)


def test_a_liking_for_length_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    long, short = rng.integers(100, 900, 3000), rng.integers(100, 500, 3000)
    gap = np.tanh((long - short) / (long - short).std())
    wins = rng.random(3000) < 1 / (1 + np.exp(-(-0.4 + 1.5 * gap)))
    found = length_controlled(wins, long, short, resamples=100)
    oracle = LogisticRegression(C=1e6).fit(gap[:, None], wins)
    assert found.slope == pytest.approx(oracle.coef_[0][0], rel=1e-3)
    assert found.controlled is not None and found.controlled.value == pytest.approx(
        1 / (1 + math.exp(-oracle.intercept_[0])), abs=1e-3
    )
    assert found.controlled.high < 0.5 < found.raw.low  # the raw share calls the wrong one the better
    easy = length_controlled([1, 1, 1], [5, 6, 9], [1, 2, 3], resamples=20)  # length explains everything
    assert easy.controlled is not None and 0 < easy.controlled.value < 1
    assert length_controlled([1, 0], [9, 8], [4, 3], resamples=20).controlled is None  # length, or the system?
    same = length_controlled([1, 0, 1, 1], [4, 3, 2, 2], [4, 3, 2, 2], resamples=20)
    assert same.controlled is not None and same.controlled.value == pytest.approx(0.75, abs=1e-2)


def test_grades_at_equal_length_are_those_of_a_line() -> None:
    """Longer answers get better grades, the system itself is worse: the raw difference has the wrong sign."""
    rng = np.random.default_rng(0)
    long, short = rng.integers(100, 900, 800), rng.integers(100, 500, 800)
    gap = np.tanh((long - short) / (long - short).std())
    grades = -5 + 20 * gap + rng.normal(0, 10, 800)
    found = at_equal_length(grades, long, short, (np.arange(800) // 4).tolist(), resamples=200)
    oracle = scipy_stats.linregress(gap, grades)
    assert found.controlled is not None and found.controlled.value == pytest.approx(oracle.intercept, abs=1e-9)
    assert found.slope == pytest.approx(oracle.slope, abs=1e-9)
    assert found.controlled.high < 0 < found.raw.low
    assert found.controlled.low < -5 < found.controlled.high
    same = at_equal_length([1.0, 2.0, 6.0], [4, 4, 4], [4, 4, 4], resamples=50)
    assert same.controlled == same.raw and same.raw.value == 3
    assert at_equal_length([1.0, 2.0], [9, 8], [4, 3], resamples=50).controlled is None  # length, or the system?
    with pytest.raises(UserError, match="no comparisons"):
        at_equal_length([], [], [])


def test_both_orders() -> None:
    found = both_orders([0.9, 0.9, 0.2, 0.5], [0.8, 0.1, 0.1, 0.9])
    assert found.wins == (1.0, 0.5, 0.0, 1.0) and found.disagreements == 0.25
    assert found.first_place == pytest.approx(np.mean([0.9, 0.9, 0.2, 0.5, 0.2, 0.9, 0.9, 0.1]))
    with pytest.raises(UserError):
        both_orders([1.0], [])


def table(rng: np.random.Generator, n: int = 200):
    people = rng.integers(0, 7, n) / 2
    judge = np.clip(np.round(2 * (people + 0.3 + rng.normal(0, 0.5, n))) / 2, 0, 3)
    return judge, people


def test_validation_has_the_figures_of_scipy_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    judge, people = table(rng)
    lengths = rng.integers(50, 800, 200)
    found = validate_judge(judge, people, lengths=lengths, resamples=50)
    figures = {name: figure.value for name, figure in found.agreement.figures.items() if figure is not None}
    grid = list(range(7))
    expected = {
        "pearson": scipy_stats.pearsonr(judge, people).statistic,
        "spearman": scipy_stats.spearmanr(judge, people).statistic,
        "kendall": scipy_stats.kendalltau(judge, people).statistic,
        "kappa": cohen_kappa_score((2 * judge).astype(int), (2 * people).astype(int), labels=grid, weights="quadratic"),
        "exact": (judge == people).mean(),
        "within_half": (abs(judge - people) <= 0.5).mean(),
        "bias": (judge - people).mean(),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found.length_effect is not None
    slope = scipy_stats.linregress(np.log(lengths), judge - people).slope
    assert found.length_effect.value == pytest.approx(slope, abs=1e-9)


def test_means_over_samples_are_put_on_the_grid_for_kappa() -> None:
    rng = np.random.default_rng(1)
    judge, people = table(rng)
    found = validate_judge(judge + rng.uniform(-0.2, 0.2, 200), people, resamples=20).agreement.figures
    exact = validate_judge(judge, people, resamples=20).agreement.figures
    assert found["kappa"] is not None and exact["kappa"] is not None and found["kappa"].value == exact["kappa"].value


def test_what_is_not_defined_is_none_with_a_reason() -> None:
    found = validate_judge([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], resamples=20)
    assert found.agreement.figures["spearman"] is None
    assert found.reasons["spearman"] == "the judge gave one grade to all items"
    assert found.passes(min_spearman=0.6) == ["Spearman's correlation is not defined, below 0.6"]


def test_the_gate_groups_systems_and_the_ceiling() -> None:
    rng = np.random.default_rng(2)
    judge, people = table(rng)
    systems = [("weak", "middle", "strong")[int(each)] for each in np.clip(people, 0, 2)]
    second = np.clip(people + rng.choice([-0.5, 0, 0.5], 200), 0, 3)
    found = validate_judge(judge, people, systems=systems, second_person=second, by={"system": systems}, resamples=20)
    assert found.systems == (1.0, 3) and set(found.by["system"]) == {"weak", "middle", "strong"}
    assert found.ceiling is not None and found.ceiling.figures["within_half"].value == 1  # type: ignore[union-attr]
    assert not found.passes(0.6, 0.5) and "bias" in found.passes(0.6, 0.1)[0]


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = ["Yes", "To some extent", "No"]
    people = [labels[each] for each in rng.integers(0, 3, 100)]
    judge = [each if rng.random() < 0.6 else labels[rng.integers(3)] for each in people]
    assert macro_f1(judge, people) == pytest.approx(f1_score(people, judge, average="macro"))
    merged = [["Yes" if each == "To some extent" else each for each in side] for side in (people, judge)]
    assert macro_f1(judge, people, lenient=True) == pytest.approx(f1_score(*merged, average="macro"))
    assert macro_f1([None] * 100, people) == 0 and macro_f1([], []) is None


def kin(rng: np.random.Generator, favor: float, n: int = 600) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """Grades of a judge and of people, chapters, and which answers are of the judge's family; its own are better."""
    own = np.arange(n) % 3 == 0
    people = np.clip(1.5 + 0.5 * own + rng.normal(0, 0.6, n), 0, 3)
    return people + 0.2 + favor * own + rng.normal(0, 0.4, n), people, (np.arange(n) // 6).tolist(), own


def test_a_judge_that_favors_its_kin_is_told_from_one_whose_kin_is_better() -> None:
    inside = {0.0: 0, 0.3: 0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for favor in inside:
            judge, people, chapters, own = kin(rng, favor)
            found = validate_judge(judge, people, chapters, own_family=own, resamples=60).own_family
            assert found is not None and found.high - found.low < 0.3
            inside[favor] += found.low < favor < found.high
    assert min(inside.values()) >= 3  # of 5, at 95 %
    judge, people, chapters, own = kin(rng, 0.3)
    one_side = validate_judge(judge, people, chapters, own_family=np.zeros(len(own), bool), resamples=50)
    assert one_side.own_family is None
    with pytest.raises(UserError, match=r"(?s)None of the systems.*a, b"):
        of_family(["a", "b"], ["gpt-*"])
    assert of_family(["GPT-4o", "llama"], ["gpt-*"]).tolist() == [True, False]


def test_consistency_is_that_of_a_one_way_model() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(0, 1.0, (4000, 1)) + rng.normal(0, 0.5, (4000, 3))
    found = self_consistency(table, resamples=50)
    assert found.spread.value == pytest.approx(0.5, rel=0.05)
    assert found.reliability is not None and found.reliability.value == pytest.approx(1 / 1.25, abs=0.02)
    assert found.reliability_of_mean == pytest.approx(3 * 0.8 / (1 + 2 * 0.8), abs=0.02)
    # Shrout and Fleiss (1979), table 2: six targets, four judges; ICC(1, 1) = 0.17 and ICC(1, 4) = 0.44
    published = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    found = self_consistency(published, resamples=50)
    assert found.reliability is not None and found.reliability.value == pytest.approx(0.17, abs=0.005)
    assert found.reliability_of_mean == pytest.approx(0.44, abs=0.005)
    same = self_consistency([[2, 2], [2, 2], [math.nan, 1]], resamples=50)
    assert same.items == 2 and same.equal.value == 1 and same.spread.value == 0 and same.reliability is None
    with pytest.raises(UserError, match="at least two"):
        self_consistency([[1], [2]])
