"""Several targets side by side, several recipes in their order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_laws import SIZES

from lmlab.errors import UserError
from lmlab.methods.ladder import RunTable, TwoStep, TwoStepSettings, compare, decide, rank
from lmlab.methods.ladder.analysis.decide import draws
from lmlab.methods.ladder.analysis.follow import cut_off, follow, without_run
from lmlab.methods.ladder.analysis.variance import largest_run, signal_between, signal_to_noise, variance
from lmlab.methods.ladder.config import MeanOptions
from lmlab.methods.ladder.fitting.points import logs
from lmlab.methods.ladder.presenting.cards import cards
from lmlab.methods.ladder.presenting.decisions import decision_sentence, difference_rows, weights_of
from lmlab.methods.ladder.presenting.noise import variance_table
from lmlab.methods.ladder.presenting.predictions import prediction_rows, untold_sentences
from lmlab.methods.ladder.rungs.plan import parse_length

_CHAIN = TwoStepSettings(delta=None)


@pytest.fixture(scope="module")
def forecaster(synthetic):
    table, tasks = synthetic(2, 0.003)
    return TwoStep(_CHAIN, 64).fit(table, tasks, calibrated=False)


def _shifted(table: RunTable, loss: float, accuracy: float) -> RunTable:
    """A recipe that is better by so much in all runs."""
    return RunTable(
        tuple(
            replace(
                run,
                metrics={
                    name: values - loss if name.startswith("loss") else np.clip(values + accuracy, 0, 1)
                    for name, values in run.metrics.items()
                },
            )
            for run in table
        )
    )


def test_draws_are_as_wide_as_the_printed_intervals(forecaster):
    x_3Q = np.stack([logs(3e9, 1e12, None), logs(7e9, 4e12, None)], axis=1)
    accuracy_STQ = draws(forecaster, x_3Q, 0.9, 0)
    for q, (n, d) in enumerate(((3e9, 1e12), (7e9, 4e12))):
        for t, each in enumerate(forecaster.predict_all(n, d, 0.9)):
            low, middle, high = np.quantile(accuracy_STQ[:, t, q], (0.05, 0.5, 0.95))
            width = each.hi - each.lo
            assert low == pytest.approx(each.lo, abs=0.06 * width)
            assert high == pytest.approx(each.hi, abs=0.06 * width)
            assert middle == pytest.approx(each.accuracy, abs=0.05 * width)
    # One ladder is behind both targets: what it misjudges at one it misjudges at the other.
    assert np.corrcoef(accuracy_STQ[:, 0, 0], accuracy_STQ[:, 0, 1])[0, 1] > 0.8


def test_a_threshold_at_the_forecast_is_reached_half_of_the_time_and_the_cheapest_is_chosen(forecaster):
    targets = [(7e9, 4e12), (3e9, 1e12), (1.3e9, 2e11)]
    middle = forecaster.predict_all(*targets[1])
    decision = decide(forecaster, targets, {"task0": middle[0].accuracy, "task1": middle[1].lo})
    large, medium, small = decision.scenarios
    assert medium.reaches["task0"] == pytest.approx(0.5, abs=0.05)
    assert medium.reaches["task1"] == pytest.approx(0.95, abs=0.03)
    assert medium.reaches_all <= medium.reaches["task0"]
    assert large.reaches_all > medium.reaches_all > small.reaches_all
    assert decision.choice == 0
    assert sum(each.best for each in decision.scenarios) == pytest.approx(1)
    assert large.best > 0.9
    assert decide(forecaster, targets, {"task0": middle[0].accuracy}, sure=0.3).choice == 1
    assert decide(forecaster, targets, {"mean": 0.9999}).choice is None
    assert decide(forecaster, targets).scenarios[0].reaches_all is None
    widths = [(each.hi["mean"] - each.lo["mean"]) for each in decision.scenarios]
    assert widths[0] > widths[1] > widths[2]  # farther is less sure


@pytest.mark.parametrize(
    ("targets", "thresholds", "message"),
    [
        ([], {}, "no scenario"),
        ([(1e9, 1e11), (1e9, 1e11)], {}, "twice"),
        ([(1e9, 1e11)], {"nope": 0.5}, "no task 'nope'"),
        ([(1e9, 1e11)], {"mean": 65.0}, "0.65 for 65 %"),
        ([(float("nan"), 1e11)], {}, "positive number of parameters"),
        ([(1e300, 1e300)], {}, "than numbers reach"),
    ],
)
def test_impossible_decisions_are_refused_by_name(forecaster, targets, thresholds, message):
    with pytest.raises(UserError, match=message):
        decide(forecaster, targets, thresholds)


def test_recipes_are_ordered_as_they_are_and_two_as_their_comparison_says(synthetic):
    table, tasks = synthetic(2, 0.003, seed=1)
    tables = {
        "plain": table,
        "best": _shifted(synthetic(2, 0.003, seed=2)[0], 0.05, 0.06),
        "better": _shifted(synthetic(2, 0.003, seed=3)[0], 0.02, 0.025),
    }
    fitted = {name: TwoStep(_CHAIN, 64).fit(each, tasks, calibrated=False) for name, each in tables.items()}
    ranking = rank(fitted, 3e9, 3e11)
    assert [each.name for each in ranking.recipes] == ["best", "better", "plain"]
    assert ranking.orders[0][0] == ("best", "better", "plain")
    assert sum(share for _, share in ranking.orders) == pytest.approx(1)
    assert sum(each.best for each in ranking.recipes) == pytest.approx(1)
    assert [each.by_largest_run for each in ranking.recipes] == [1, 2, 3]
    for task in ("task0", "task1"):
        assert sum(each.best_at[task] for each in ranking.recipes) == pytest.approx(1)
    pair = rank({name: fitted[name] for name in ("plain", "better")}, 7e9, 4e12)
    mean = compare(fitted["plain"], fitted["better"], 7e9, 4e12)[-1]
    better = next(each for each in pair.recipes if each.name == "better")
    assert better.best == pytest.approx(mean.b_better, abs=0.06)
    with pytest.raises(UserError, match="are the same"):
        rank({"a": fitted["plain"], "b": fitted["plain"]}, 3e9, 3e11)
    with pytest.raises(UserError, match="two recipes"):
        rank({"a": fitted["plain"]}, 3e9, 3e11)
    for n, d in ((-7e9, 4e12), (float("nan"), 4e12), (float("inf"), 4e12), (7e9, 0.0)):
        with pytest.raises(UserError, match="positive number of parameters"):
            rank(fitted, n, d)
        with pytest.raises(UserError, match="positive number of parameters"):
            compare(fitted["plain"], fitted["better"], n, d)
    with pytest.raises(UserError, match="between 0 and 1, not at 1.5"):
        compare(fitted["plain"], fitted["better"], 7e9, 4e12, 1.5)


def test_the_nearest_of_scenarios_that_never_reach_it_is_the_best_of_them(forecaster):
    missed = decide(forecaster, [(1e9, 1e11), (3e9, 1e12)], {"mean": 0.999999})
    assert [each.reaches_all for each in missed.scenarios] == [0, 0]
    assert "Nearest: N = 3e+09, D = 1e+12 with 0%" in decision_sentence(missed, 0.8)


@pytest.mark.parametrize("length", ["-2xC", "nanxC", "infxC", "0xC", "-1", "1e400", "nan"])
def test_a_length_is_above_0_and_finite_in_every_form(length):
    with pytest.raises(UserError, match="must be above 0"):
        parse_length(length, 1e9)


def _with_luck(table: RunTable, seed: int) -> RunTable:
    """The same runs as they are on the way: above the law by an excess that fades with the learning rate."""
    rng = np.random.default_rng(seed)
    runs = []
    for run in table:
        share = run.tokens / run.final_tokens
        excess = 0.04 * (1 - share) * (1 + 0.1 * rng.standard_normal())
        metrics = {name: values + (name.startswith("loss")) * excess for name, values in run.metrics.items()}
        peak = 1e-3
        rate = peak * (0.1 + 0.45 * (1 + np.cos(np.pi * share)))
        runs.append(replace(run, metrics=metrics, lr=rate, lr_peak=peak, planned_tokens=run.final_tokens))
    return RunTable(tuple(runs))


def test_a_run_under_way_is_forecast_better_than_by_the_ladder_alone(published, main_tasks):
    """The published ladder's 1B-10xC, from the three smaller sizes: halfway, its end is known twice as well."""
    small = RunTable(tuple(run for run in published.ladder if run.size != "1.3B" and not run.name.startswith("1B")))
    whole = published["1B-10xC"]
    forecaster = TwoStep("paper", 60).fit(small, main_tasks, calibrated=False)
    actual = np.array([whole.final_value(whole.accuracy(task), 5) for task in main_tasks])
    errors, widths = {}, {}
    for share in (0.3, 0.6, 0.9):
        found = follow(forecaster, cut_off(whole, share), whole.final_tokens)
        errors[share] = np.abs(np.array([each.accuracy for each in found]) - actual).mean()
        widths[share] = np.mean([each.hi - each.lo for each in found])
        alone = np.abs(np.array([each.ladder_accuracy for each in found]) - actual).mean()
        assert [each.ladder_accuracy for each in found] == [
            each.accuracy for each in forecaster.predict_all(whole.n, whole.final_tokens, 0.9, whole.flops_per_token)
        ]
    assert errors[0.6] < 0.6 * alone and errors[0.9] < errors[0.6]
    assert widths[0.9] < widths[0.6] < widths[0.3]
    assert without_run(published, "1B-10xC").ladder.runs == tuple(
        run for run in published.ladder if run.name != "1B-10xC"
    )


def test_the_luck_of_a_run_is_found_and_what_is_usual_is_not_taken_for_it(synthetic):
    table, tasks = synthetic(1, 0.003, seed=4)
    table = _with_luck(table, 0)
    ladder = RunTable(tuple(run for run in table if run.n < 1e9))
    forecaster = TwoStep(_CHAIN, 64).fit(ladder, tasks, calibrated=False)
    run = table["1279M-10xC"]
    plain = follow(forecaster, cut_off(run, 0.7))[0]
    end = run.final_value(run.intermediate(tasks[0], "bpb"), 5)
    assert plain.loss == pytest.approx(end, rel=0.006)  # without what is usual it would be 1.5 % too high
    worse = replace(run, metrics=dict(run.metrics) | {"loss0": run.metrics["loss0"] * 1.05})
    moved = follow(forecaster, cut_off(worse, 0.7))[0]
    assert moved.loss / plain.loss == pytest.approx(1 + 0.05 * plain.weight, abs=0.004)
    assert moved.accuracy < plain.accuracy and plain.weight > 0.5
    assert moved.own_curve / plain.own_curve == pytest.approx(1.05, abs=0.01)


def test_runs_that_cannot_be_followed_are_refused_by_name(synthetic):
    table, tasks = synthetic(1, 0.003, seed=4)
    table = _with_luck(table, 0)
    ladder = RunTable(tuple(run for run in table if run.n < 1e9))
    forecaster = TwoStep(_CHAIN, 8).fit(ladder, tasks, calibrated=False)
    run = table["1279M-10xC"]
    half = cut_off(run, 0.5)
    for each, d, message in (
        (run, None, "it is finished"),
        (cut_off(run, 0.1), None, "says nothing of its end"),
        (replace(half, planned_tokens=None), None, "is not known"),
        (replace(half, n=float("nan")), None, "number of parameters"),
        (half, half.final_tokens * 1.2, "their schedules differ"),
        (ladder.runs[0], None, "part of the ladder"),
    ):
        with pytest.raises(UserError, match=message):
            follow(forecaster, each, d)
    rare = RunTable(tuple(each.keep(np.array([len(each) - 1])) for each in ladder))
    few = TwoStep(_CHAIN, 8).fit(rare, tasks, calibrated=False)
    with pytest.raises(UserError, match="Only 0 runs of the ladder were measured"):
        follow(few, half)
    with pytest.raises(UserError, match="between 0 and 1"):
        cut_off(run, 1.0)


def test_a_comparison_is_as_wide_at_chance_as_its_forecasts(synthetic):
    table, tasks = synthetic(noise=0.003, checkpoints=10)
    flat = [
        replace(run, name=f"{run.name}-{k}", metrics=run.metrics | {"acc0": np.full(10, 0.25 + 1e-4 * k)})
        for k, run in enumerate(table)
    ]
    other = [replace(run, metrics=run.metrics | {"acc0": run.metrics["acc0"] + 2e-4}) for run in flat]
    one, two = (TwoStep(TwoStepSettings(delta=None), 40).fit(RunTable(tuple(runs)), tasks) for runs in (flat, other))
    each = one.predict(6.9e9, 3.9e12)
    assert each.diagnostics["flags"]  # at chance
    row = compare(one, two, 6.9e9, 3.9e12)[0]
    assert row.hi - row.lo > 0.9 * (each.hi - each.lo)


def test_no_difference_is_larger_than_accuracies_allow(synthetic):
    """Of two ladders of four runs it was said to lie between -290 and 280 points."""
    fitted = []
    for seed in (1, 2):
        table, tasks = synthetic(2, 0.003, seed=seed, checkpoints=10, sizes=SIZES[:2], multiples=(1, 2))
        fitted.append(TwoStep("recommended", 40).fit(table, tasks, calibrated=False))
    rows = compare(*fitted, 7e9, 4e12)
    assert all(-1 <= row.lo < 0 < row.hi <= 1 and 0.3 < row.b_better < 0.7 for row in rows)
    for row, other in zip(rows, compare(*fitted[::-1], 7e9, 4e12), strict=True):
        assert (row.lo, row.hi, row.b_better) == pytest.approx((-other.hi, -other.lo, 1 - other.b_better))


def _at_chance(synthetic, sizes):
    """Runs whose accuracies on 40 questions of four options are luck."""
    table, tasks = synthetic(noise=0.003, checkpoints=5, sizes=sizes, multiples=(1, 2, 4))
    rng = np.random.default_rng(3)
    runs = [
        replace(run, metrics=run.metrics | {"acc0": rng.choice([0.225, 0.25, 0.275, 0.3, 0.325], 5)}) for run in table
    ]
    return RunTable(tuple(runs)), [tasks[0].model_copy(update={"n_instances": 40, "title": "Next line"})]


def test_of_recipes_at_chance_no_accuracy_is_compared(synthetic):
    table, tasks = _at_chance(synthetic, (25e3, 40e3, 66e3))
    good, _ = synthetic(noise=0.003, checkpoints=5, seed=1)
    chance, other = (TwoStep(_CHAIN, 40).fit(each, tasks, calibrated=False) for each in (table, good))
    assert chance.ensemble.untold(chance.target(7e9, 4e12)[:, None]).all()
    one, mean = compare(chance, other, 7e9, 4e12)
    assert one.a is None and one.difference is None and one.b == pytest.approx(mean.b) and one.b > 0.5
    assert difference_rows([one])[0][1] is None
    ranking = rank({"chance": chance, "other": other}, 7e9, 4e12)
    assert {each.name: each.accuracy is None for each in ranking.recipes} == {"chance": True, "other": False}
    assert min(each.lo for each in ranking.recipes) >= 0.25


@pytest.mark.parametrize("sizes", [(25e3, 66e3), (25e3, 40e3, 66e3)])
def test_of_runs_at_chance_no_accuracy_is_forecast_and_nothing_is_decided(synthetic, sizes):
    forecaster = TwoStep("recommended", 40).fit(*_at_chance(synthetic, sizes))
    (each,) = forecaster.predict_all(1e7, 1e10)
    assert each.diagnostics["untold"] and each.lo == 0.25 and each.hi > 0.95
    assert prediction_rows(forecaster, [each], None)[0][5] is None
    assert "all runs are at chance" in untold_sentences(forecaster, [each])[0]
    assert each.loss_hi <= max(run.final_value(run.metrics["loss0"], 1) for run in forecaster.table) * 1.001
    with pytest.raises(UserError, match="No probability can be told"):
        decide(forecaster, [(1e7, 1e10)], {"mean": 0.4})


def test_a_page_draws_no_dot_and_counts_no_error_where_no_accuracy_is_told(synthetic, tmp_path):
    from lmlab.methods.ladder import report
    from lmlab.methods.ladder.presenting.predictions import prediction_rows
    from lmlab.methods.ladder.stages import Forecast

    table, task = _at_chance(synthetic, (5e5, 1e6, 2e6))
    forecaster = TwoStep("recommended", 20).fit(table, task)
    target = replace(table.runs[-1], name="target", mode="eval", n=8e6, tokens=table.runs[-1].tokens * 8)
    predictions = forecaster.predict_all(target.n, target.final_tokens)
    figure = report._interval_figure(forecaster, predictions, target)
    assert list(figure.data[0].marker.size) == [0]
    (each,) = predictions
    middle, half = figure.data[0].x[0], figure.data[0].error_x.array[0]
    assert (middle - half, middle + half) == pytest.approx((100 * each.lo, 100 * each.hi))
    rows = prediction_rows(forecaster, predictions, target)
    assert len(rows) == 1 and rows[0][9] is None, "an accuracy that is not told has no error, and there is no mean"
    said = Forecast(value=0.9, lo=0.25, hi=0.5, carry_forward=0.26, log_linear=0.27, told=False).text()
    assert "90" not in said and "[25.0%, 50.0%]" in said


def test_of_several_tasks_one_at_chance_makes_the_mean_wide(synthetic):
    table, tasks = synthetic(2, 0.003, checkpoints=5)
    best = min(run.metrics["loss0"].min() for run in table)
    luck = [replace(run, metrics=run.metrics | {"acc0": 0.33 * best / run.metrics["loss0"]}) for run in table]
    tasks = [tasks[0].model_copy(update={"n_instances": 40}), tasks[1]]
    forecaster = TwoStep(_CHAIN, 40).fit(RunTable(tuple(luck)), tasks, calibrated=False)
    target = (1e12, 1e15)
    first, second = forecaster.predict_all(*target)
    assert first.diagnostics["untold"] and not second.diagnostics["untold"]
    (scenario,) = decide(forecaster, [target], {"mean": 0.5}).scenarios
    assert scenario.hi["mean"] - scenario.lo["mean"] > 0.3
    with pytest.raises(UserError, match="told of task0:"):
        decide(forecaster, [target], {"task0": 0.5})


def test_a_curve_that_was_seen_in_a_narrow_piece_is_not_known_at_its_end(synthetic):
    table, tasks = synthetic(noise=0.003, sizes=(25e3, 66e3), multiples=(1, 2, 4))
    rising = [
        replace(run, metrics=run.metrics | {"acc0": 0.45 - 0.02 * run.metrics["loss0"]}) for run in table
    ]  # well above chance, over a few points
    tasks = [tasks[0].model_copy(update={"n_instances": 10_000})]
    forecaster = TwoStep("recommended", 40).fit(RunTable(tuple(rising)), tasks)
    (far,) = forecaster.predict_all(1e7, 1e11)
    (near,) = forecaster.predict_all(1e5, 8e6)
    assert not far.diagnostics["untold"] and far.hi - far.lo > 0.5 > 0.2 > near.hi - near.lo


def test_without_backtests_the_forms_part_with_the_distance_too(synthetic):
    table, tasks = synthetic(noise=0.003, sizes=(190e6, 370e6), multiples=(1, 2, 4))
    forecaster = TwoStep(_CHAIN, 0).fit(table, tasks, calibrated=False)
    flops = [run.flops for run in table]
    half = np.sqrt(max(flops) / min(flops))
    assert forecaster.beyond(np.log([370e6, 1e10, 0.99 * half * max(flops)])) == 1
    assert forecaster.beyond(np.log([370e6, 1e10, half**3 * max(flops)])) == pytest.approx(3)


def test_what_one_ladder_alone_supposes_of_the_law_widens_a_comparison(published, main_tasks):
    tasks = main_tasks[:2]
    without_c4 = RunTable(
        tuple(
            replace(run, metrics={key: v for key, v in run.metrics.items() if "c4_en" not in key}, name=f"{run.name}-b")
            for run in published
        )
    )
    settings = TwoStepSettings(delta=None, shrink=1e-3)
    one, two = (TwoStep(settings, 40).fit(table, tasks, calibrated=False) for table in (published, without_c4))
    x_3Q = one.target(6.9e9, 3.9e12)[:, None]
    shifts = one.ensemble.form_shifts(x_3Q)
    assert set(two.ensemble.form_shifts(x_3Q)) < set(shifts)  # the C4 loss is a form of one ladder only
    total = np.sqrt(np.sum(np.square(list(shifts.values())), axis=0))
    assert one.ensemble.spread(x_3Q).parts["form"][0] == pytest.approx(total)
    rows = compare(one, two, 6.9e9, 3.9e12)
    same = compare(one, TwoStep(settings, 40, seed=1).fit(_renamed(published), tasks, calibrated=False), 6.9e9, 3.9e12)
    assert all(a.hi - a.lo > b.hi - b.lo for a, b in zip(rows, same, strict=True))


def _renamed(table):
    return RunTable(tuple(replace(run, name=f"{run.name}-c") for run in table))


def test_tasks_that_tell_models_apart_weigh_more_in_a_mean(synthetic):
    table, tasks = synthetic(count=2, noise=0.003, checkpoints=100)
    rng = np.random.default_rng(0)
    noisy = [
        replace(
            run, metrics=run.metrics | {"acc1": np.clip(run.metrics["acc1"] + 0.05 * rng.standard_normal(100), 0, 1)}
        )
        for run in table
    ]
    clear, blurred = signal_to_noise(RunTable(tuple(noisy)), tasks)
    assert clear > 3 * blurred
    # Between recipes it is their difference at one size and length, not how far accuracy rises with compute.
    better = tuple(replace(run, metrics=run.metrics | {"acc1": run.metrics["acc1"] * 1.1}) for run in table)
    same, other = signal_between([table, RunTable(better)], tasks)
    assert same == 0 and other == pytest.approx(0.1 / 1.05 / _tail_noise(table, "acc1"), rel=0.02)
    assert signal_between([table, RunTable(tuple(replace(run, n=2 * run.n) for run in table))], tasks) is None
    forecaster = TwoStep(TwoStepSettings(delta=None), 40).fit(table, tasks, calibrated=False)
    alone = decide(forecaster, [(6.9e9, 3.9e12)], weights=[1.0, 0.0]).scenarios[0]
    assert alone.accuracy["mean"] == pytest.approx(alone.accuracy[tasks[0].name])
    with pytest.raises(UserError, match="2 tasks need 2 weights"):
        decide(forecaster, [(6.9e9, 3.9e12)], weights=[1.0])


def _tail_noise(table, column):
    return np.mean([run.metrics[column][-10:].std() / run.metrics[column][-10:].mean() for run in table])


def test_what_a_run_still_learned_is_not_its_noise(synthetic):
    """Of runs that were measured a few times only the last tenth is theirs: the rest is a trend."""
    table, tasks = synthetic(count=2, noise=0.003, checkpoints=8)
    with_questions = [tasks[0].model_copy(update={"n_instances": 400}), tasks[1]]
    for row in variance(largest_run(table), tasks):
        assert (row.loss_sd, row.loss_cv, row.accuracy_sd, row.accuracy_cv) == (None,) * 4
    known, unknown = signal_to_noise(table, with_questions)
    ends = [run.metrics["acc0"][-1] for run in table]
    share = np.mean(ends)
    binomial = np.sqrt((1 - share) / share / 400)
    assert known == pytest.approx(np.ptp(ends) / share / binomial)
    assert np.isnan(unknown)
    _, rows, notes = variance_table(table, with_questions, None, 10)
    assert [row[1:5] for row in rows] == [[None] * 4] * 2 and rows[1][-1] is None
    assert notes == ["The last tenth of 1279M-10xC was measured once, which tells no noise between checkpoints."]
    forecaster = TwoStep(TwoStepSettings(delta=None), 20).fit(table, with_questions, calibrated=False)
    with pytest.raises(UserError, match="noise of task1 is not known"):
        weights_of([forecaster], MeanOptions(weigh="signal"))
    assert [card.checkpoint_noise for card in cards(forecaster)] == [None, None]
