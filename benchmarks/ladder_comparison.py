"""The table of estimators: errors, coverage and width of 90 % intervals, and the time of fitting all tasks.

    LMLAB_SHARED=../shared python benchmarks/ladder_comparison.py

Backtests are those inside the published ladder; the target is the 7B model on 4T tokens. Coverage on backtests is that
of intervals calibrated on the other splits. Times are processor seconds of this process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from lmlab.methods.ladder import TaskRegistry, TwoStep, backtest, fit_chain, preset, score, splits, target_values
from lmlab.methods.ladder.tables.reference_data import published_ladder

_SHOWN = ("N <= 370M to 760M", "N <= 760M to 1.3B")


def _loss_member(settings):
    """The chain whose quantity is printed."""
    return next((each for each in settings.members if each.chained), settings.members[0])


def main() -> None:
    table = published_ladder(Path(os.environ.get("LMLAB_SHARED", "../shared")))
    tasks = TaskRegistry.builtin().select("main")
    every, target = splits(table), table["7B-4T"]
    columns = [
        "estimator",
        *_SHOWN,
        f"all {len(every)} splits",
        "7B-4T",
        "inside, backtests",
        "inside, 7B",
        "width, points",
        "losses inside, backtests",
        "losses inside, 7B",
        "fit, s",
    ]
    print("| " + " | ".join([*columns, "with intervals, s"]) + " |")
    print("|---" * 12 + "|")
    per_task = {}
    for name in ("recommended", "paper", "flops", "single", "c4", "line"):
        settings = preset(name)
        start = time.process_time()
        for member in settings.members:
            fit_chain(table, tasks, member)
        middle = time.process_time()
        forecaster = TwoStep(settings).fit(table, tasks)
        predictions = forecaster.predict_all(target.n, target.final_tokens, 0.9, target.flops_per_token)
        end = time.process_time()
        actual = np.array([target_values(target, task, settings.members[0])[1] for task in tasks])
        errors = 100 * np.abs(np.array([each.accuracy for each in predictions]) - actual)
        per_task[name] = errors
        inside = sum(each.lo <= value <= each.hi for each, value in zip(predictions, actual, strict=True))
        results = {each.split.name: each for each in backtest(table, tasks, settings)}
        shown = " | ".join(f"{results[split].errors_TQ.mean():.2f}" for split in _SHOWN)
        coverage = (
            np.mean(list(forecaster.calibration.coverage(0.9).values())) if forecaster.calibration else float("nan")
        )
        known = np.array([target_values(target, task, _loss_member(settings))[0] for task in tasks])
        held = sum(
            each.loss is not None and each.loss_lo <= value <= each.loss_hi
            for each, value in zip(predictions, known, strict=True)
        )
        losses, inside_losses = "-", "-"  # of a law that leads straight to the accuracy
        if forecaster.calibration and forecaster.calibration.losses:
            covered = next(iter(forecaster.calibration.losses.values())).coverage(0.9)
            losses, inside_losses = f"{np.mean(list(covered.values())):.0%}", f"{held} of {len(tasks)}"
        width = np.mean([100 * (each.hi - each.lo) for each in predictions])
        print(
            f"| {name} | {shown} | {score(list(results.values())):.2f} | {errors.mean():.2f} | {coverage:.0%} |"
            f" {inside} of {len(tasks)} | {width:.1f} | {losses} | {inside_losses} |"
            f" {middle - start:.2f} | {end - middle:.1f} |",
            flush=True,
        )
    carried = [_carry_forward(table, split, tasks) for split in every]
    best = np.array([max(run.final_value(run.accuracy(task), 5) for run in table.paper.ladder) for task in tasks])
    per_task["carry-forward"] = 100 * np.abs(best - actual)
    shown = " | ".join(f"{carried[[split.name for split in every].index(name)]:.2f}" for name in _SHOWN)
    print(
        f"| best run carried forward | {shown} | {np.mean(carried):.2f} | {per_task['carry-forward'].mean():.2f} | - |"
        " - | - | - | - | - | - |\n"
    )
    print(
        "| 7B-4T, error in points | "
        + " | ".join(task.title for task in tasks)
        + " |\n"
        + "|---" * (len(tasks) + 1)
        + "|"
    )
    for name, errors in per_task.items():
        print(f"| {name} | " + " | ".join(f"{error:.1f}" for error in errors) + " |")


def _carry_forward(table, split, tasks) -> float:
    fitted = [table[name] for name in split.fitted]
    found = []
    for task in tasks:
        best = max(run.final_value(run.accuracy(task), 5) for run in fitted)
        found += [100 * abs(best - table[name].final_value(table[name].accuracy(task), 5)) for name in split.predicted]
    return float(np.mean(found))


if __name__ == "__main__":
    main()
