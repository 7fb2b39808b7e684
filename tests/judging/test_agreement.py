"""Agreement with people and calibration: published examples, scikit-learn, SciPy, and planted truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import cohen_kappa_score

from lmlab.errors import UserError
from lmlab.judging import (
    cohen_kappa,
    cross_calibrated,
    fit_calibration,
    grade_agreement,
    krippendorff_alpha,
    label_agreement,
)

N = math.nan
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_alpha_is_the_published_one(level: str, alpha: float) -> None:
    assert krippendorff_alpha(PUBLISHED, level) == pytest.approx(alpha, abs=0.0006)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_is_that_of_scikit_learn(weights: str) -> None:
    generator = np.random.default_rng(0)
    people = generator.integers(0, 4, 200)
    judge = np.clip(people + generator.integers(-1, 2, 200), 0, 3)
    expected = cohen_kappa_score(judge, people, weights=None if weights == "none" else weights)
    assert cohen_kappa(judge, people, weights) == pytest.approx(expected)


def test_the_quadratic_kappa_is_of_the_values_and_not_of_their_places() -> None:
    """On a grid of half points that is not used in full, distances are those of the grades."""
    judge, people = [0.0, 0.5, 3.0, 3.0], [0.0, 1.5, 3.0, 0.5]
    grid = [0, 1, 2, 3, 4, 5, 6]
    halves = [[round(2 * each) for each in grades] for grades in (judge, people)]
    assert cohen_kappa(judge, people, "quadratic") == pytest.approx(
        cohen_kappa_score(*halves, labels=grid, weights="quadratic")
    )


def test_agreement_on_labels() -> None:
    judge, people = ["A", "B", "A", "B", None, "A"], ["A", "B", "B", "B", "A", None]
    found = label_agreement(judge, people)
    assert (found.items, found.missing) == (4, 2)
    accuracy = found.figures["accuracy"]
    assert accuracy is not None and accuracy.value == 0.75 and accuracy.low < 0.75 < accuracy.high
    kappa = found.figures["kappa"]
    assert kappa is not None and kappa.value == pytest.approx(cohen_kappa_score(judge[:4], people[:4]))


def test_agreement_on_grades_has_the_figures_of_scipy() -> None:
    generator = np.random.default_rng(1)
    people = generator.integers(0, 7, 60) / 2
    judge = np.clip(people + 0.35 + generator.normal(0, 0.5, 60), 0, 3)
    people[3] = np.nan
    known = np.isfinite(people)
    found = grade_agreement(judge, people, resamples=200)
    assert (found.items, found.missing) == (59, 1)
    expected = {
        "bias": (judge - people)[known].mean(),
        "pearson": scipy_stats.pearsonr(judge[known], people[known]).statistic,
        "spearman": scipy_stats.spearmanr(judge[known], people[known]).statistic,
        "kendall": scipy_stats.kendalltau(judge[known], people[known]).statistic,
    }
    for name, value in expected.items():
        figure = found.figures[name]
        assert figure is not None and figure.value == pytest.approx(value) and figure.low < value < figure.high


def test_what_is_not_defined_is_none_and_no_number() -> None:
    found = grade_agreement([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], resamples=20)
    assert found.figures["spearman"] is found.figures["pearson"] is found.figures["kendall"] is None
    assert label_agreement(["A", "A"], ["A", "A"], resamples=20).figures["kappa"] is None
    with pytest.raises(UserError, match="no item"):
        label_agreement([None, "A"], ["A", None])
    with pytest.raises(UserError, match="2 items and people 3"):
        grade_agreement([1, 2], [1, 2, 3])


@pytest.mark.parametrize("clusters", [None, ["a"]])
def test_one_item_has_neither_agreement_nor_interval(clusters):
    found = grade_agreement([2.0], [1.0], clusters).figures
    assert found["bias"].value == 1 and math.isnan(found["bias"].low)
    assert all(found[name] is None for name in ("pearson", "spearman", "kendall", "kappa", "alpha"))


def test_items_of_one_cluster_have_no_interval():
    found = grade_agreement([2.0, 1.0, 3.0, 0.0], [1.0, 1.0, 2.5, 0.5], ["a"] * 4).figures
    assert found["spearman"].value > 0.9
    assert all(math.isnan(each.low) and math.isnan(each.high) for each in found.values())


def test_clusters_widen_intervals_where_their_items_are_alike() -> None:
    generator = np.random.default_rng(2)
    shift = np.repeat(generator.normal(0, 0.5, 20), 6)
    people = generator.integers(0, 4, 120).astype(float)
    chapters = np.repeat(np.arange(20), 6).tolist()
    alone, clustered = (
        grade_agreement(people + shift, people, clusters, 300).figures["bias"] for clusters in (None, chapters)
    )
    assert alone is not None and clustered is not None and clustered.half_width > 1.5 * alone.half_width


@pytest.mark.parametrize("kind", ["linear", "isotonic"])
def test_calibration_takes_a_planted_bias_away_from_items_that_it_has_not_seen(kind: str) -> None:
    generator = np.random.default_rng(3)
    people = generator.uniform(0, 3, 400)
    judge = 0.5 * people + 1.2 + generator.normal(0, 0.2, 400)
    chapters = np.repeat(np.arange(80), 5).tolist()
    assert abs((judge - people).mean()) > 0.3
    calibrated = cross_calibrated(judge, people, kind, chapters)
    assert abs((calibrated - people).mean()) < 0.05
    assert np.abs(calibrated - people).mean() < 0.7 * np.abs(judge - people).mean()


def test_calibrations_are_least_squares() -> None:
    generator = np.random.default_rng(4)
    judge, people = generator.integers(0, 7, 100) / 2, generator.uniform(0, 3, 100)
    line = scipy_stats.linregress(judge, people)
    np.testing.assert_allclose(
        fit_calibration(judge, people)([0.7, 9.0]), line.intercept + line.slope * np.array([0.7, 9])
    )
    steps = fit_calibration(judge, people, "isotonic")
    assert (np.diff(steps(np.linspace(-1, 4, 50))) >= -1e-12).all()
    from sklearn.isotonic import IsotonicRegression

    np.testing.assert_allclose(steps(judge), IsotonicRegression().fit(judge, people).predict(judge))
    with pytest.raises(UserError, match="no line"):
        fit_calibration([1.0, 1.0], [0.0, 2.0])
    with pytest.raises(UserError, match="folds"):
        cross_calibrated([1.0, 2.0], [1.0, 2.0])
