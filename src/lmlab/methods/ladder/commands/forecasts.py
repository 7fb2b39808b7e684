"""`lmlab ladder`: the commands that fit runs, forecast, and say how far forecasts can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.methods.ladder.cli import app
from lmlab.methods.ladder.commands.shared import (
    ESTIMATOR,
    Length,
    Output,
    Runs,
    Size,
    Target,
    place_for,
    read,
    say,
    show,
    with_estimator,
    with_forecast,
    with_preset,
    with_runs,
)
from lmlab.methods.ladder.config import EstimatorOptions, ForecastOptions, RunsOptions


@app.command(
    epilog=example(
        "lmlab ladder fit runs.csv --preset paper -k main", "lmlab ladder fit runs.csv -x c4 --law nd -o fit.json"
    )
)
@with_runs
@with_estimator
def fit(
    data: RunsOptions,
    estimator: EstimatorOptions,
    runs: Runs = None,
    output: Output = None,
) -> None:
    """Fit both steps, and show parameters with units, fit errors and what may be wrong."""
    from lmlab.methods.ladder.fitting.prepare import fitted
    from lmlab.methods.ladder.presenting.parameters import PARAMETER_COLUMNS, parameter_rows
    from lmlab.methods.ladder.presenting.predictions import runs_sentence

    table = read(runs, data, [output], estimator.step2_config_path)
    forecaster = fitted(table, data, estimator, calibrated=False)
    rows, sentences = parameter_rows(forecaster)
    show([*PARAMETER_COLUMNS, "notes"], rows, output, forecaster.ensemble.settings.name, forecaster.to_json())
    say(*sentences, runs_sentence(forecaster))


@app.command(
    epilog=example(
        "lmlab ladder predict runs.csv -n 7e9 -d 4T --interval 0.9",
        "lmlab ladder predict -c final.json -t 7B-4T --preset paper",
    )
)
@with_runs
@with_estimator
@with_forecast
def predict(
    data: RunsOptions,
    estimator: EstimatorOptions,
    forecast: ForecastOptions,
    runs: Runs = None,
    n: Size = None,
    d: Length = None,
    target: Target = None,
    epochs: Annotated[
        float | None,
        typer.Option(min=1, help="How often the target goes through its data; default: once.", show_default=False),
    ] = None,
    output: Output = None,
) -> None:
    """Predict accuracies at a target with intervals, and set what was measured beside them where the table has it."""
    from lmlab.methods.ladder.fitting.prepare import fitted
    from lmlab.methods.ladder.presenting.predictions import (
        distance_sentence,
        line_sentences,
        prediction_columns,
        prediction_details,
        prediction_rows,
        runs_sentence,
        untold_sentences,
    )
    from lmlab.methods.ladder.tables.target import target_point

    table = read(runs, data, [output], estimator.step2_config_path)
    target_point(table, target, n, d)  # what cannot be is refused before the fit
    forecaster = fitted(table, data, estimator, forecast.seed)
    size, tokens, flops, measured = target_point(forecaster.table, target, n, d)
    times = epochs or (1.0 if measured is None else measured.epochs)
    predictions = forecaster.predict_all(size, tokens, forecast.interval, flops, times)
    rows = prediction_rows(forecaster, predictions, measured)
    show(
        prediction_columns(forecaster),
        rows,
        output,
        f"N = {size:.4g}, D = {tokens:.4g}, {estimator.settings().name}",
        prediction_details(forecaster, predictions, measured),
    )
    say(*untold_sentences(forecaster, predictions), *line_sentences(forecaster, predictions, measured))
    say(distance_sentence(predictions[0]), runs_sentence(forecaster))


@app.command(
    epilog=example(
        "lmlab ladder backtest runs.csv", "lmlab ladder backtest -c final.json --preset paper -o backtest.csv"
    )
)
@with_runs
@options(EstimatorOptions, "estimator", exclude=ESTIMATOR - {"preset", "x", "law"})
@with_forecast
def backtest(
    data: RunsOptions,
    estimator: EstimatorOptions,
    forecast: ForecastOptions,
    runs: Runs = None,
    output: Output = None,
) -> None:
    """Fit parts of the ladder, predict the rest: errors, and how often intervals hold the outcome."""
    from lmlab.methods.ladder import backtest as run_backtest
    from lmlab.methods.ladder import score
    from lmlab.methods.ladder.analysis.baselines import line_of
    from lmlab.methods.ladder.config import EstimatorSettings
    from lmlab.methods.ladder.fitting.calibration import calibrate
    from lmlab.methods.ladder.fitting.prepare import prepared
    from lmlab.methods.ladder.presenting.digits import level_text

    table, chosen, settings = prepared(read(runs, data, [output]), data, estimator)
    results = run_backtest(table, chosen, settings)
    coverage = calibrate(table, chosen, settings, seed=forecast.seed).coverage(forecast.interval)
    rows: list[Sequence[Any]] = []
    for each in results:
        rows.append(
            [
                each.split.name,
                len(each.split.fitted),
                len(each.split.predicted),
                each.errors_TQ.mean(),
                each.errors_TQ.max(),
                100 * coverage[each.split.name],
            ]
        )
    rows.append(["mean", None, None, score(results), None, 100 * sum(coverage.values()) / len(coverage)])
    inside = f"inside {level_text(forecast.interval)} intervals, %"
    columns = ["split", "runs fitted", "runs predicted", "mean error, points", "largest error, points", inside]
    show(columns, rows, output, f"Backtests of {settings.name}")
    line = EstimatorSettings(name="line", members=(line_of(settings.members[0]),))
    simple = score(run_backtest(table, chosen, line))
    say(f"A line in logit accuracy on log compute, for comparison: {simple:.2f} points.")


@app.command(epilog=example("lmlab ladder variance runs.csv -k main+", "lmlab ladder variance -c final.json -t 7B-4T"))
@options(RunsOptions, "data", tasks="main+")
@options(EstimatorOptions, "estimator", exclude=ESTIMATOR - {"last_n_points"}, last_n_points=10)
def variance(
    data: RunsOptions,
    estimator: EstimatorOptions,
    runs: Runs = None,
    target: Target = None,
    output: Output = None,
) -> None:
    """Noise of each task over the last checkpoints of the largest run, between repeated runs, and its correlation with
    errors at a target.
    """
    from lmlab.methods.ladder.fitting.prepare import checked, choose_tasks
    from lmlab.methods.ladder.presenting.noise import variance_table

    chosen = choose_tasks(data)
    table = checked(read(runs, data, [output]), chosen, data)
    assert estimator.last_n_points is not None
    columns, rows, notes = variance_table(table, chosen, target, estimator.last_n_points)
    show(columns, rows, output, "Noise over checkpoints and between runs")
    say(*notes)


@app.command(epilog=example("lmlab ladder ablate -c final.json -t 7B-4T --preset paper"))
@with_runs
@options(EstimatorOptions, "estimator", exclude=ESTIMATOR - {"preset"}, preset="paper")
def ablate(
    data: RunsOptions,
    estimator: EstimatorOptions,
    runs: Runs = None,
    target: Target = None,
    output: Output = None,
) -> None:
    """Leave out sizes, lengths, or the dearest runs, and see how the error at a target grows."""
    from lmlab.methods.ladder.analysis.ablate import ablate as run_ablation
    from lmlab.methods.ladder.fitting.prepare import prepared
    from lmlab.methods.ladder.tables.target import mean_errors, only_target

    read_table = read(runs, data, [output], estimator.step2_config_path)
    table, chosen, settings = prepared(read_table, data, estimator)
    rows: list[Sequence[Any]] = []
    for part in run_ablation(table, chosen, settings, only_target(table, target)):
        means = mean_errors(part.errors)
        shares = [
            None if means[key] is None else 100 * float(means[key] or 0) for key in ("relative", "step_1", "step_2")
        ]
        fitted_runs = [table[name] for name in part.runs]
        counts = [len({getattr(run, fact) for run in fitted_runs}) for fact in ("n", "multiple")]
        rows.append([part.name, len(part.runs), *counts, part.flops, means["absolute"], *shares])
    columns = ["runs", "number", "sizes", "lengths", "FLOPs", "error, points", "chained, %", "step 1, %", "step 2, %"]
    show(columns, rows, output, "Fewer runs")


@app.command(
    epilog=example(
        "lmlab ladder report runs.csv -n 7e9 -d 4T -o report.html",
        "lmlab ladder report -c final.json -t 7B-4T -o out/report.html",
    )
)
@with_runs
@with_preset
@with_forecast
def report(
    data: RunsOptions,
    estimator: EstimatorOptions,
    forecast: ForecastOptions,
    runs: Runs = None,
    n: Size = None,
    d: Length = None,
    target: Target = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Page; the tables go beside it as CSV and LaTeX.",
            callback=place_for("a page", ".html"),
        ),
    ] = Path("ladder.html"),
) -> None:
    """Write a page: forecasts with intervals, curves with bands, warnings, predictability of each task, and which run
    to add.
    """
    from lmlab.methods.ladder.fitting.prepare import fitted
    from lmlab.methods.ladder.report import TABLES_BESIDE, write_report
    from lmlab.methods.ladder.tables.target import target_point

    table = read(runs, data, [output, *(output.with_suffix(suffix) for suffix in TABLES_BESIDE)])
    target_point(table, target, n, d)  # what cannot be is refused before the fit
    forecaster = fitted(table, data, estimator, forecast.seed)
    size, tokens, flops, measured = target_point(forecaster.table, target, n, d)
    for path in write_report(forecaster, size, tokens, flops, measured, forecast.interval, output):
        say(str(path))
