"""The recommended estimator, single steps, the next run, and what else is computed from a fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_laws import CURVE, LAW, MULTIPLES, SIZES, true_accuracy, true_loss

from lmlab.errors import UserError
from lmlab.methods.ladder import (
    AccuracyLaw,
    LossLaw,
    RunTable,
    TaskRegistry,
    TwoStep,
    TwoStepSettings,
    bootstrap,
    compare,
    compute_optimal,
    fit_chain,
    logs,
    next_runs,
    preset,
    splits,
    target_values,
)
from lmlab.methods.ladder.analysis.ablate import ablate
from lmlab.methods.ladder.analysis.variance import seed_noise
from lmlab.methods.ladder.fitting.calibration import Calibration
from lmlab.methods.ladder.fitting.fit import fit_first_step, fit_second_step
from lmlab.methods.ladder.fitting.intervals import at_chance
from lmlab.methods.ladder.fitting.laws import value_and_gradient
from lmlab.methods.ladder.presenting.cards import cards
from lmlab.methods.ladder.presenting.predictions import line_sentences
from lmlab.stats import normal_quantile


def _losses(forecaster):
    return forecaster.calibration.losses.values()


@pytest.mark.slow
def test_the_recommended_estimator_beats_the_papers_at_7b_with_intervals_that_hold(published, main_tasks):
    target = published["7B-4T"]
    forecaster = TwoStep("recommended").fit(published, main_tasks)
    predictions = forecaster.predict_all(target.n, target.final_tokens, 0.9, target.flops_per_token)
    actual = np.array([target_values(target, task, TwoStepSettings())[1] for task in main_tasks])
    errors = 100 * np.abs([each.accuracy for each in predictions] - actual)
    assert errors.mean() == pytest.approx(1.98, abs=0.03)
    assert sum(each.lo <= value <= each.hi for each, value in zip(predictions, actual, strict=True)) >= 6
    assert np.mean([100 * (each.hi - each.lo) for each in predictions]) < 14
    for each in (forecaster.calibration, *_losses(forecaster)):
        shares = list(each.coverage(0.9).values())
        # of 25 losses a split may hold one alone, which is inside or outside by how a processor rounds
        slack = 0.05 if len(each.scores) > 100 else 1 / len(shares)
        assert abs(np.mean(shares) - 0.9) <= slack
    losses = np.array([target_values(target, task, TwoStepSettings())[0] for task in main_tasks])
    inside = [each.loss_lo <= value <= each.loss_hi for each, value in zip(predictions, losses, strict=True)]
    assert sum(inside) >= 6 and {each.loss_unit for each in predictions} == {"bits per byte"}
    # The target has 75 times the compute of the largest run, the farthest backtest 14 times that of its own.
    assert all(each.diagnostics["beyond"] == pytest.approx(1.66, abs=0.03) for each in predictions)
    assert 0.85 <= np.mean(list(forecaster.calibration.coverage(0.9).values())) <= 0.95
    for each in predictions:
        assert each.calibrated
        assert sum(each.parts.values()) == pytest.approx(1)


def test_columns_that_are_missing_change_the_recommended_estimator_with_a_notice(published, main_tasks, capsys):
    from lmlab.methods.ladder.fitting.forecast import available

    bare = RunTable(
        tuple(
            replace(run, metrics={k: v for k, v in run.metrics.items() if "c4_en" not in k and "soft" not in k})
            for run in published
        )
    )
    settings = available(preset("recommended"), bare, main_tasks)
    assert [(member.x, member.law) for member in settings.members] == [
        ("bpb", "tied"),
        ("validation", "coupled"),
        ("bpb", "direct"),
    ]
    assert len(available(preset("recommended"), published, main_tasks).members) == 3
    nothing = RunTable(
        tuple(replace(run, metrics={k: v for k, v in run.metrics.items() if "CrossEntropy" not in k}) for run in bare)
    )
    assert [each.law for each in available(preset("recommended"), nothing, main_tasks).members] == ["tied", "direct"]
    assert "it goes on with" in capsys.readouterr().err
    # Six parameters are too many for the coupled law of a few runs, and the line is one of two chains then.
    few = RunTable(published.runs[:11])
    assert [each.law for each in available(preset("recommended"), few, main_tasks).members] == ["tied", "line"]
    own = preset("recommended").model_copy(update={"small": ()})
    assert [each.law for each in available(own, few, main_tasks).members][1] == "tied"


def test_on_a_small_ladder_the_line_weighs_as_much_as_the_law(published, main_tasks):
    """Three sizes at three lengths: the forecast's logit is the mean of what the two say, each fitted alone."""
    table = RunTable(tuple(run for run in published.ladder if run.n < 1e9 and run.multiple in (1, 2, 5)))
    tasks = main_tasks[:2]
    found = TwoStep("recommended", 8).fit(table, tasks, calibrated=False).predict_all(1.28e9, 2.56e11)
    law, line = (
        TwoStep(member, 0).fit(table, tasks, calibrated=False).predict_all(1.28e9, 2.56e11)
        for member in preset("recommended").small
    )
    for mean, one, two in zip(found, law, line, strict=True):
        logits = [np.log(each.accuracy / (1 - each.accuracy)) for each in (mean, one, two)]
        assert logits[0] == pytest.approx((logits[1] + logits[2]) / 2)


def test_a_curve_between_chance_and_one_finds_its_two_parameters_at_any_chance():
    loss = np.linspace(0.4, 2.0, 30)[None].repeat(2, 0)
    chance = np.array([0.2, 0.5])
    accuracy = chance[:, None] + (1 - chance[:, None]) / (1 + np.exp(5 * (loss - 0.9)))
    found = fit_second_step("logistic", loss, accuracy, chance, anchor=False).parameters_BP
    assert found[:, 1:3] == pytest.approx(np.array([[0.9, 5.0]] * 2), rel=0.02)
    assert found[:, 0] == pytest.approx(chance - 1, abs=2e-3) and found[:, 3] == pytest.approx(1, abs=2e-3)


def test_a_line_is_fitted_by_what_runs_know(published, main_tasks):
    """With binomial weights a run with nearly no right answers does not rule where the line goes."""
    task = main_tasks[1]
    (key,) = task.accuracy_columns("rc")
    table = published.ladder.where(max_multiple=5, min_multiple=1)
    least = min(table.ladder, key=lambda run: run.flops)
    unlucky = replace(least, metrics=dict(least.metrics) | {key: np.full(len(least), 0.001)})
    spoiled = replace(table, runs=(unlucky, *(run for run in table if run is not least)))
    x_3Q = logs(6.9e9, 3.9e12, None)[:, None]

    def moved(weighting):
        settings = TwoStepSettings(law="line", delta=None, weighting=weighting, runs="all")
        said = [fit_chain(each, [task], settings).accuracy(x_3Q).item() for each in (table, spoiled)]
        return abs(said[1] - said[0])

    assert moved("binomial") < 0.6 * moved("checkpoints")


def _cut(table: RunTable, lengths) -> RunTable:
    """Runs that end where `lengths` of their name says, in tokens."""
    runs = []
    for run in table:
        for tokens in lengths(run.n):
            scale = tokens / run.final_tokens
            runs.append(replace(run, name=f"{run.n:.2g}-{tokens:.3g}", tokens=run.tokens * scale))
    return RunTable(tuple(runs))


def test_a_ladder_that_is_planned_by_tokens_is_split_by_tokens_and_by_compute(synthetic):
    """Each of its runs has a multiple of 20 N of its own, of which no two make a length."""
    table, _ = synthetic(1, multiples=(1.0,))
    by_tokens = splits(_cut(table, lambda n: (1e9, 2e9, 4e9)))
    names = [each.name for each in by_tokens]
    assert "2G tokens to longer" in names or "2B tokens to longer" in names
    cheap = [each for each in by_tokens if each.name.startswith("C <=")]
    assert cheap and not any("xC" in name for name in names)
    whole = {run.name: run.flops for run in _cut(table, lambda n: (1e9, 2e9, 4e9))}
    for each in cheap:
        assert max(whole[name] for name in each.fitted) < min(whole[name] for name in each.predicted)
        assert len(each.fitted) + len(each.predicted) == len(whole)
    table, tasks = _cut(table, lambda n: (1e9, 2e9, 4e9)), synthetic(1)[1]
    parts = [each.name for each in ablate(table, tasks, preset("paper"), table.runs[-1])]
    assert any(name.startswith("D <= 2") for name in parts) and not any("xC" in name for name in parts)
    table, _ = synthetic(1, multiples=(1.0,))
    # Half of the runs are fitted whatever digit their cost is rounded at, and no two splits have one name.
    for first in np.geomspace(1e9, 2e9, 40):
        cheap = [each for each in splits(_cut(table, lambda n, d=first: (d, 2 * d, 4 * d))) if "C <=" in each.name]
        assert [len(each.fitted) for each in cheap] == [len(whole) // 2, len(whole) * 2 // 3]
        assert len({each.name for each in cheap}) == 2
    # By multiples nothing changes, and lengths that make no grid are told apart by compute and size alone.
    assert not any(each.name.startswith("C <=") for each in splits(_cut(table, lambda n: (20 * n, 40 * n, 100 * n))))
    odd = splits(_cut(table, lambda n: (17 * n * (n / 1e8) ** 0.3, 1e9 * (n / 3e8) ** 0.5, 71 * n**0.9)))
    assert odd and not any("longer" in each.name for each in odd)


def test_no_run_shorter_than_the_ladders_shortest_is_advised(synthetic):
    """Of a ladder planned by tokens the multiples of its largest size would be runs of nearly no tokens at its
    smallest: for 1.5 % of the cost one promised three quarters of the squared error.
    """
    table, tasks = synthetic(1, noise=0.01, sizes=SIZES[:3], multiples=(1.0,), checkpoints=4)
    table = _cut(table, lambda n: (1e9, 2e9, 4e9))
    ensemble = TwoStep("recommended", 40).fit(table, tasks, calibrated=False).ensemble
    found = next_runs(ensemble, 4e9, 1.6e10, truths=16)
    assert found and min(each.d for each in found) >= 0.94e9
    assert {float(f"{each.d:.1g}") for each in found} <= {1e9, 2e9, 4e9, 8e9}


def test_what_is_not_known_of_a_curve_is_no_noise_of_further_runs(synthetic):
    """Runs at chance were simulated with half a logit of noise: some of their refits went to certainty, and a promise
    of -25 % had a standard error of 24 %.
    """
    table, tasks = synthetic(1, noise=0.003, checkpoints=10)
    runs = []
    for run in table:
        near = 1 - 0.75 / (1 + np.exp(-14 * (run.metrics["loss0"] - 0.65)))
        runs.append(replace(run, metrics=run.metrics | {"acc0": near}))
    settings = TwoStepSettings(law="tied", delta=None, runs="all")
    ensemble = TwoStep(settings, 64).fit(RunTable(tuple(runs)), tasks, calibrated=False).ensemble
    assert at_chance(ensemble.chains[0]).all() and ensemble.beside_curve_T == pytest.approx(0.5)
    assert ensemble.curve_T.max() < 0.1
    for each in next_runs(ensemble, 7e9, 4e12, sizes=[2.56e9, 1.28e9], multiples=[2.0, 20.0]):
        assert each.error < 0.06
        assert -0.1 < each.gain < 1


def test_losses_of_the_c4_preset_are_held_as_promised(published, main_tasks):
    """One quantity for all tasks counts once, and the noise of six runs under a law of five parameters is a guess."""
    forecaster = TwoStep("c4", 60).fit(published, main_tasks)
    (losses,) = _losses(forecaster)
    assert len(losses.scores) < len(forecaster.calibration.scores) / 2
    assert 0.85 <= np.mean(list(losses.coverage(0.9).values())) <= 0.95


def test_all_runs_are_used_and_what_is_left_out_is_known(published, main_tasks):
    paper = fit_chain(published, main_tasks, TwoStepSettings()).points
    points = fit_chain(published, main_tasks, TwoStepSettings(runs="all", short_weight=0.0)).points
    assert len(paper.names) == 16 and len(points.names) == 20 and len(points.members) == 16
    assert sorted(points.repeats_R) == [1.0] * 12 + [2.0] * 4
    assert len(fit_chain(published, main_tasks, TwoStepSettings(runs="all")).points.names) == 24
    # The mean of two runs is what is fitted, whichever comes first.
    turned = RunTable(tuple(reversed(published.runs)))
    again = fit_chain(turned, main_tasks, TwoStepSettings(runs="all", short_weight=0.0)).points
    assert np.sort(again.y_TR, axis=1) == pytest.approx(np.sort(points.y_TR, axis=1))


def test_splits_of_a_benchmark_are_fitted_together_and_moved_to_the_one_that_is_predicted(published):
    task = TaskRegistry.builtin()["arc_easy_test_5shot"]
    whole = task.pooled(published.runs[0].metrics)
    assert whole.n_instances == 2_376 + 570 and sum(whole.shares) == pytest.approx(1)
    assert whole.shares[0] == pytest.approx(2_376 / 2_946)
    own = fit_chain(published, [task], TwoStepSettings(runs="all", short_weight=0.0))
    pooled = fit_chain(published, [task], TwoStepSettings(runs="all", short_weight=0.0, pool=True))
    x = own.points.x_3R
    # At the ladder itself both give the test split's accuracy, though the validation questions are easier or harder.
    mean = [chain.accuracy(x)[0, 0].mean() for chain in (own, pooled)]
    assert mean[1] == pytest.approx(mean[0], abs=2e-3)
    assert abs(pooled.points.offset_T[0]) > 1e-3
    assert pooled.points.accuracy_TR == pytest.approx(own.points.accuracy_TR)


def test_the_direct_law_is_recovered(published):
    x = fit_chain(published, [TaskRegistry.builtin()["piqa_val_5shot"]], TwoStepSettings()).points.x_3R
    true = np.array([[4.0, 5.0, 0.25, 0.3, 0.5]])
    accuracy, gradient = value_and_gradient("direct", true, x)
    found = fit_first_step("direct", x, accuracy, delta=None, chance_B=np.array([0.5]))
    assert found.parameters_BP[0] == pytest.approx(true[0], rel=1e-3) and found.converged_B.all()
    for place in range(4):
        step = np.zeros((1, 5))
        step[0, place] = 1e-6
        slope = (
            value_and_gradient("direct", true + step, x)[0] - value_and_gradient("direct", true - step, x)[0]
        ) / 2e-6
        assert slope[0] == pytest.approx(gradient[0, :, place], rel=1e-5)
    assert (value_and_gradient("direct", true, x + 30)[0] <= 1).all()


def test_a_search_that_cannot_move_has_not_converged(published):
    points = fit_chain(published, [TaskRegistry.builtin()["piqa_val_5shot"]], TwoStepSettings()).points
    broken = points.y_TR.copy()
    broken[0, 3] = np.nan
    assert not fit_first_step("nd", points.x_3R, broken, delta=None).converged_B.any()
    there = fit_first_step("nd", points.x_3R, points.y_TR, delta=None)
    again = fit_first_step("nd", points.x_3R, points.y_TR, delta=None, starts=there.parameters_BP[:, None])
    assert again.converged_B.all()


def test_each_step_alone_is_a_function_of_arrays():
    rng = np.random.default_rng(0)
    n, d = rng.uniform(1e8, 1e9, 16), rng.uniform(2e9, 2e11, 16)
    law = LossLaw("nd").fit(n, d, true_loss(n, d))
    assert list(law.parameters.values()) == pytest.approx(LAW, rel=1e-3)
    assert law.error < 1e-4
    assert law.predict(7e9, 4e12)[0] == pytest.approx(true_loss(7e9, 4e12), rel=1e-5)
    losses = np.linspace(0.5, 1.4, 50)
    curve = AccuracyLaw("sigmoid").fit(losses, true_accuracy(losses))
    assert list(curve.parameters.values()) == pytest.approx(CURVE, rel=1e-3)
    assert curve.predict([0.6])[0] == pytest.approx(true_accuracy(0.6), abs=1e-5)
    with pytest.raises(UserError, match="needs 5 points"):
        LossLaw("nd").fit(n[:4], d[:4], true_loss(n[:4], d[:4]))
    with pytest.raises(UserError, match="has not been fitted"):
        LossLaw("nd").predict(1e9, 1e11)


def test_the_best_spending_of_a_budget_is_that_of_the_closed_form():
    """Hoffmann et al. 2022, equation 4: N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha +
    beta)).
    """
    parameters = dict(zip(("log_A", "log_B", "alpha", "beta", "E"), LAW, strict=True))
    budget = 1e22
    a, b = LAW[2], LAW[3]
    g = (a * np.exp(LAW[0]) / (b * np.exp(LAW[1]))) ** (1 / (a + b))
    n, d = compute_optimal(parameters, budget)
    assert n == pytest.approx(g * (budget / 6) ** (b / (a + b)), rel=0.01)
    assert 6 * n * d == pytest.approx(budget, rel=1e-9)
    smaller, _ = compute_optimal(parameters, budget, inference_tokens=1e12)
    assert smaller < n


def test_a_further_run_is_judged_by_the_estimator_itself(synthetic):
    table, tasks = synthetic(2, 0.003)
    forecaster = TwoStep(TwoStepSettings(delta=None), 64).fit(table, tasks, calibrated=False)
    spent = sum(run.flops for run in table)
    found = next_runs(forecaster.ensemble, 7e9, 4e12, sizes=[1.9e8, 2.6e9], multiples=[1, 20], ladder_flops=spent)
    gains = {(each.n, each.multiple): each for each in found}
    assert gains[2.6e9, 20].gain > gains[2.6e9, 1].gain and gains[2.6e9, 20].worthwhile
    # A repeat of the smallest run says little of a model of 7B, though it costs nothing.
    assert gains[2.6e9, 20].gain > gains[1.9e8, 1].gain + 2 * gains[1.9e8, 1].error
    assert gains[2.6e9, 20].share == pytest.approx(6 * 20 * 20 * 2.6e9**2 / spent, rel=0.01)
    worthwhile = [each.gain / each.flops for each in found if each.worthwhile]
    assert worthwhile == sorted(worthwhile, reverse=True)
    with pytest.raises(UserError, match="Without replicates"):
        next_runs(TwoStep("paper", 0).fit(table, tasks, calibrated=False).ensemble, 7e9, 4e12)


def test_a_mean_over_tasks_is_as_uncertain_as_tasks_that_go_together(synthetic):
    table, tasks = synthetic(2, 0.003)
    other, _ = synthetic(2, 0.003, seed=5)
    one, two = (TwoStep(TwoStepSettings(delta=None), 64).fit(each, tasks, calibrated=False) for each in (table, other))
    *rows, mean = compare(one, two, 7e9, 4e12)
    reach = [row.hi - row.difference for row in rows]
    assert np.sqrt(np.square(reach).sum()) / len(rows) * 0.8 < mean.hi - mean.difference <= np.mean(reach) * 1.0001


def test_one_size_says_nothing_of_a_larger_model(published, main_tasks):
    one = RunTable(tuple(run for run in published.ladder if run.size == "370M"))
    forecaster = TwoStep("flops", 50).fit(one, main_tasks[:2], calibrated=False)
    near = forecaster.predict_all(published["370M-10xC"].n, 7.4e10)
    far = forecaster.predict_all(7e9, 7.4e10 * 5)
    for close, away in zip(near, far, strict=True):
        assert away.hi - away.lo > 1.8 * (close.hi - close.lo)
        assert any("do not tell what a larger model gains" in flag for flag in away.diagnostics["flags"])


def test_replicates_spread_around_the_point(synthetic):
    table, tasks = synthetic(1, 0.003)
    values = bootstrap(table, tasks[0], preset("paper"), 3e9, 3e11, 60)
    assert values.shape == (60,)
    assert abs(np.median(values) - true_accuracy(true_loss(3e9, 3e11))) < 0.02
    assert 0 < values.std() < 0.03


def test_noise_between_repeated_runs_is_larger_than_between_checkpoints(published, main_tasks):
    noise = seed_noise(published, main_tasks)
    loss, accuracy = noise["csqa_val_5shot"]
    assert 0.005 < loss < 0.031
    assert 0.001 < accuracy < 0.018
    assert seed_noise(published.paper, main_tasks) is None


def test_the_card_of_a_benchmark_tells_its_noise_and_what_to_do(published, main_tasks):
    found = {
        each.task: each
        for each in cards(TwoStep(TwoStepSettings(delta=1e-2), 0).fit(published, main_tasks, calibrated=False))
    }
    assert found["HellaSwag"].signal > 30
    assert found["OpenBookQA"].question_noise == pytest.approx(2.2, abs=0.1)
    assert found["HellaSwag"].advice == "predictable"


def test_the_noise_of_tasks_of_200_questions_is_told(published):
    from lmlab.methods.ladder import TaskRegistry

    task = TaskRegistry.builtin()["openbookqa_test_5shot"].model_copy(update={"n_instances": 20})
    flat = RunTable(
        tuple(
            replace(run, metrics={**run.metrics, task.accuracy_keys[0]: 0.35 + 0 * run.tokens})
            for run in published.ladder
        )
    )
    (card,) = cards(TwoStep(TwoStepSettings(delta=1e-2), 0).fit(flat, task, calibrated=False))
    assert "add questions" in card.advice


def test_the_probability_of_the_right_answer_is_forecast_by_its_logarithm(published, main_tasks):
    target = published["7B-4T"]
    forecaster = TwoStep("soft", 40).fit(published, main_tasks, calibrated=False)
    predictions = forecaster.predict_all(target.n, target.final_tokens, 0.9, target.flops_per_token)
    member = forecaster.ensemble.settings.members[0]
    actual = np.array([target_values(target, task, member)[1] for task in main_tasks])
    # The figures of the ladder itself differ from chance by one to ten points.
    assert 100 * np.abs([each.accuracy for each in predictions] - actual).mean() < 1.0
    # The C4 loss leads to another figure, by up to three points, and fits the runs as well: the interval says so.
    assert [each.settings.x for each in forecaster.ensemble.forms] == ["taskce", "taskce", "c4"]
    assert {each.settings.variant for each in forecaster.ensemble.forms} == {"soft"}
    assert all(each.lo < value < each.hi for each, value in zip(predictions, actual, strict=True))
    assert np.mean([100 * (each.hi - each.lo) for each in predictions]) < 12
    assert {each.loss_unit for each in predictions} == {"nats a question"}
    # A model that is always sure of the right answer has 1 and 0.
    assert forecaster.ensemble.chains[0].accuracy_of(np.zeros((1, len(main_tasks), 1)))[0] == pytest.approx(1, abs=0.02)


def test_answers_by_letter_are_forecast_from_a_large_runs_curve(published, folder):
    from lmlab.methods.ladder.tables.csv_runs import read_csv_run

    large = read_csv_run(folder / "runs" / "peteish7_eval_full.csv", 6_887_575_552, 49_412_071_424)
    table = replace(published, second=RunTable((large,)))
    task = TaskRegistry.builtin()["hellaswag_val_5shot"]
    target = published["7B-4T"]
    forecaster = TwoStep(TwoStepSettings(accuracy_law="mc", delta=None), 40).fit(table, task, calibrated=False)
    found = forecaster.predict(target.n, target.final_tokens, 0.9, flops_per_token=target.flops_per_token)
    # The line through the small runs is one of full answers: it is no baseline here.
    assert found.diagnostics["line"] is None and line_sentences(forecaster, [found], target) == []
    actual = target.final_value(target.accuracy(task, "mc"), 5)
    assert found.lo < actual < found.hi and found.hi - found.lo < 0.25


def test_widths_follow_backtests_half_the_way_and_farther_where_the_splits_agree():
    """By hand: five splits that all ask for three times the normal quantile are believed, one of five is not."""
    normal = normal_quantile(0.9)

    def factor(*asked):
        names = tuple(f"split {number}" for number in range(len(asked)))
        return Calibration(normal * np.array(asked), names, names, 1.0).factor(0.9) / normal

    assert factor(3, 3, 3, 3, 3) == pytest.approx(3)
    assert factor(0.25, 0.25, 0.25, 0.25, 0.25) == pytest.approx(0.5)
    # Leaving out the one leaves a factor of 1 and an error of (4 / 5) ln 3 against a distance of ln 3.
    assert factor(1, 1, 1, 1, 3) == pytest.approx(3 ** (1 / (1 + 0.8**2)))
    assert factor(3, 3) == pytest.approx(np.sqrt(3))


def test_parts_of_a_ladder_that_leave_no_residuals_widen_no_loss(synthetic):
    """Four runs under a law of four parameters are fitted exactly, and any error is infinitely many times their noise:
    a loss of 1.6 had an interval from 0.001.
    """
    table, tasks = synthetic(1, noise=0.003, sizes=SIZES[:3], multiples=(1.0,), checkpoints=3)
    table = _cut(table, lambda n: (1e9, 2e9, 4e9))
    assert any(len(each.fitted) == 4 for each in splits(table))
    (found,) = TwoStep("recommended", 40).fit(table, tasks).predict_all(3e9, 1.6e10)
    assert 0.7 < found.loss_lo / found.loss < 1 < found.loss_hi / found.loss < 1.4


@pytest.mark.parametrize(("estimator", "sizes", "lengths"), [("recommended", 2, 2), ("paper", 3, 2)])
def test_runs_that_a_law_goes_through_exactly_do_not_tell_that_it_is_right(synthetic, estimator, sizes, lengths):
    """Without residuals there was no noise, and no other form of the law fitted as well: losses had intervals of
    0.04 %.
    """
    for seed in range(5):
        table, tasks = synthetic(
            1, noise=0.003, sizes=SIZES[:sizes], multiples=MULTIPLES[:lengths], checkpoints=10, seed=seed
        )
        runs = table.runs if estimator == "recommended" else table.runs[:5]
        (found,) = TwoStep(estimator, 40).fit(RunTable(runs), tasks).predict_all(7e9, 4e12)
        assert found.loss_lo < true_loss(7e9, 4e12) < found.loss_hi
        assert found.loss_hi / found.loss_lo > 1.05
