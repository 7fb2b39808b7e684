"""A page about a ladder: forecasts, curves with bands, warnings, distance, the predictability of each benchmark, and
the next run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.methods.ladder.analysis.backtest import SplitResult, backtest
from lmlab.methods.ladder.analysis.design import optimal_size
from lmlab.methods.ladder.analysis.diagnose import name_of, outcome_of, units
from lmlab.methods.ladder.analysis.next_run import next_runs
from lmlab.methods.ladder.fitting.chain import Chain
from lmlab.methods.ladder.fitting.forecast import Forecaster, Prediction
from lmlab.methods.ladder.fitting.logits import inverse_logit, logit
from lmlab.methods.ladder.fitting.points import logs
from lmlab.methods.ladder.presenting.cards import cards
from lmlab.methods.ladder.presenting.digits import level_text
from lmlab.methods.ladder.presenting.parameters import PARAMETER_COLUMNS, parameter_rows
from lmlab.methods.ladder.presenting.predictions import (
    distance_sentence,
    error_of,
    line_sentences,
    measured_accuracy,
    measured_loss,
    prediction_columns,
    prediction_rows,
    runs_sentence,
    untold_sentences,
)
from lmlab.methods.ladder.tables import write as tables
from lmlab.methods.ladder.tables.table import Floats, Run
from lmlab.reports import (
    Details,
    Facts,
    Figure,
    Note,
    Page,
    Paragraph,
    Section,
    Series,
    Table,
    escape_label,
    line_chart,
)
from lmlab.stats import percentiles

TABLES_BESIDE = (".csv", ".tex")  # the table of forecasts, beside the page
_BAND_POINTS = 40  # of a curve: enough to look smooth, few enough for a page with many figures


def write_report(
    forecaster: Forecaster, n: float, d: float, flops: float | None, measured: Run | None, level: float, output: Path
) -> list[Path]:
    """Write the page, and the table of forecasts beside it as CSV and LaTeX."""
    epochs = 1.0 if measured is None else measured.epochs
    predictions = forecaster.predict_all(n, d, level, flops, epochs)
    rows = prediction_rows(forecaster, predictions, measured)
    sections = [
        _forecast_section(forecaster, predictions, rows, measured),
        _curves_section(forecaster, n, d, flops, measured, level),
        _trust_section(forecaster, predictions),
        _cards_section(forecaster),
        _next_section(forecaster, predictions, n, d, flops),
        _how_section(forecaster),
    ]
    subtitle = (
        f"Estimator {forecaster.ensemble.settings.name}, {len(forecaster.fitted_runs)} runs, a target of"
        f" {_count(n)} parameters and {_count(d)} tokens"
    )
    page = Page(
        "What the ladder predicts",
        subtitle,
        [each for each in sections if each],
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    beside = [output.with_suffix(suffix) for suffix in TABLES_BESIDE]
    for path in beside:
        tables.write(path, prediction_columns(forecaster), rows)
    return [page.write(output), *beside]


def _forecast_section(
    forecaster: Forecaster, predictions: Sequence[Prediction], rows: list[list[Any]], measured: Run | None
) -> Section:
    level = predictions[0].level
    titles = [task.title for task in forecaster.tasks]
    blocks: list[Any] = [
        Figure(
            _interval_figure(forecaster, predictions, measured),
            f"Forecasts with {level_text(level)} intervals.",
            "Forecast accuracies",
        )
    ]
    if measured is not None:
        actual = [measured_accuracy(forecaster, task, measured) for task in forecaster.tasks]
        known = [(each, value) for value, each in zip(actual, predictions, strict=True) if value is not None]
        width = float(np.mean([100 * (each.hi - each.lo) for each in predictions]))
        facts = {"Mean width": f"{width:.1f} points"}
        if known:
            errors = [error for each, value in known if (error := error_of(each, value)) is not None]
            inside = sum(each.lo <= value <= each.hi for each, value in known)
            facts = {"Outcomes inside": f"{inside} of {len(known)}", **facts}
            if errors:
                facts = {"Mean error": f"{np.mean(errors):.2f} points", **facts}
        blocks.insert(0, Facts(facts))
    blocks.append(
        _forecast_table(outcome_of(forecaster.ensemble.settings.members[0]), rows, level, measured is not None)
    )
    blocks[:0] = [Note(each, "warning") for each in untold_sentences(forecaster, predictions)]
    blocks += [Paragraph(each) for each in line_sentences(forecaster, predictions, measured)]
    shares = [
        [title, *(f"{each.parts.get(part, 0):.0%}" for part in ("fit", "run", "curve", "form"))]
        for title, each in zip(titles, predictions, strict=True)
    ]
    sources = Table(
        ["task", "fit", "target's own run", "curve and questions", "form of the law"],
        shares,
        "Shares of the variance.",
    )
    blocks.append(Details("Where the uncertainty comes from", [sources]))
    if len(forecaster.ensemble.chains) > 1:
        blocks.append(Details("What each chain says", [_chains_table(forecaster, predictions)]))
    return Section("Forecast", blocks, f"{distance_sentence(predictions[0])} {runs_sentence(forecaster)}")


def _forecast_table(name: str, rows: Sequence[Sequence[Any]], level: float, measured: bool) -> Table:
    """The rows of `prediction_rows` as narrow as a page: bounds in one cell, the unit beside them, no notes."""
    columns = [
        "task",
        "loss",
        f"{level_text(level)} interval of the loss",
        f"{name}, %",
        f"{level_text(level)} interval, %",
    ]
    found: list[list[Any]] = []
    for task, loss, loss_from, loss_to, unit, accuracy, low, high, actual, error, _ in rows:
        bounds = None if loss_from is None else f"{loss_from:g} to {loss_to:g} {unit}"
        found.append([task, loss, bounds, accuracy, None if low is None else f"{low:.1f} to {high:.1f}"])
        if measured:
            found[-1] += [actual, error]
    return Table(columns + (["measured, %", "error, points"] if measured else []), found)


def _chains_table(forecaster: Forecaster, predictions: Sequence[Prediction]) -> Table:
    """Every chain's own quantity and accuracy; the forecast is the mean of their logits."""
    rows = []
    for task, each in zip(forecaster.tasks, predictions, strict=True):
        for name, chain in each.diagnostics["chains"].items():
            loss, lo, hi = (chain["loss"][key] for key in ("value", "lo", "hi"))
            rows.append(
                [
                    task.title,
                    name,
                    None if loss is None else f"{loss:.4g} [{lo:.4g}, {hi:.4g}] {chain['unit']}",
                    f"{chain['accuracy']:.1%}",
                ]
            )
    return Table(
        ["task", "by way of", "quantity between the steps", outcome_of(forecaster.ensemble.settings.members[0])],
        rows,
        "The forecast is the mean in logits.",
    )


def _interval_figure(forecaster: Forecaster, predictions: Sequence[Prediction], measured: Run | None) -> Any:
    """Points with intervals, one task a line; where no accuracy is told, the interval alone."""
    import plotly.graph_objects as go

    titles = [escape_label(task.title) for task in forecaster.tasks]  # figures read tags in what they draw
    # A dot would be read as a forecast; the bar of an interval alone hangs on its middle.
    told = [not each.diagnostics["untold"] for each in predictions]
    values = [
        100 * (each.accuracy if known else (each.lo + each.hi) / 2)
        for each, known in zip(predictions, told, strict=True)
    ]
    figure = go.Figure()
    bars = {"array": [100 * each.hi - value for each, value in zip(predictions, values, strict=True)]}
    bars["arrayminus"] = [value - 100 * each.lo for each, value in zip(predictions, values, strict=True)]
    figure.add_trace(
        go.Scatter(
            x=values,
            y=titles,
            mode="markers",
            name="forecast",
            error_x={"type": "data", "thickness": 2, **bars},
            marker={"size": [9 if known else 0 for known in told]},
            hovertext=["" if known else "no accuracy is told: all runs are at chance" for known in told],
        )
    )
    if measured is not None:
        outcomes = [measured_accuracy(forecaster, task, measured) for task in forecaster.tasks]
        places = [None if value is None else 100 * value for value in outcomes]
        figure.add_trace(
            go.Scatter(x=places, y=titles, mode="markers", name="measured", marker={"symbol": "diamond", "size": 10})
        )
    figure.update_layout(
        height=120 + 38 * len(titles),
        xaxis={"title": f"{outcome_of(forecaster.ensemble.settings.members[0])}, %"},
        yaxis={"autorange": "reversed"},
        showlegend=measured is not None,
    )
    return figure


def _curves_section(
    forecaster: Forecaster, n: float, d: float, flops: float | None, measured: Run | None, level: float
) -> Section:
    """Both steps of the first chain for each task."""
    chain = forecaster.ensemble.chains[0]
    replicates = forecaster.ensemble.replicates[0] if forecaster.ensemble.replicates else None
    blocks: list[Any] = []
    for place, task in enumerate(forecaster.tasks):
        figures = [
            Figure(
                _first_step_figure(forecaster, chain, place, n, d, flops, measured, level),
                "The law along runs of one size; the target's dashed.",
            )
        ]
        if chain.second is not None:
            figures.append(
                Figure(
                    _second_step_figure(chain, replicates, place, level),
                    "Checkpoints of all runs, and the fitted curve with its band.",
                )
            )
        blocks.append(figures if place == 0 else Details(task.title, figures))
    first, rest = blocks[0], blocks[1:]
    shown = [Paragraph(f"{forecaster.tasks[0].title} first; the other tasks unfold below."), *first, *rest]
    return Section("Fitted curves", shown, f"The chain by way of {name_of(chain.settings)}.")


def _first_step_figure(
    forecaster: Forecaster,
    chain: Chain,
    place: int,
    n: float,
    d: float,
    flops: float | None,
    measured: Run | None,
    level: float,
) -> Any:
    series = []
    # On the scale of the split that is predicted, as all printed figures are.
    scale = float(np.exp(chain.points.loss_offset_T[place])) if chain.settings.chained else 1.0
    y_R = chain.points.target(chain.settings.chained)[place] * scale
    known = {group[0]: float(value) for group, value in zip(chain.points.members, y_R, strict=True)}
    runs = [run for run in forecaster.table.ladder if run.name in known]
    for size in sorted({run.n for run in runs}):
        mine = sorted((run for run in runs if run.n == size), key=lambda run: run.final_tokens)
        series.append(
            Series(mine[0].size or _count(size), [run.final_tokens for run in mine], [known[run.name] for run in mine])
        )
    tokens = np.geomspace(min(run.final_tokens for run in runs), d * 1.05, _BAND_POINTS)
    x_3K = np.stack([logs(n, each, flops) for each in tokens], axis=1)
    low, high = _band(forecaster, x_3K, place, level, scale)
    law = (chain.loss(x_3K)[0, place] * scale).tolist()
    series.append(Series(f"law at {_count(n)}", tokens.tolist(), law, (low, high), dashed=True))
    actual = measured_loss(chain, place, measured)
    if measured is not None and actual is not None:
        series.append(Series("measured", [measured.final_tokens], [actual]))
    label = units(chain.settings.x) if chain.settings.chained else outcome_of(chain.settings)
    return line_chart(series, "tokens", f"{name_of(chain.settings)} ({label})", log_x=True)


def _band(
    forecaster: Forecaster, x_3K: Floats, place: int, level: float, scale: float
) -> tuple[list[float], list[float]]:
    """Limits of the replicates' laws."""
    replicates = forecaster.ensemble.replicates
    if not replicates:
        point = (forecaster.ensemble.chains[0].loss(x_3K)[0, place] * scale).tolist()
        return point, point
    low, high = percentiles(replicates[0].loss(x_3K)[:, place] * scale, level)
    return low.tolist(), high.tolist()


def _second_step_figure(chain: Chain, replicates: Chain | None, place: int, level: float) -> Any:
    points = chain.points
    losses, accuracies = points.loss_TK[place], points.accuracy_TK[place]
    if chain.settings.pool:  # to the split that is predicted, as the curve is
        accuracies = inverse_logit(logit(accuracies) + points.offset_T[place])
    scale = float(np.exp(points.loss_offset_T[place]))
    # beyond the best run, and without the first checkpoints
    grid = np.linspace(losses.min() * 0.75, np.quantile(losses, 0.98), _BAND_POINTS)
    loss_STK = np.broadcast_to(grid, (1, len(chain.tasks), len(grid)))
    curve = chain.accuracy_of(loss_STK)[0, place]
    low, high = curve, curve
    if replicates is not None:
        low, high = percentiles(replicates.accuracy_of(loss_STK)[:, place], level)
    figure = line_chart(
        [Series("curve", (grid * scale).tolist(), curve.tolist(), (low.tolist(), high.tolist()))],
        units(chain.settings.x),
        outcome_of(chain.settings),
    )
    chosen = np.linspace(0, len(losses) - 1, min(400, len(losses))).astype(int)  # dots; more make the page heavy
    marks = {"size": 4, "opacity": 0.35}
    figure.add_scatter(
        x=(losses[chosen] * scale).tolist(),
        y=accuracies[chosen].tolist(),
        mode="markers",
        name="checkpoints",
        marker=marks,
    )
    return figure


def _trust_section(forecaster: Forecaster, predictions: Sequence[Prediction]) -> Section | None:
    """Warnings, and errors of backtests by distance."""
    flagged = [
        [task.title, "; ".join(each.diagnostics["flags"])]
        for task, each in zip(forecaster.tasks, predictions, strict=True)
        if each.diagnostics["flags"]
    ]
    blocks: list[Any] = [Note(f"{each[0].upper()}{each[1:]}", "warning") for each in forecaster.warnings]
    if flagged:
        blocks.append(
            Table(["task", "what to look at"], flagged, "Parameters that the runs do not determine, and other doubts.")
        )
    else:
        blocks.append(Note("No parameter is at a bound, no start disagrees with another.", "good"))
    if forecaster.calibration is not None:
        results = backtest(forecaster.table, forecaster.tasks, forecaster.ensemble.settings)
        coverage = forecaster.calibration.coverage(predictions[0].level)
        blocks += _backtest_blocks(forecaster, results, coverage, predictions[0].level)
    else:
        blocks.append(
            Note(
                "The ladder is too small for backtests: the width of the intervals rests on its noise alone.", "warning"
            )
        )
    return Section("How far to trust it", blocks)


def _backtest_blocks(
    forecaster: Forecaster, results: Sequence[SplitResult], coverage: dict[str, float], level: float
) -> list[Any]:
    rows: list[list[Any]] = [
        [each.split.name, len(each.split.fitted), float(each.errors_TQ.mean()), f"{coverage[each.split.name]:.0%}"]
        for each in results
    ]
    rows.append(
        [
            "mean",
            None,
            float(np.mean([each.errors_TQ.mean() for each in results])),
            f"{np.mean(list(coverage.values())):.0%}",
        ]
    )
    table = Table(
        ["split", "runs fitted", "mean error, points", f"inside {level_text(level)} intervals"],
        rows,
        "Backtests inside the ladder; the intervals of each are calibrated on the others.",
    )
    flops = {run.name: run.flops for run in forecaster.table}
    distances, errors = [], []
    for each in results:
        largest = max(flops[name] for name in each.split.fitted)
        distances += [flops[name] / largest for name in each.split.predicted]
        errors += each.errors_TQ.mean(0).tolist()
    order = np.argsort(distances)
    chart = line_chart(
        [Series("mean over tasks", [distances[k] for k in order], [errors[k] for k in order])],
        "compute of the predicted run over the largest fitted",
        "error (points)",
        log_x=True,
    )
    chart.update_traces(mode="markers", marker={"size": 7})
    return [
        table,
        Figure(chart, "Each point is a run that was predicted from smaller or shorter ones.", "Error by distance"),
    ]


def _cards_section(forecaster: Forecaster) -> Section:
    noise = [f"{each}, points" for each in ("checkpoints", "runs", "questions", "signal")]
    columns = ["task", *noise, "step 1, %", "step 2, %", "advice"]
    rows = [
        [c.task, c.checkpoint_noise, c.run_noise, c.question_noise, c.signal, c.error_1, c.error_2, c.advice]
        for c in cards(forecaster)
    ]
    intro = (
        "Noise of accuracy (standard deviations), how far accuracy rises over the ladder, and how well both steps fit."
    )
    return Section("Which benchmarks can be predicted", [Table(columns, rows)], intro)


def _next_section(
    forecaster: Forecaster, predictions: Sequence[Prediction], n: float, d: float, flops: float | None
) -> Section | None:
    if not forecaster.ensemble.replicates:
        return None
    spent = sum(run.flops for run in forecaster.table.ladder)
    beyond = forecaster.beyond(forecaster.target(n, d, flops_per_token=flops))
    found = next_runs(forecaster.ensemble, n, d, flops, ladder_flops=spent, beyond=beyond, seed=forecaster.seed)[:6]
    rows = [
        [
            _count(each.n),
            f"{each.multiple:g}xC",
            _count(each.d),
            f"{each.flops:.3g}",
            f"{each.share:.1%}",
            f"{each.gain:.0%} ± {each.error:.0%}",
        ]
        for each in found
    ]
    columns = ["N", "length", "tokens", "FLOPs", "of the ladder's cost", "less squared error"]
    share = float(np.mean([each.parts.get("fit", 0.0) + each.parts.get("form", 0.0) for each in predictions]))
    advice = (
        "The first is the best for its cost."
        if found and found[0].worthwhile
        else "None of them is worth its cost: each takes away less than a twentieth, or than the simulation can tell."
    )
    blocks: list[Any] = [
        Table(
            columns,
            rows,
            f"What a further run would take from the squared error that comes from the fit and the form of the law"
            f" ({share:.0%} of all here), by fitting this estimator to simulated ladders with and without it; standard"
            " errors of the simulation.",
            align=["right"] * 6,
        ),
        Paragraph(advice),
    ]
    level = predictions[0].level
    best = optimal_size(forecaster.ensemble, 6 * n * d, level)
    if best is not None:
        blocks.append(
            Paragraph(
                f"The target's compute would be spent best on about {_count(best[0])} parameters"
                f" ({level_text(level)} interval over chains, tasks and replicates:"
                f" {_count(best[1])} to {_count(best[2])})."
            )
        )
    return Section("Which run to add", blocks)


def _how_section(forecaster: Forecaster) -> Section:
    rows, sentences = parameter_rows(forecaster)
    table = Table(PARAMETER_COLUMNS, [row[:-1] for row in rows])
    facts = {
        "Digest of the data": forecaster.table.ladder.digest[:8],
        "Seed": str(forecaster.seed),
        "Replicates": str(_replicates(forecaster)),
    }
    return Section(
        "How it was computed", [Facts(facts), Paragraph("\n\n".join(sentences)), Details("All parameters", [table])]
    )


def _replicates(forecaster: Forecaster) -> int:
    copies = forecaster.ensemble.replicates
    return len(copies[0].first.parameters_BP) // len(forecaster.tasks) if copies else 0


def _count(value: float) -> str:
    """1.28e9 as 1.28 B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}" if math.isfinite(value) else "unknown"
