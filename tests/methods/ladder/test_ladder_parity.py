"""Every number of the reference implementation on its own data (what it obtains is in
shared/data/ladder/reference_results).
"""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from lmlab.methods.ladder import TaskRegistry, TwoStepSettings, fit_chain, logs, preset, splits
from lmlab.methods.ladder.analysis.ablate import ablate
from lmlab.methods.ladder.analysis.backtest import predict_split
from lmlab.methods.ladder.analysis.diagnose import report_step
from lmlab.methods.ladder.analysis.variance import correlations, largest_run, variance
from lmlab.methods.ladder.fitting.laws import log_residuals
from lmlab.methods.ladder.fitting.points import collect_points
from lmlab.methods.ladder.fitting.solve import huber
from lmlab.methods.ladder.tables.target import mean_errors, score_target

PAPER = TwoStepSettings(starts="paper")
VARIANTS = {
    "main": PAPER,
    "main_p0fixed": PAPER,
    "flops": TwoStepSettings(law="flops", starts="paper"),
    "single": TwoStepSettings(law="single", starts="paper"),
    "taskce": TwoStepSettings(
        x="taskce", accuracy_law="log_sigmoid", anchor=False, moving_average=1, skip=0.5, last=1, starts="paper"
    ),
    "c4_p0fixed": TwoStepSettings(x="c4", starts="paper"),
}


# The log-sigmoid's a and k trade against each other where HellaSwag's accuracies lie: the end of SciPy's search by
# differences there moves by half a thousandth from processor to processor.
CLOSE = dict.fromkeys(VARIANTS, 5e-4) | {"taskce": 1e-3}


def _determined(chain):
    """Whether the runs determine each task's law.

    In the flat valley of the others (OpenBookQA by the single step: condition 6e11, the next one 4e8) rounding decides
    where one start ends, so that processors differ by a point; there the cost is what can be compared.
    """
    return [report.condition < 1e10 for report in report_step(chain)]


def test_an_undetermined_fit_is_as_good_as_the_reference(published, results):
    rows = {row["task"]: row for row in results("coefficients") if row["variant"] == "single"}
    tasks = [TaskRegistry.builtin()[name] for name in rows]
    chain = fit_chain(published, tasks, VARIANTS["single"])
    assert [task.name for task, sure in zip(tasks, _determined(chain), strict=True) if not sure] == [
        "openbookqa_test_5shot"
    ]
    for place, (task, sure) in enumerate(zip(tasks, _determined(chain), strict=True)):
        theirs = np.array([[float(each) for each in rows[task.name]["step1"].split()]])
        mine = chain.first.parameters_BP[place][None]
        log_y = np.log(chain.points.target(False)[place])[None]
        costs = [huber(log_residuals("single", p, chain.points.x_3R, log_y)[0], 1e-3).sum() for p in (mine, theirs)]
        assert costs[0] == pytest.approx(costs[1], rel=1e-6 if sure else 1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_predictions_of_the_7b_target(published, results, variant):
    rows = {row["task"]: row for row in results("target_7B-4T") if row["variant"] == variant}
    tasks = [TaskRegistry.builtin()[name] for name in rows]
    sure = _determined(fit_chain(published, tasks, VARIANTS[variant]))
    for found, determined in zip(
        score_target(published, tasks, VARIANTS[variant], published["7B-4T"]), sure, strict=True
    ):
        if not determined:
            continue
        row = rows[found.task]
        assert found.accuracy_predicted == pytest.approx(float(row["acc_pred"]), abs=CLOSE[variant])
        assert found.accuracy_actual == pytest.approx(float(row["acc_actual"]), rel=1e-6)
        assert found.absolute == pytest.approx(float(row["abs_err_pts"]), abs=100 * CLOSE[variant])
        if found.loss_predicted is not None:
            assert found.loss_predicted == pytest.approx(float(row["loss_pred"]), rel=1e-3)
            if row["loss_actual"]:
                assert found.loss_actual == pytest.approx(float(row["loss_actual"]), rel=1e-6)
            if row["acc_pred_from_actual_loss"]:
                assert found.accuracy_from_actual_loss == pytest.approx(
                    float(row["acc_pred_from_actual_loss"]), abs=5e-4
                )


def test_means_of_the_published_variants(published, main_tasks):
    target = published["7B-4T"]
    assert mean_errors(score_target(published, main_tasks, PAPER, target))["absolute"] == pytest.approx(3.82, abs=0.005)
    assert mean_errors(score_target(published, main_tasks, TwoStepSettings(x="c4"), target))[
        "absolute"
    ] == pytest.approx(2.00, abs=0.01)
    assert mean_errors(score_target(published, main_tasks, TwoStepSettings(law="flops"), target))[
        "absolute"
    ] == pytest.approx(3.27, abs=0.005)


@pytest.mark.parametrize("variant", ["main", "flops", "single", "taskce", "c4_p0fixed"])
def test_predictions_of_a_13b_model(published, results, variant):
    rows = {row["task"]: row for row in results("predictions_13B-5T_without_actuals") if row["variant"] == variant}
    tasks = [TaskRegistry.builtin()[name] for name in rows]
    chain = fit_chain(published, tasks, VARIANTS[variant])
    predicted = chain.accuracy(logs(13_202_396_160, 5_000_088_518_656, 91_335_915_520)[:, None])[0, :, 0]
    theirs, sure = np.array([float(row["acc_pred"]) for row in rows.values()]), _determined(chain)
    assert predicted[sure] == pytest.approx(theirs[sure], abs=CLOSE[variant])


def test_coefficients_and_fit_errors(published, results):
    rows = {row["task"]: row for row in results("coefficients") if row["variant"] == "main"}
    tasks = [TaskRegistry.builtin()[name] for name in rows]
    chain = fit_chain(published, tasks, PAPER)
    for task, report in zip(tasks, report_step(chain), strict=True):
        row = rows[task.name]
        assert list(report.first.values()) == pytest.approx(
            [float(each) for each in row["step1"].split()], rel=0.01, abs=1e-6
        )
        # Where the curve is steep, as with BoolQ, its four parameters are determined together only.
        assert list(report.second.values()) == pytest.approx([float(each) for each in row["step2"].split()], rel=0.01)
        assert report.error_1 == pytest.approx(float(row["fit_err_step1"]), rel=1e-3)
        assert report.error_2 == pytest.approx(float(row["fit_err_step2"]), rel=5e-3)


def test_the_second_step_has_1401_points(published):
    points = collect_points(published.paper, TaskRegistry.builtin().select("all"), PAPER)
    assert points.loss_TK.shape == (len(TaskRegistry.builtin()), 1401)
    assert points.y_TR.shape[1] == 16


def test_the_importer_gives_the_tidy_table(published, folder):
    with open(folder / "checkpoints_tidy.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row["run"].startswith("peteish") and row["size"] != "7B"]
    registry = TaskRegistry.builtin()
    ladder = {run.name: run for run in published.ladder}
    assert sum(len(run) for run in ladder.values()) == len(rows)
    seen: dict[str, int] = dict.fromkeys(ladder, 0)
    names = {key.partition(":")[0] for key in rows[0] if ":" in key}
    columns = {
        (run.name, name): (run.intermediate(registry[name], "bpb"), run.accuracy(registry[name]))
        for run in ladder.values()
        for name in names
    }
    for row in rows:
        run, place = ladder[row["run"]], seen[row["run"]]
        seen[run.name] += 1
        assert run.n == float(row["n"])
        assert run.tokens[place] == float(row["tokens"])
        assert run.column("eval/c4_en-validation/CrossEntropyLoss")[place] == pytest.approx(
            float(row["c4_ce"]), rel=1e-6
        )
        for name in names:
            loss, accuracy = columns[run.name, name]
            assert loss[place] == pytest.approx(float(row[f"{name}:bpb"]), rel=1e-6)
            assert accuracy[place] == pytest.approx(float(row[f"{name}:acc"]), rel=1e-6)


NOT_DETERMINED = ("N <= 190M", "N <= 370M", "xC <= 1", "4 cheapest", "5 cheapest", "6 cheapest")


def test_fewer_runs(published, results, main_tasks):
    """Every part of the ladder that determines the law.

    In the others rounding decides where the single start ends: see the next test.
    """
    reference: dict[str, list[dict[str, str]]] = {}
    for row in results("ablation_fewer_runs_7B-4T"):
        reference.setdefault(row["subset"].replace("N<= ", "N <= ").replace("xC<= ", "xC <= "), []).append(row)
    reference |= {
        f"{int(name[9:11])} cheapest": rows for name, rows in reference.items() if name.startswith("flops top")
    }
    checked = 0
    for part in ablate(published, main_tasks, preset("paper"), published["7B-4T"]):
        rows = {row["task"]: row for row in reference[part.name]}
        for found in part.errors:
            if part.name not in NOT_DETERMINED:
                assert found.accuracy_predicted == pytest.approx(float(rows[found.task]["acc_pred"]), abs=5e-4), (
                    part.name,
                    found.task,
                )
                assert found.step_1 == pytest.approx(float(rows[found.task]["step1_rel"]), abs=1e-3)
                assert found.step_2 == pytest.approx(float(rows[found.task]["step2_rel"]), abs=1e-3)
                checked += 1
    assert checked == 15 * 8


def test_where_a_single_start_ends_does_not_depend_on_the_order_in_which_runs_are_given(published, main_tasks):
    part = published.paper.ladder.where(max_n=2e8)  # four runs, which do not determine the law: rounding decides
    x_3Q = logs(6_887_575_552, 3_945_065_873_408, None)[:, None]

    def predict(runs):
        return fit_chain(replace(part, runs=runs), main_tasks, PAPER).accuracy(x_3Q)[0, :, 0]

    assert np.array_equal(predict(part.runs), predict(part.runs[::-1]))


def test_backtests(published, results, main_tasks):
    """From 190M and 370M to 760M two sizes do not determine alpha; there predictions agree to 0.3 points only."""
    rows = {(row["target"], row["length"], row["task"]): row for row in results("backtests")}
    names = {"760M": ("N <= 370M to 760M", 3e-3, 6e-3), "1.3B": ("N <= 760M to 1.3B", 5e-4, 1e-3)}
    by_name = {split.name: split for split in splits(published)}
    for size, (name, close, loss_close) in names.items():
        found = predict_split(published, main_tasks, PAPER, by_name[name])
        for place, task in enumerate(main_tasks):
            for column, run in enumerate(found.split.predicted):
                row = rows[size, run.partition("-")[2], task.name]
                assert found.accuracy_TQ[place, column] == pytest.approx(float(row["acc_pred"]), abs=close)
                assert found.loss_TQ[place, column] == pytest.approx(float(row["loss_pred"]), rel=loss_close)
                assert found.actual_TQ[place, column] == pytest.approx(float(row["acc_actual"]), rel=1e-6)


def test_variance_and_its_correlations_with_errors(published, results):
    rows = results("variance_1B-10xC_last10")
    tasks = [TaskRegistry.builtin()[row["task"]] for row in rows]
    run = largest_run(published)
    assert run.name == "1B-10xC"
    noise = variance(run, tasks)
    for found, row in zip(noise, rows, strict=True):
        assert found.loss_sd == pytest.approx(float(row["loss_sd"]), abs=1e-6)
        assert found.loss_cv == pytest.approx(float(row["loss_cv"]), abs=1e-6)
        assert found.accuracy_sd == pytest.approx(float(row["acc_sd"]), abs=1e-6)
        assert found.accuracy_cv == pytest.approx(float(row["acc_cv"]), abs=1e-6)
    errors = score_target(published, tasks, PAPER, published["7B-4T"])
    for found, row in zip(errors, rows, strict=True):
        assert [found.step_1, found.step_2, found.relative] == pytest.approx(
            [float(row[f"{key}_rel_err_7B"]) for key in ("step1", "step2", "chained")], abs=1e-3
        )
    table = {(key, error): (r, p) for key, error, r, p in correlations(noise, errors)}
    assert table["loss_sd", "step_2"] == pytest.approx((0.82, 0.004), abs=0.005)
    assert table["loss_cv", "step_1"] == pytest.approx((0.65, 0.04), abs=0.005)
    assert np.abs([table[key, "relative"][0] for key in ("loss_sd", "loss_cv")]).max() <= 0.335


def test_multiple_choice_curves_from_a_large_run(folder):
    """The accuracies of the 7B model where it answers with a letter, from its checkpoints between steps 170k
    and 450k.
    """
    from lmlab.methods.ladder.fitting.fit import fit_second_step
    from lmlab.methods.ladder.fitting.points import moving_average
    from lmlab.methods.ladder.tables.csv_runs import read_csv_run

    large = read_csv_run(folder / "runs" / "peteish7_eval_full.csv", 6_887_575_552, 49_412_071_424)
    target = read_csv_run(folder / "runs" / "peteish7_eval_anneal.csv", 6_887_575_552, 49_412_071_424)
    large = large.keep((large.step >= 170_000) & (large.step <= 450_000))
    expected = {
        "mmlu_avg_test_5shot": (62.2, 60.4),
        "arc_challenge": (77.9, 76.4),
        "arc_easy": (90.0, 90.4),
        "csqa": (70.8, 73.4),
        "hellaswag": (56.6, 62.7),
    }
    names = {"arc_challenge": "arc_challenge_test_5shot", "arc_easy": "arc_easy_test_5shot"}
    for stem, (predicted, actual) in expected.items():
        task = TaskRegistry.builtin()[names.get(stem, stem)]
        loss, accuracy = (
            moving_average(values, 5)[None] for values in (large.intermediate(task, "bpb"), large.accuracy(task, "mc"))
        )
        fit = fit_second_step("mc", loss, accuracy, np.array([task.chance]))
        a, x0, k, b = fit.parameters_BP[0]
        value = a / (1 + np.exp(-k * (target.intermediate(task, "bpb")[-1] - x0))) + b
        assert target.accuracy(task, "mc")[-1] * 100 == pytest.approx(actual, abs=0.06)
        assert value * 100 == pytest.approx(predicted, abs=0.06), stem
