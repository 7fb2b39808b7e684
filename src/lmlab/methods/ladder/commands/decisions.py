"""`lmlab ladder`: the commands that decide: between scenarios, between recipes, and about a run under way."""

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
from lmlab.methods.ladder.commands.shared import (
    Length,
    Output,
    Runs,
    Size,
    Target,
    read,
    say,
    say_of_runs,
    show,
    spare,
    with_forecast,
    with_preset,
    with_runs,
)
from lmlab.methods.ladder.config import DecideOptions, EstimatorOptions, ForecastOptions, MeanOptions, RunsOptions


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
    from lmlab.methods.ladder.analysis.decide import what_is_wanted
    from lmlab.methods.ladder.fitting.prepare import choose_tasks, fitted
    from lmlab.methods.ladder.presenting.decisions import decision_details, decision_rows, decision_sentence, weights_of
    from lmlab.methods.ladder.presenting.predictions import runs_sentence
    from lmlab.methods.ladder.tables.target import named_numbers, parse_scenario

    targets = [parse_scenario(each) for each in wanted.scenario]
    thresholds = named_numbers(wanted.at_least, "--at-least", "TASK=ACCURACY", "hellaswag=0.8")
    what_is_wanted(choose_tasks(data), targets, thresholds, wanted.sure)
    forecaster = fitted(read(runs, data, [output]), data, estimator, forecast.seed)
    weights = weights_of([forecaster], averaged)
    decision = decide_between(forecaster, targets, thresholds, wanted.sure, forecast.interval, forecast.seed, weights)
    columns, rows = decision_rows(decision, wanted, forecast.interval)
    title = f"{len(rows)} scenarios, {estimator.settings().name}"
    show(columns, rows, output, title, decision_details(decision, wanted) | {"level": forecast.interval})
    say(decision_sentence(decision, wanted.sure), runs_sentence(forecaster))


@app.command(
    epilog=example(
        "lmlab ladder compare a.csv b.csv -n 7e9 -d 4T", "lmlab ladder compare a.csv b.csv c.csv -n 7e9 -d 4T"
    )
)
@options(RunsOptions, "data", exclude=("config_path",))
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
    from lmlab.methods.ladder.analysis.decide import rank, require_different
    from lmlab.methods.ladder.fitting.prepare import choose_tasks, fitted
    from lmlab.methods.ladder.presenting.decisions import (
        DIFFERENCE_COLUMNS,
        difference_rows,
        orders_sentence,
        rank_table,
        weights_of,
    )
    from lmlab.methods.ladder.presenting.digits import level_text
    from lmlab.methods.ladder.rungs.plan import parse_length
    from lmlab.methods.ladder.tables.target import require_size

    if len(recipes) < 2:
        raise UserError("A comparison needs two run tables or more.", "lmlab ladder compare a.csv b.csv -n 7e9 -d 4T")
    if len({path.resolve() for path in recipes}) < len(recipes):
        raise UserError("A run table is named twice.")
    require_size(n)
    tokens = parse_length(d, n)
    choose_tasks(data)  # what cannot be is refused before the fits
    tables = {str(path): read(path, data, [output]) for path in recipes}
    require_different(tables)
    ladders = {}
    for name, table in tables.items():
        try:
            ladders[name] = fitted(table, data, estimator, forecast.seed)
        except UserError as error:
            if name in error.message:
                raise
            raise UserError(f"'{name}': {error.message}", error.remedy) from None
    weights = weights_of(list(ladders.values()), averaged)
    if len(recipes) == 2:
        one, two = ladders.values()
        differences = compare_ladders(one, two, n, tokens, forecast.interval, weights)
        columns = [each.format(level=level_text(forecast.interval)) for each in DIFFERENCE_COLUMNS]
        title = f"A: {recipes[0]}, B: {recipes[1]}, at N = {n:.4g}, D = {tokens:.4g}"
        show(columns, difference_rows(differences), output, title)
    else:
        ranking = rank(ladders, n, tokens, forecast.interval, forecast.seed, weights)
        columns, rows = rank_table(ranking, forecast.interval)
        details = asdict(ranking) | {"level": forecast.interval}
        show(columns, rows, output, f"{len(rows)} recipes at N = {n:.4g}, D = {tokens:.4g}", details)
        say(orders_sentence(ranking))
    say_of_runs(ladders, n, tokens, forecast.interval)


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
    from lmlab.methods.ladder.analysis.follow import checked_run, cut_off, schedule_doubt, without_run
    from lmlab.methods.ladder.analysis.follow import follow as follow_run
    from lmlab.methods.ladder.fitting.prepare import fitted
    from lmlab.methods.ladder.presenting.digits import level_text
    from lmlab.methods.ladder.presenting.followed import FOLLOWED_COLUMNS, followed_rows
    from lmlab.methods.ladder.presenting.predictions import runs_sentence
    from lmlab.methods.ladder.rungs.plan import parse_length

    table = read(runs, data, [output])
    under_way = table[run]
    end = parse_length(d, under_way.n) if d is not None else None
    if at is not None:
        under_way, end = cut_off(under_way, at), end or under_way.final_tokens
    forecaster = fitted(without_run(table, run), data, estimator, forecast.seed)
    under_way = checked_run(forecaster, under_way, data.drop_bad_rows)
    found = follow_run(forecaster, under_way, end, forecast.interval)
    level = {"level": forecast.interval}
    title = (
        f"{run} after {found[0].seen:.0%} of its tokens, {estimator.settings().name},"
        f" {level_text(forecast.interval)} intervals"
    )
    show(FOLLOWED_COLUMNS, followed_rows(forecaster, found), output, title, [asdict(each) | level for each in found])
    doubt = schedule_doubt(forecaster, under_way, found[0].seen)
    say(*([doubt] if doubt else []), runs_sentence(forecaster))


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
    from lmlab.methods.ladder.analysis.questions import forecast_by_difficulty, read_answers, untold_sentence
    from lmlab.methods.ladder.checking.checks import check
    from lmlab.methods.ladder.presenting.digits import level_text, percent
    from lmlab.methods.ladder.tables.target import target_point

    table = read(runs, data, [output])
    table = check(table, [], drop_bad_rows=data.drop_bad_rows, allow_unfinished=data.allow_unfinished)
    size, tokens, flops, measured = target_point(table, target, n, d)
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
    if output is not None:
        spare(rows.rglob("*.jsonl"), [output])
    columns = ["questions", "number", "smallest run, %", "largest run, %", "forecast, %", "from, %", "to, %"]
    columns.append("measured, %")
    shown: list[Sequence[Any]] = [
        [
            each.name,
            each.questions,
            *(percent(value) for value in (each.smallest, each.largest, each.accuracy, each.lo, each.hi)),
            percent(each.measured),
        ]
        for each in found
    ]
    title = f"Groups of questions, the easiest first: N = {size:.4g}, D = {tokens:.4g}"
    show(columns, shown, output, title, [asdict(each) for each in found])
    say(*untold_sentence(found))
    say(f"{found[0].where.capitalize()}; {level_text(forecast.interval)} intervals, which no backtests calibrate.")
