"""`lmlab ladder`: plan and train ladders of small models, predict large ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.options import DryRun, example
from lmlab.errors import UserError
from lmlab.methods.ladder.cli_runs import checked, choose_estimator, choose_tasks, fitted, read_runs, show

app = typer.Typer(
    no_args_is_help=True, help="Model ladders: train small models, predict a large one's task accuracy, with intervals."
)

Runs = Annotated[
    Path | None,
    typer.Argument(
        help="Run table (.csv, .parquet), folder of `collect`, or the reference's .json.", show_default=False
    ),
]
Config = Annotated[
    Path | None, typer.Option("-c", "--config-path", help="The same as the argument.", show_default=False)
]
Tasks = Annotated[str, typer.Option("-k", "--tasks", help="Tasks by name, separated by commas, or main, main+, all.")]
TaskFile = Annotated[
    Path | None, typer.Option("--task-file", help="Tasks of your own: TOML or JSON.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", "--output-path", help="Write the table: .csv, .md, .tex, .json.", show_default=False
    ),
]
Preset = Annotated[str, typer.Option("--preset", help="recommended, paper, flops, single, power, c4 or taskce.")]
X = Annotated[
    str | None,
    typer.Option("-x", "--x", help="Between the steps: bpb, c4, taskce, validation, or a column.", show_default=False),
]
Y = Annotated[
    str | None, typer.Option("-y", "--y", help="rc_acc, or mc_acc for answers by letter.", show_default=False)
]
Law = Annotated[str | None, typer.Option("--law", help="nd, flops, single or power.", show_default=False)]
MovingAverage = Annotated[
    int | None, typer.Option("--moving-avg", "--moving_avg", min=1, help="Checkpoints to average.", show_default=False)
]
Skip = Annotated[
    float | None,
    typer.Option(
        "--skip-perc", "--skip_perc", min=0, max=0.99, help="Share left out of the second step.", show_default=False
    ),
]
Last = Annotated[
    int | None,
    typer.Option(
        "--last-n-points", "--last_n_points", min=1, help="Checkpoints that stand for a run.", show_default=False
    ),
]
LogSigmoid = Annotated[
    bool, typer.Option("--use-log-sigmoid", "--use_log_sigmoid", help="The log-sigmoid in the second step.")
]
Step2 = Annotated[
    Path | None, typer.Option("--step2-config-path", help="Other runs for the second step.", show_default=False)
]
DropBad = Annotated[bool, typer.Option("--drop-bad-rows", help="Drop rows with values that cannot be, and count them.")]
Unfinished = Annotated[bool, typer.Option("--allow-unfinished", help="Fit runs that have not come to their end.")]
Root = Annotated[
    list[Path] | None,
    typer.Option("--root", help="Further folder that a configuration may read from.", show_default=False),
]
Level = Annotated[float, typer.Option("--interval", help="Share of outcomes that intervals are to hold.")]
Seed = Annotated[int, typer.Option(help="Of the replicates.")]
Target = Annotated[str | None, typer.Option("-t", "--target", help="Target of the table.", show_default=False)]


@app.command(
    epilog=example(
        "lmlab ladder plan --sizes 190M,370M,760M,1B",
        "lmlab ladder plan tiny.yaml --budget 1e13",
        "lmlab ladder plan --output p.yaml",
    )
)
def plan(
    plan_file: Annotated[
        Path | None, typer.Argument(help="Plan, a YAML file; without it the published ladder.", show_default=False)
    ] = None,
    sizes: Annotated[str, typer.Option(help="Sizes of the published ladder.")] = "190M,370M,760M,1B",
    multiples: Annotated[str, typer.Option(help="Lengths as multiples of 20 tokens a parameter.")] = "1,2,5,10",
    budget: Annotated[
        float | None, typer.Option(help="FLOPs; larger and longer runs are given up.", show_default=False)
    ] = None,
    flops_per_second: Annotated[float, typer.Option(help="Of one device, for the hours.")] = 4e14,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the plan as YAML.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Show the runs of a ladder: parameters, tokens, FLOPs, learning rate, batch, steps and hours."""
    import yaml

    from lmlab.files import write_text
    from lmlab.methods.ladder.rungs.plan import fit_budget, plan_rows

    found = _plan(plan_file, sizes, multiples)
    if budget is not None:
        found = fit_budget(found, budget)
    rows = plan_rows(found, flops_per_second)
    total = sum(float(row["FLOPs"]) for row in rows)
    show(
        list(rows[0]), [list(row.values()) for row in rows], None, f"{found.name}: {len(rows)} runs, {total:.3g} FLOPs"
    )
    if output is not None and not dry_run:
        write_text(
            output,
            yaml.safe_dump(
                found.model_dump(mode="json", exclude_none=True) | {"sizes": _shapes(found)}, sort_keys=False
            ),
        )
        print(f"{output}: train it with lmlab ladder run {output}")


@app.command(
    epilog=example(
        "lmlab ladder run tiny.yaml --out runs/tiny",
        "lmlab ladder run tiny.yaml --rung 16k-1xC --dry-run",
        "lmlab ladder run big.yaml --launcher slurm --out runs/big",
    )
)
def run(
    plan_file: Annotated[Path, typer.Argument(help="Plan, a YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="Directory that gets a run for each rung.")] = Path("runs/ladder"),
    rung: Annotated[
        list[str] | None, typer.Option("--rung", help="Only this run; may be repeated.", show_default=False)
    ] = None,
    launcher: Annotated[
        str, typer.Option(help="local, ray, torchrun (prints the commands) or slurm (writes job files).")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once.", show_default=False)] = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs of each run, for Ray; of a machine, for torchrun and Slurm.")
    ] = 0,
    dry_run: DryRun = False,
) -> None:
    """Train a ladder, or some of its rungs. Finished ones are skipped; those that were cut off go on."""
    from lmlab.methods.ladder.rungs.train import train_rungs

    if launcher not in ("local", "ray", "torchrun", "slurm"):
        raise UserError(f"Unknown launcher '{launcher}'.", "Use local, ray, torchrun or slurm.")
    found = _plan(plan_file, "", "")
    if dry_run:
        plan(plan_file, dry_run=True)
    elif launcher in ("local", "ray"):
        train_rungs(found, out, rung or (), workers, "ray" if launcher == "ray" else "processes", gpus)
        print(f"Runs: {out}\nCollect them: lmlab ladder collect {out} --output {out}/runs.csv")
    else:
        _write_jobs(found, out, rung or (), launcher, int(gpus) or 1)


@app.command(epilog=example("lmlab ladder collect runs/tiny --target 128k-2xC --output runs/tiny/runs.csv"))
def collect(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders of runs, run tables, CSV files of one run, or the reference's .json.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Run table: .csv or .parquet.")] = Path("runs.csv"),
    target: Annotated[
        list[str] | None,
        typer.Option("-t", "--target", help="A run that is a target; may be repeated.", show_default=False),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            help="N of exported runs, which do not tell it: NAME=N, for runs called NAME or NAME-...; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Put what runs measured into one table, one row a checkpoint."""
    from lmlab.methods.ladder.rungs.train import collect as collect_runs
    from lmlab.methods.ladder.tables.read import write_table

    table = collect_runs(paths, target or (), _sizes(size or ()))
    write_table(table, output)
    rows = [[each.name, each.n, each.final_tokens, len(each), each.mode, each.unfinished or ""] for each in table]
    show(["run", "N", "D", "checkpoints", "mode", "unfinished"], rows, None, str(output))


def _sizes(given: Sequence[str]) -> dict[str, float]:
    """`NAME=N` as a mapping."""
    found = {}
    for each in given:
        name, sign, value = each.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name or not 0 < found[name] < float("inf"):
            raise UserError(
                f"--size {each}: write NAME=N, with a positive number of parameters.", "As in 190M=190354176."
            )
    return found


@app.command(
    epilog=example(
        "lmlab ladder fit runs.csv --preset paper -k main", "lmlab ladder fit runs.csv -x c4 --law nd -o fit.json"
    )
)
def fit(
    runs: Runs = None,
    config: Config = None,
    tasks: Tasks = "main",
    task_file: TaskFile = None,
    preset: Preset = "recommended",
    x: X = None,
    y: Y = None,
    law: Law = None,
    moving_avg: MovingAverage = None,
    skip_perc: Skip = None,
    last_n_points: Last = None,
    use_log_sigmoid: LogSigmoid = False,
    step2_config_path: Step2 = None,
    drop_bad_rows: DropBad = False,
    allow_unfinished: Unfinished = False,
    root: Root = None,
    output: Output = None,
) -> None:
    """Fit both steps, and show parameters with units, fit errors and what may be wrong."""
    from lmlab.methods.ladder.analysis.present import PARAMETER_COLUMNS, parameter_rows

    settings = choose_estimator(preset, x, y, law, moving_avg, skip_perc, last_n_points, use_log_sigmoid)
    forecaster = fitted(
        read_runs(runs, config, root, step2_config_path),
        tasks,
        task_file,
        settings,
        drop_bad_rows,
        allow_unfinished,
        calibrated=False,
    )
    rows, sentences = parameter_rows(forecaster)
    title = f"{forecaster.ensemble.settings.name}: {len(forecaster.table.ladder)} runs"
    show([*PARAMETER_COLUMNS, "notes"], rows, output, title, forecaster.to_json())
    print("\n".join(sentences))


@app.command(
    epilog=example(
        "lmlab ladder predict runs.csv -n 7e9 -d 4T --interval 0.9",
        "lmlab ladder predict -c final.json -t 7B-4T --preset paper",
    )
)
def predict(
    runs: Runs = None,
    config: Config = None,
    tasks: Tasks = "main",
    task_file: TaskFile = None,
    preset: Preset = "recommended",
    n: Annotated[
        float | None, typer.Option("-n", "--n", help="Parameters without the input embedding.", show_default=False)
    ] = None,
    d: Annotated[
        str | None, typer.Option("-d", "--d", help="Tokens: 4T, 100B, 20xC or a number.", show_default=False)
    ] = None,
    target: Target = None,
    interval: Level = 0.9,
    x: X = None,
    y: Y = None,
    law: Law = None,
    moving_avg: MovingAverage = None,
    skip_perc: Skip = None,
    last_n_points: Last = None,
    use_log_sigmoid: LogSigmoid = False,
    step2_config_path: Step2 = None,
    drop_bad_rows: DropBad = False,
    allow_unfinished: Unfinished = False,
    root: Root = None,
    seed: Seed = 0,
    output: Output = None,
) -> None:
    """Predict accuracies at a target with intervals, and set what was measured beside them where the table has it."""
    from lmlab.methods.ladder.analysis.present import PREDICTION_COLUMNS, distance_sentence, prediction_rows
    from lmlab.methods.ladder.tables.target import target_point

    settings = choose_estimator(preset, x, y, law, moving_avg, skip_perc, last_n_points, use_log_sigmoid)
    table = read_runs(runs, config, root, step2_config_path)
    size, tokens, flops, measured = target_point(table, target, n, d)
    forecaster = fitted(table, tasks, task_file, settings, drop_bad_rows, allow_unfinished, seed=seed)
    predictions = forecaster.predict_all(size, tokens, interval, flops)
    rows = prediction_rows(forecaster, predictions, measured)
    show(
        PREDICTION_COLUMNS,
        rows,
        output,
        f"N = {size:.4g}, D = {tokens:.4g}, {settings.name}",
        [each.to_json() for each in predictions],
    )
    print(distance_sentence(predictions[0]))


@app.command(
    epilog=example(
        "lmlab ladder backtest runs.csv", "lmlab ladder backtest -c final.json --preset paper -o backtest.csv"
    )
)
def backtest(
    runs: Runs = None,
    config: Config = None,
    tasks: Tasks = "main",
    task_file: TaskFile = None,
    preset: Preset = "recommended",
    interval: Level = 0.9,
    x: X = None,
    law: Law = None,
    drop_bad_rows: DropBad = False,
    allow_unfinished: Unfinished = False,
    root: Root = None,
    seed: Seed = 0,
    output: Output = None,
) -> None:
    """Fit parts of the ladder, predict the rest: errors, and how often intervals hold the outcome."""
    from lmlab.methods.ladder import backtest as run_backtest
    from lmlab.methods.ladder import score
    from lmlab.methods.ladder.fitting.forecast import available
    from lmlab.methods.ladder.fitting.intervals import calibrate

    chosen = choose_tasks(tasks, task_file)
    settings = choose_estimator(preset, x, None, law, None, None, None, False)
    table = checked(read_runs(runs, config, root, None), chosen, drop_bad_rows, allow_unfinished, settings)
    settings = available(settings, table, chosen)
    results = run_backtest(table, chosen, settings)
    coverage = calibrate(table, chosen, settings, seed=seed).coverage(interval)
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
    columns = ["split", "fitted", "predicted", "mean error, points", "largest", f"inside {interval:.0%} intervals, %"]
    show(columns, rows, output, f"Backtests of {settings.name}")


@app.command(epilog=example("lmlab ladder variance runs.csv -k main+", "lmlab ladder variance -c final.json -t 7B-4T"))
def variance(
    runs: Runs = None,
    config: Config = None,
    tasks: Tasks = "main+",
    task_file: TaskFile = None,
    target: Target = None,
    last_n_points: Last = 10,
    drop_bad_rows: DropBad = False,
    allow_unfinished: Unfinished = False,
    root: Root = None,
    output: Output = None,
) -> None:
    """Noise of each task over the last checkpoints of the largest run, between repeated runs, and its correlation with
    errors at a target.
    """
    from lmlab.methods.ladder.analysis.present import variance_table

    chosen = choose_tasks(tasks, task_file)
    table = checked(read_runs(runs, config, root, None), chosen, drop_bad_rows, allow_unfinished)
    columns, rows, notes = variance_table(table, chosen, target, last_n_points or 10)
    show(columns, rows, output, "Noise over checkpoints and between runs")
    print("\n".join(notes))


@app.command(epilog=example("lmlab ladder ablate -c final.json -t 7B-4T --preset paper"))
def ablate(
    runs: Runs = None,
    config: Config = None,
    tasks: Tasks = "main",
    task_file: TaskFile = None,
    preset: Preset = "paper",
    target: Target = None,
    drop_bad_rows: DropBad = False,
    allow_unfinished: Unfinished = False,
    root: Root = None,
    output: Output = None,
) -> None:
    """Leave out sizes, lengths, or the dearest runs, and see how the error at a target grows."""
    from lmlab.methods.ladder.analysis.ablate import ablate as run_ablation
    from lmlab.methods.ladder.fitting.forecast import available
    from lmlab.methods.ladder.tables.target import mean_errors, only_target

    chosen = choose_tasks(tasks, task_file)
    settings = choose_estimator(preset)
    table = checked(read_runs(runs, config, root, None), chosen, drop_bad_rows, allow_unfinished, settings)
    rows: list[Sequence[Any]] = []
    settings = available(settings, table, chosen)
    for part in run_ablation(table, chosen, settings, only_target(table, target)):
        means = mean_errors(part.errors)
        shares = [
            None if means[key] is None else 100 * float(means[key] or 0) for key in ("relative", "step_1", "step_2")
        ]
        rows.append([part.name, len(part.runs), part.flops, means["absolute"], *shares])
    show(
        ["runs", "number", "FLOPs", "error, points", "chained, %", "step 1, %", "step 2, %"], rows, output, "Fewer runs"
    )


@app.command(epilog=example("lmlab ladder compare a.csv b.csv -n 7e9 -d 4T"))
def compare(
    a: Annotated[Path, typer.Argument(help="Run table of one recipe.")],
    b: Annotated[Path, typer.Argument(help="Run table of the other.")],
    n: Annotated[float, typer.Option("-n", "--n", help="Parameters of the target.")],
    d: Annotated[str, typer.Option("-d", "--d", help="Its tokens.")],
    tasks: Tasks = "main",
    task_file: TaskFile = None,
    preset: Preset = "recommended",
    interval: Level = 0.9,
    seed: Seed = 0,
    output: Output = None,
) -> None:
    """Which of two recipes will be better at a target, with the probability of it."""
    from lmlab.methods.ladder.analysis.compare import compare as compare_ladders
    from lmlab.methods.ladder.rungs.plan import parse_length

    one, two = (
        fitted(read_runs(path, None, None, None), tasks, task_file, choose_estimator(preset), False, False, seed=seed)
        for path in (a, b)
    )
    rows = [
        [
            each.task,
            100 * each.a,
            100 * each.b,
            100 * each.difference,
            f"{100 * each.lo:.1f} to {100 * each.hi:.1f}",
            each.b_better,
        ]
        for each in compare_ladders(one, two, n, parse_length(d, n), interval)
    ]
    show(
        ["task", "A, %", "B, %", "B - A, points", f"{interval:.0%} interval", "probability that B is better"],
        rows,
        output,
        f"{a} and {b}",
    )


@app.command(
    epilog=example(
        "lmlab ladder report runs.csv -n 7e9 -d 4T -o report.html",
        "lmlab ladder report -c final.json -t 7B-4T -o out/report.html",
    )
)
def report(
    runs: Runs = None,
    config: Config = None,
    tasks: Tasks = "main",
    task_file: TaskFile = None,
    preset: Preset = "recommended",
    n: Annotated[float | None, typer.Option("-n", "--n", help="Parameters of the target.", show_default=False)] = None,
    d: Annotated[str | None, typer.Option("-d", "--d", help="Its tokens.", show_default=False)] = None,
    target: Target = None,
    interval: Level = 0.9,
    drop_bad_rows: DropBad = False,
    allow_unfinished: Unfinished = False,
    root: Root = None,
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Page; the tables go beside it as CSV and LaTeX.")
    ] = Path("ladder.html"),
) -> None:
    """Write a page: forecasts with intervals, curves with bands, warnings, predictability of each task, and which run
    to add.
    """
    from lmlab.methods.ladder.report import write_report
    from lmlab.methods.ladder.tables.target import target_point

    table = read_runs(runs, config, root, None)
    size, tokens, flops, measured = target_point(table, target, n, d)
    forecaster = fitted(table, tasks, task_file, choose_estimator(preset), drop_bad_rows, allow_unfinished, seed=seed)
    for path in write_report(forecaster, size, tokens, flops, measured, interval, output):
        print(path)


@app.command(name="size", epilog=example("lmlab ladder size 190M", "lmlab ladder size runs/demo/model/model"))
def size_command(
    model: Annotated[str, typer.Argument(help="Size of the published ladder, or a model's directory.")],
) -> None:
    """Parameters as ladders count them: without the input embedding, with the head."""
    from lmlab.methods.ladder.rungs.plan import size_of

    print(f"{size_of(_shape(model)):,}")


@app.command(name="flops", epilog=example("lmlab ladder flops 190M --length 1xC"))
def flops_command(
    model: Annotated[str, typer.Argument(help="Size of the published ladder, or a model's directory.")],
    length: Annotated[str | None, typer.Option(help="Tokens: 1xC, 100B, 4T.", show_default=False)] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens of a row.")] = 4096,
) -> None:
    """Training FLOPs of a token, and of a run."""
    from lmlab.methods.ladder.rungs.plan import flops_per_token, parse_length, size_of

    shape = _shape(model)
    per_token = flops_per_token(shape, seq_len)
    print(
        f"{per_token:,} a token"
        + (f", {per_token * parse_length(length, size_of(shape)):.4g} in all" if length else "")
    )


def _shape(name: str) -> Any:
    from lmlab.methods.ladder.rungs.plan import olmo_size

    if Path(name).exists():
        from lmlab.runs import Model

        return Model.find(name).config
    return olmo_size(name)


def _plan(path: Path | None, sizes: str, multiples: str) -> Any:
    from lmlab.config import validate
    from lmlab.files import read_yaml
    from lmlab.methods.ladder.rungs.plan import LadderPlan

    if path is not None:
        return validate(LadderPlan, read_yaml(path), f"'{path}'")
    data = {
        "name": "published ladder",
        "sizes": dict.fromkeys(sizes.split(",")),
        "multiples": [each.strip() for each in multiples.split(",")],
    }
    return validate(LadderPlan, data, "the command line")


def _shapes(found: Any) -> dict[str, Any]:
    return {
        name: None if shape is None else shape.model_dump(mode="json", exclude_none=True)
        for name, shape in found.sizes.items()
    }


def _write_jobs(found: Any, out: Path, names: Sequence[str], launcher: str, gpus: int) -> None:
    """One recipe a rung, and for Slurm its job file."""
    import shlex

    from lmlab.launch.slurm import write_jobs
    from lmlab.methods.ladder.rungs.train import rung_runs, write_facts
    from lmlab.runs.many import write_recipes

    runs = rung_runs(found, names)
    write_facts(found, out, names)
    if launcher == "slurm":
        for job in write_jobs(runs, out, gpus_per_node=gpus):
            print(f"sbatch {job}")
        return
    for command in write_recipes(runs, out):
        print(f"torchrun --nproc-per-node {gpus} -m lmlab {shlex.join(command)}")
