"""`lmlab ladder`: the commands that fit runs, forecast, and say how far forecasts can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError
from lmlab.methods.ladder.cli import app
from lmlab.methods.ladder.commands.shared import TABLES, place_for, show
from lmlab.methods.ladder.config import DecideOptions, EstimatorOptions, ForecastOptions, MeanOptions, RunsOptions

Runs = Annotated[
    Path | None,
    typer.Argument(
        help="Run table (.csv, .parquet), folder of `collect`, or the reference's .json.", show_default=False
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        "--output-path",
        help="Write the table: .csv, .md, .tex, .json.",
        show_default=False,
        callback=place_for("a table", *TABLES),
    ),
]
Target = Annotated[str | None, typer.Option("-t", "--target", help="Target of the table.", show_default=False)]
Size = Annotated[
    float | None, typer.Option("-n", "--n", help="Parameters without the input embedding.", show_default=False)
]
Length = Annotated[
    str | None, typer.Option("-d", "--d", help="Tokens: 4T, 100B, 20xC or a number.", show_default=False)
]
ESTIMATOR = set(EstimatorOptions.model_fields)
with_runs = options(RunsOptions, "data")
with_estimator = options(EstimatorOptions, "estimator")
with_preset = options(EstimatorOptions, "estimator", exclude=ESTIMATOR - {"preset"})
with_forecast = options(ForecastOptions, "forecast")


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
    from lmlab.methods.ladder.analysis.present import PARAMETER_COLUMNS, parameter_rows, runs_sentence
    from lmlab.methods.ladder.fitting.prepare import fitted, read_runs

    table = read_runs(runs, data, estimator.step2_config_path)
    forecaster = fitted(table, data, estimator, calibrated=False)
    rows, sentences = parameter_rows(forecaster)
    show([*PARAMETER_COLUMNS, "notes"], rows, output, forecaster.ensemble.settings.name, forecaster.to_json())
    print("\n".join([*sentences, runs_sentence(forecaster)]))


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
    from lmlab.methods.ladder.analysis.present import (
        PREDICTION_COLUMNS,
        distance_sentence,
        line_sentence,
        prediction_rows,
        runs_sentence,
    )
    from lmlab.methods.ladder.fitting.prepare import fitted, read_runs
    from lmlab.methods.ladder.tables.target import target_point

    table = read_runs(runs, data, estimator.step2_config_path)
    size, tokens, flops, measured = target_point(table, target, n, d)
    forecaster = fitted(table, data, estimator, forecast.seed)
    times = epochs or (1.0 if measured is None else measured.epochs)
    predictions = forecaster.predict_all(size, tokens, forecast.interval, flops, times)
    rows = prediction_rows(forecaster, predictions, measured)
    show(
        PREDICTION_COLUMNS,
        rows,
        output,
        f"N = {size:.4g}, D = {tokens:.4g}, {estimator.settings().name}",
        [each.to_json() for each in predictions],
    )
    print(line_sentence(forecaster, predictions, measured))
    print(distance_sentence(predictions[0]))
    print(runs_sentence(forecaster))


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
    from lmlab.methods.ladder.fitting.intervals import calibrate
    from lmlab.methods.ladder.fitting.prepare import prepared

    table, chosen, settings = prepared(runs, data, estimator)
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
    inside = f"inside {forecast.interval:.0%} intervals, %"
    columns = ["split", "fitted", "predicted", "mean error, points", "largest", inside]
    show(columns, rows, output, f"Backtests of {settings.name}")
    line = EstimatorSettings(name="line", members=(line_of(settings.members[0]),))
    simple = score(run_backtest(table, chosen, line))
    print(f"A line in logit accuracy on log compute, for comparison: {simple:.2f} points.")


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
    from lmlab.methods.ladder.analysis.present import variance_table
    from lmlab.methods.ladder.fitting.prepare import checked, choose_tasks, read_runs

    chosen = choose_tasks(data)
    table = checked(read_runs(runs, data), chosen, data)
    assert estimator.last_n_points is not None
    columns, rows, notes = variance_table(table, chosen, target, estimator.last_n_points)
    show(columns, rows, output, "Noise over checkpoints and between runs")
    print("\n".join(notes))


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

    table, chosen, settings = prepared(runs, data, estimator)
    rows: list[Sequence[Any]] = []
    for part in run_ablation(table, chosen, settings, only_target(table, target)):
        means = mean_errors(part.errors)
        shares = [
            None if means[key] is None else 100 * float(means[key] or 0) for key in ("relative", "step_1", "step_2")
        ]
        rows.append([part.name, len(part.runs), part.flops, means["absolute"], *shares])
    show(
        ["runs", "number", "FLOPs", "error, points", "chained, %", "step 1, %", "step 2, %"], rows, output, "Fewer runs"
    )


@app.command(
    epilog=example(
        "lmlab ladder decide runs.csv -s 1e9:100B -s 3e9:1T -s 7e9:4T --at-least mean=0.65 --price 2.5",
        "lmlab ladder decide -c final.json -s 7e9:4T -s 13e9:5T --at-least hellaswag=0.8 --sure 0.9",
    )
)
@with_runs
@with_preset
@with_forecast
@options(MeanOptions, "averaged")
@options(DecideOptions, "wanted")
def decide(
    data: RunsOptions,
    estimator: EstimatorOptions,
    forecast: ForecastOptions,
    averaged: MeanOptions,
    wanted: DecideOptions,
    runs: Runs = None,
    output: Output = None,
) -> None:
    """Several models that could be trained side by side: cost, forecast, the probability that each reaches what is
    wanted, and the cheapest that does.
    """
    from lmlab.methods.ladder.analysis.decide import decide as decide_between
    from lmlab.methods.ladder.analysis.present import decision_rows, decision_sentence, weights_of
    from lmlab.methods.ladder.fitting.prepare import fitted, read_runs
    from lmlab.methods.ladder.tables.target import named_numbers, parse_scenario

    targets = [parse_scenario(each) for each in wanted.scenario]
    thresholds = named_numbers(wanted.at_least, "--at-least", "TASK=ACCURACY", "hellaswag=0.8")
    forecaster = fitted(read_runs(runs, data), data, estimator, forecast.seed)
    weights = weights_of([forecaster], averaged)
    decision = decide_between(forecaster, targets, thresholds, wanted.sure, forecast.interval, forecast.seed, weights)
    columns, rows = decision_rows(decision, wanted)
    show(columns, rows, output, f"{len(rows)} scenarios, {estimator.settings().name}", asdict(decision))
    print(decision_sentence(decision, wanted.sure))


@app.command(
    epilog=example(
        "lmlab ladder compare a.csv b.csv -n 7e9 -d 4T", "lmlab ladder compare a.csv b.csv c.csv -n 7e9 -d 4T"
    )
)
@options(RunsOptions, "data", exclude=("config_path", "drop_bad_rows", "allow_unfinished", "root", "family"))
@with_preset
@with_forecast
@options(MeanOptions, "averaged")
def compare(
    recipes: Annotated[list[Path], typer.Argument(help="Run tables, one a recipe: two or more.")],
    n: Annotated[float, typer.Option("-n", "--n", help="Parameters of the target.")],
    d: Annotated[str, typer.Option("-d", "--d", help="Its tokens.")],
    data: RunsOptions,
    estimator: EstimatorOptions,
    forecast: ForecastOptions,
    averaged: MeanOptions,
    output: Output = None,
) -> None:
    """Which of several recipes will be best at a target: of two the difference task by task, of more their order; with
    probabilities.
    """
    from lmlab.methods.ladder.analysis.compare import compare as compare_ladders
    from lmlab.methods.ladder.analysis.decide import rank
    from lmlab.methods.ladder.analysis.present import (
        DIFFERENCE_COLUMNS,
        difference_rows,
        orders_sentence,
        rank_table,
        weights_of,
    )
    from lmlab.methods.ladder.fitting.prepare import fitted, read_runs
    from lmlab.methods.ladder.rungs.plan import parse_length

    if len(recipes) < 2:
        raise UserError("A comparison needs two run tables or more.", "lmlab ladder compare a.csv b.csv -n 7e9 -d 4T")
    if len(set(map(str, recipes))) < len(recipes):
        raise UserError("A run table is named twice.")
    tokens = parse_length(d, n)
    ladders = {str(path): fitted(read_runs(path), data, estimator, forecast.seed) for path in recipes}
    weights = weights_of(list(ladders.values()), averaged)
    if len(recipes) == 2:
        one, two = ladders.values()
        rows = difference_rows(compare_ladders(one, two, n, tokens, forecast.interval, weights))
        columns = [each.format(level=f"{forecast.interval:.0%}") for each in DIFFERENCE_COLUMNS]
        show(columns, rows, output, f"{recipes[0]} and {recipes[1]}")
        return
    ranking = rank(ladders, n, tokens, forecast.interval, forecast.seed, weights)
    columns, rows = rank_table(ranking, forecast.interval)
    show(columns, rows, output, f"{len(rows)} recipes at N = {n:.4g}, D = {tokens:.4g}", asdict(ranking))
    print(orders_sentence(ranking))


@app.command(
    epilog=example(
        "lmlab ladder follow runs.csv --run 7B-4T -d 4T",
        "lmlab ladder follow runs.csv --run 1B-10xC --at 0.5",
    )
)
@with_runs
@with_preset
@with_forecast
def follow(
    data: RunsOptions,
    estimator: EstimatorOptions,
    forecast: ForecastOptions,
    run: Annotated[str, typer.Option("--run", help="The run under way: its name in the table.")],
    runs: Runs = None,
    d: Annotated[
        str | None, typer.Option("-d", "--d", help="Tokens at its end; default: what is planned.", show_default=False)
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(help="Look back: as if only this share of a finished run had been seen.", show_default=False),
    ] = None,
    output: Output = None,
) -> None:
    """Forecast the end of a run under way, from smaller finished runs and from what it has shown so far."""
    from lmlab.methods.ladder.analysis.follow import cut_off, without_run
    from lmlab.methods.ladder.analysis.follow import follow as follow_run
    from lmlab.methods.ladder.analysis.present import FOLLOWED_COLUMNS, followed_rows
    from lmlab.methods.ladder.fitting.prepare import fitted, read_runs
    from lmlab.methods.ladder.rungs.plan import parse_length

    table = read_runs(runs, data)
    under_way = table[run]
    end = parse_length(d, under_way.n) if d is not None else None
    if at is not None:
        under_way, end = cut_off(under_way, at), end or under_way.final_tokens
    forecaster = fitted(without_run(table, run), data, estimator, forecast.seed)
    found = follow_run(forecaster, under_way, end, forecast.interval)
    title = f"{run} after {found[0].seen:.0%} of its tokens, {estimator.settings().name}"
    show(FOLLOWED_COLUMNS, followed_rows(forecaster, found), output, title, [asdict(each) for each in found])
    if under_way.lr is None:
        print(f"The learning rate of '{run}' is not known: it is taken to decay as those of the ladder's runs did.")


@app.command(
    epilog=example(
        "lmlab ladder questions runs.csv --rows rows/ -n 7e9 -d 4T",
        "lmlab ladder questions runs.csv --rows rows/ -t 128k-2xC --groups 3",
    )
)
@with_runs
@with_preset
@with_forecast
def questions(
    data: RunsOptions,
    estimator: EstimatorOptions,
    forecast: ForecastOptions,
    rows: Annotated[
        Path, typer.Option("--rows", help="Folder with RUN.jsonl for each run: a row a question, as lmlab eval writes.")
    ],
    runs: Runs = None,
    n: Size = None,
    d: Length = None,
    target: Target = None,
    groups: Annotated[int, typer.Option(min=1, help="Groups of questions, by difficulty.")] = 4,
    output: Output = None,
) -> None:
    """Forecast a benchmark by the laws of its questions: groups of like difficulty, each by its own, and their sum."""
    from lmlab.methods.ladder.analysis.questions import forecast_by_difficulty, read_answers
    from lmlab.methods.ladder.fitting.checks import check
    from lmlab.methods.ladder.fitting.prepare import read_runs
    from lmlab.methods.ladder.tables.target import target_point

    table = read_runs(runs, data)
    size, tokens, flops, measured = target_point(table, target, n, d)
    table = check(table, [], drop_bad_rows=data.drop_bad_rows, allow_unfinished=data.allow_unfinished)
    names = [run.name for run in table.ladder] + ([] if measured is None else [measured.name])
    found = forecast_by_difficulty(
        table,
        read_answers(rows, names),
        size,
        tokens,
        groups,
        forecast.interval,
        estimator.preset,
        flops,
        None if measured is None else measured.name,
        forecast.seed,
    )
    columns = ["questions", "number", "smallest run, %", "largest run, %", "forecast, %", "from", "to", "measured, %"]
    shown: list[Sequence[Any]] = [
        [
            each.name,
            each.questions,
            *(round(100 * value, 1) for value in (each.smallest, each.largest, each.accuracy, each.lo, each.hi)),
            None if each.measured is None else round(100 * each.measured, 1),
        ]
        for each in found
    ]
    show(columns, shown, output, f"Groups of questions, the easiest first: N = {size:.4g}, D = {tokens:.4g}")


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
    from lmlab.methods.ladder.fitting.prepare import fitted, read_runs
    from lmlab.methods.ladder.report import write_report
    from lmlab.methods.ladder.tables.target import target_point

    table = read_runs(runs, data)
    size, tokens, flops, measured = target_point(table, target, n, d)
    forecaster = fitted(table, data, estimator, forecast.seed)
    for path in write_report(forecaster, size, tokens, flops, measured, forecast.interval, output):
        print(path)
