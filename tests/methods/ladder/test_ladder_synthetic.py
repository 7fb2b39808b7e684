"""Recovery of known laws (closed forms), gradients against finite differences, invariances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_laws import LAW, SIZES, true_accuracy, true_loss

from lmlab.methods.ladder import RunTable, TwoStep, TwoStepSettings, fit_chain, logs
from lmlab.methods.ladder.config import EstimatorSettings
from lmlab.methods.ladder.fitting import accuracy as acc
from lmlab.methods.ladder.fitting.fit import ANCHOR_SHARE, fit_first_step, fit_second_step
from lmlab.methods.ladder.fitting.intervals import fit_ensemble
from lmlab.methods.ladder.fitting.laws import FORMS, log_residuals, value_and_gradient

N, D = 6_887_575_552.0, 3_945_065_873_408.0
POINTS = {
    "nd": [3.0, 4.0, 0.2, 0.25, 0.5],
    "coupled": [6.0, 8.0, 0.5, 0.6, 0.5, 0.4],
    "tied": [3.0, 4.0, 0.2, 0.5],
    "flops": [3.0, 0.08, 0.4],
    "single": [2.0, 3.0, 0.2, 0.2, -1.0, -0.7, 0.9],
    "power": [2.0, 2.0, 0.2, 0.2, 0.9],
    "line": [10.0, 0.22],
}


@pytest.mark.parametrize("settings", [TwoStepSettings(), TwoStepSettings(delta=None)], ids=["huber", "least squares"])
def test_all_five_parameters_come_back_from_exact_points(synthetic, settings):
    table, tasks = synthetic()
    chain = fit_chain(table, tasks, settings.model_copy(update={"last": 1}))
    assert chain.first.parameters_BP[0] == pytest.approx(LAW, rel=1e-3)
    assert chain.loss(logs(N, D, None)[:, None])[0, 0, 0] == pytest.approx(true_loss(N, D), rel=1e-5)


def test_runs_that_were_measured_four_times_give_the_laws_too(synthetic):
    """Means over checkpoints are of a run's end, and of what lies near on the curve."""
    table, tasks = synthetic(checkpoints=4)
    chain = fit_chain(table, tasks, TwoStepSettings(delta=None))
    assert chain.first.parameters_BP[0] == pytest.approx(LAW, rel=1e-3)
    loss = true_loss(N, D)
    assert chain.accuracy_of(np.array([[[loss]]]))[0, 0, 0] == pytest.approx(true_accuracy(loss), abs=1e-3)


@pytest.mark.slow
def test_intervals_hold_what_they_promise_on_200_noisy_ladders(synthetic):
    """0.3 % of noise between runs; 90 % intervals of accuracy and of loss hold the truth in 85 to 95 % of the
    ladders.
    """
    table, tasks = synthetic(200, 0.003)
    predictions = TwoStep(TwoStepSettings(delta=None), replicates=40).fit(table, tasks).predict_all(N, D, 0.9)
    truth, accuracy = true_loss(N, D), true_accuracy(true_loss(N, D))
    assert np.median([abs(each.loss / truth - 1) for each in predictions]) < 0.015
    assert 0.85 <= np.mean([each.lo <= accuracy <= each.hi for each in predictions]) <= 0.95
    assert 0.85 <= np.mean([each.loss_lo <= truth <= each.loss_hi for each in predictions]) <= 0.95


def test_the_part_fit_of_a_loss_is_the_variance_of_least_squares(synthetic):
    """Noise that is in the points is counted once: sd = noise sqrt(g' (J'J)^-1 g), by hand."""
    table, tasks = synthetic(1, 0.003, seed=3)
    settings = EstimatorSettings(name="one", members=(TwoStepSettings(law="tied", delta=None),))
    ensemble = fit_ensemble(table, tasks, settings, 400)
    (chain,), x_3Q = ensemble.chains, logs(3e9, 3e11, None)[:, None]

    def gradients(x):
        return log_residuals("tied", chain.first.parameters_BP, x, np.zeros((1, x.shape[1])))[1][0]

    j, (g,) = gradients(chain.points.x_3R), gradients(x_3Q)
    expected = ensemble.noise_MT[0, 0] * np.sqrt(g @ np.linalg.solve(j.T @ j, g))
    found = np.log(ensemble.replicates[0].loss(x_3Q)[:, 0, 0])
    assert found.std() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("form", POINTS)
def test_gradients_of_the_first_step_are_those_of_finite_differences(form):
    p = np.array([POINTS[form]])
    x_3K = np.log([[2e8, 1e9], [4e9, 3e11], [5e18, 1.8e21]])
    _, gradient = value_and_gradient(form, p, x_3K)
    for place in range(len(FORMS[form].names)):
        step = np.zeros_like(p)
        step[0, place] = 1e-6
        difference = (value_and_gradient(form, p + step, x_3K)[0] - value_and_gradient(form, p - step, x_3K)[0]) / 2e-6
        assert gradient[0, :, place] == pytest.approx(difference[0], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("form", ["sigmoid", "log_sigmoid", "mc"])
def test_gradients_of_the_second_step_are_those_of_finite_differences(form):
    """The derivative by x0 has the sign that the published bands have not."""
    p = np.array([[-0.7, 0.8, 5.0, 0.98]])[:, : len(acc.NAMES[form])]
    x = np.array([[0.4, 0.8, 1.3]])
    _, gradient = acc.value_and_gradient(form, p, x)
    for place in range(p.shape[1]):
        step = np.zeros_like(p)
        step[0, place] = 1e-6
        difference = (
            acc.value_and_gradient(form, p + step, x)[0] - acc.value_and_gradient(form, p - step, x)[0]
        ) / 2e-6
        assert gradient[0, :, place] == pytest.approx(difference[0], rel=1e-5, abs=1e-9)
    assert (gradient[0, :, acc.NAMES[form].index("x0")] > 0).all()


def test_how_often_runs_are_measured_moves_no_accuracy_curve():
    """Few points do not give the anchor more weight among them."""
    x = np.linspace(2.4, 1.9, 24)[None]
    y = 0.25 + 0.3 / (1 + np.exp(6 * (x - 1.9)))
    few, many = (
        fit_second_step(
            "sigmoid", np.tile(x, count), np.tile(y, count), np.array([0.25]), anchor_share=ANCHOR_SHARE
        ).parameters_BP
        for count in (1, 25)
    )
    assert few == pytest.approx(many, rel=1e-4)


def test_units_do_not_matter(synthetic):
    table, tasks = synthetic(1, 0.003)
    small = RunTable(tuple(replace(run, n=run.n / 1e9, tokens=run.tokens / 1e9) for run in table))
    settings = TwoStepSettings(delta=None)
    raw, scaled = fit_chain(table, tasks, settings), fit_chain(small, tasks, settings)
    a = raw.accuracy(logs(N, D, None)[:, None])[0, 0, 0]
    b = scaled.accuracy(logs(N / 1e9, D / 1e9, None)[:, None])[0, 0, 0]
    assert b == pytest.approx(a, rel=1e-6)


def test_the_order_of_runs_does_not_matter(synthetic):
    table, tasks = synthetic(1, 0.003)
    x_3Q = logs(N, D, None)[:, None]
    shuffled = RunTable(tuple(table.runs[place] for place in np.random.default_rng(0).permutation(len(table))))
    assert shuffled.digest == table.digest
    a, b = (fit_chain(each, tasks, TwoStepSettings(delta=1e-2)).accuracy(x_3Q)[0, 0, 0] for each in (table, shuffled))
    assert b == pytest.approx(a, rel=1e-6)


def test_large_coefficients_do_not_overflow():
    x_3R = np.log(np.array([[1e3, 1e4, 1e5] * 2, [1e5, 1e6, 1e7, 1e6, 1e7, 1e8], [1.0] * 6]))
    values, _ = value_and_gradient("nd", np.array([[700.0, 700.0, 0.1, 0.1, 1.0]]), x_3R)
    assert np.isfinite(values).all()
    y = 1 + np.exp(30 - 3 * x_3R[0]) + np.exp(20 - 1.5 * x_3R[1])
    fit = fit_first_step("nd", x_3R, y[None], delta=None)
    assert np.isfinite(fit.parameters_BP).all()


def test_the_same_seed_gives_the_same_intervals(synthetic):
    table, tasks = synthetic(2, 0.003)
    estimator = TwoStepSettings(delta=None)
    one, two, other = (
        TwoStep(estimator, 30, seed).fit(table, tasks, calibrated=False).predict_all(N, D) for seed in (0, 0, 1)
    )
    assert one == two
    assert (one[0].lo, one[0].hi) != (other[0].lo, other[0].hi)
    assert one[0].accuracy == other[0].accuracy


def test_runs_that_were_measured_once_are_fitted(synthetic):
    """Leaving out the beginning of a run leaves its end."""
    table, tasks = synthetic(1, checkpoints=1)
    prediction = TwoStep("paper", 0).fit(table, tasks, calibrated=False).predict(3e9, 3e11)
    assert prediction.accuracy == pytest.approx(true_accuracy(true_loss(3e9, 3e11)), abs=0.01)


@pytest.mark.parametrize("law", ["coupled", "tied"])
def test_the_other_laws_of_both_come_back_from_exact_points(law):
    truth = np.array([POINTS[law]])
    n, multiple = (each.ravel() for each in np.meshgrid(SIZES, (1.0, 2.0, 5.0, 10.0)))
    x_3R = np.log([n, 20 * n * multiple, 120 * n**2 * multiple])
    losses = value_and_gradient(law, truth, x_3R)[0]
    found = fit_first_step(law, x_3R, losses, None, None)
    x = np.log([[6.9e9], [3.9e12], [6 * 6.9e9 * 3.9e12]])
    expected = value_and_gradient(law, truth, x)[0]
    assert value_and_gradient(law, found.parameters_BP, x)[0] == pytest.approx(expected, rel=2e-3)
    assert found.converged_B.all()


def test_the_coupled_law_with_the_exponent_1_is_the_law_of_the_paper():
    x_3K = np.log([[2e8, 1e9], [4e9, 3e11], [5e18, 1.8e21]])
    nd = value_and_gradient("nd", np.array([LAW]), x_3K)[0]
    assert value_and_gradient("coupled", np.array([[*LAW, 1.0]]), x_3K)[0] == pytest.approx(nd)


def test_the_line_in_logit_accuracy_is_that_of_numpy(synthetic):
    table, tasks = synthetic()
    chain = fit_chain(table, tasks, TwoStepSettings(law="line", delta=None, last=1))
    log_c = np.log([run.flops for run in table])
    ends = np.array([run.metrics["acc0"][-1] for run in table])
    slope, level = np.polyfit(log_c, np.log(ends / (1 - ends)), 1)
    x = np.log([[6.9e9], [3.9e12], [6 * 6.9e9 * 3.9e12]])
    line = 1 / (1 + np.exp(-(level + slope * x[2])))
    # Residuals are those of log accuracy there and of logits here.
    assert chain.accuracy(x)[0, 0] == pytest.approx(line, abs=0.03)
