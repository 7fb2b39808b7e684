"""`lmlab ladder`: plan and train ladders of small models, predict large ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import DryRun, example
from lmlab.errors import UserError
from lmlab.methods.ladder.commands.shared import files_of, place_for, say, show, spare
from lmlab.methods.ladder.config import DecideOptions, LadderPlan
from lmlab.runs.loading import AtOnce

app = typer.Typer(
    no_args_is_help=True, help="Model ladders: train small models, predict a large one's task accuracy, with intervals."
)


@app.command(
    epilog=example(
        "lmlab ladder plan --sizes 190M,370M,760M,1B",
        "lmlab ladder plan recipes/ladder-laptop.yaml --budget 1e14",
        "lmlab ladder plan --output p.yaml",
    )
)
@options(DecideOptions, "device", only=("flops_per_second",))
def plan(
    device: DecideOptions,
    plan_file: Annotated[
        Path | None, typer.Argument(help="Plan, a YAML file; without it the published ladder.", show_default=False)
    ] = None,
    sizes: Annotated[str, typer.Option(help="Sizes of the published ladder.")] = "190M,370M,760M,1B",
    multiples: Annotated[str, typer.Option(help="Lengths as multiples of 20 tokens a parameter.")] = "1,2,5,10",
    budget: Annotated[
        float | None, typer.Option(help="FLOPs; larger and longer runs are given up.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write the plan as YAML.",
            show_default=False,
            callback=place_for("a plan", ".yaml", ".yml"),
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Show the runs of a ladder: parameters, tokens, FLOPs, learning rate, batch, steps and hours."""
    import yaml

    from lmlab.files import write_text
    from lmlab.methods.ladder.rungs.plan import fit_budget

    if plan_file is not None:
        spare([plan_file], [output])
    full = found = _plan(plan_file, sizes, multiples)
    if budget is not None:
        found = fit_budget(full, budget)
    _show_plan(found, device.flops_per_second)
    if budget is not None:
        kept = {each.name: each.flops for each in found.rungs()}
        given_up = ", ".join(each.name for each in full.rungs() if each.name not in kept) or "none"
        spent = sum(kept.values())
        say(f"{spent:.3g} of {budget:.3g} FLOPs are spent, {spent / budget:.0%}. Runs given up: {given_up}.")
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
@options(AtOnce, "how", notes={"gpus": "Of a machine, for torchrun."})
def run(
    plan_file: Annotated[Path, typer.Argument(help="Plan, a YAML file.")],
    how: AtOnce,
    out: Annotated[Path, typer.Option("--out", help="Directory that gets a run for each rung.")] = Path("runs/ladder"),
    rung: Annotated[
        list[str] | None, typer.Option("--rung", help="Only this run; may be repeated.", show_default=False)
    ] = None,
    launcher: Annotated[
        str, typer.Option(help="local, ray, torchrun (prints the commands) or slurm (writes job files).")
    ] = "local",
    dry_run: DryRun = False,
) -> None:
    """Train a ladder, or some of its rungs. Finished ones are skipped; those that were cut off go on."""
    from lmlab.methods.ladder.rungs.train import train_rungs

    if launcher not in ("local", "ray", "torchrun", "slurm"):
        raise UserError(f"Unknown launcher '{launcher}'.", "Use local, ray, torchrun or slurm.")
    found = _plan(plan_file, "", "")
    if dry_run:
        _show_plan(found, DecideOptions().flops_per_second)
    elif launcher in ("local", "ray"):
        train_rungs(found, out, rung or (), how.workers, "ray" if launcher == "ray" else "processes", how.gpus)
        print(f"Runs: {out}\nCollect them: lmlab ladder collect {out} --output {out}/runs.csv")
    else:
        _write_jobs(found, out, rung or (), launcher, int(how.gpus) or 1)


@app.command(epilog=example("lmlab ladder collect runs/tiny --target 128k-2xC --output runs/tiny/runs.csv"))
def collect(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders of runs, run tables, CSV files of one run, or the reference's .json.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Run table: .csv or .parquet.",
            callback=place_for("a run table", ".csv", ".parquet"),
        ),
    ] = Path("runs.csv"),
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
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--batch",
            help="Tokens of a step, for exports that tell steps only: NAME=TOKENS, as --size; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Put what runs measured into one table, one row a checkpoint."""
    from lmlab.methods.ladder.rungs.train import collect as collect_runs
    from lmlab.methods.ladder.tables.own_table import write_table

    spare([path for path in paths if path.is_file()], [output])
    table = collect_runs(
        paths, target or (), _counts(size or (), "--size", "parameters"), _counts(batch or (), "--batch", "tokens")
    )
    spare(files_of(table), [output])  # a configuration lists more files than are named here
    write_table(table, output)
    rows = [
        [each.name, each.n if math.isfinite(each.n) else None, each.final_tokens, len(each), each.mode, each.unfinished]
        for each in table
    ]
    show(["run", "N", "D", "checkpoints", "mode", "unfinished"], rows, None, str(output))


def _counts(given: Sequence[str], option: str, what: str) -> dict[str, float]:
    """`NAME=N` as a mapping."""
    from lmlab.methods.ladder.tables.target import named_numbers

    found = named_numbers(given, option, f"NAME=N, with a positive number of {what}", "190M=190354176")
    for name, value in found.items():
        if value <= 0:
            raise UserError(f"{option} {name}={value:g}: a number of {what} is positive.")
    return found


@app.command(name="size", epilog=example("lmlab ladder size 190M", "lmlab ladder size runs/demo/model/model"))
@takes_model
def size_command(
    model: Annotated[str, typer.Argument(help="Size of the published ladder, or a model's directory.")],
) -> None:
    """Parameters as ladders count them: without the input embedding, with the head."""
    from lmlab.methods.ladder.rungs.plan import size_of

    print(f"{size_of(_shape(model)):,}")


@app.command(name="flops", epilog=example("lmlab ladder flops 190M --length 1xC"))
@takes_model
@options(LadderPlan, "rows", only=("seq_len",))
def flops_command(
    model: Annotated[str, typer.Argument(help="Size of the published ladder, or a model's directory.")],
    rows: LadderPlan,
    length: Annotated[str | None, typer.Option(help="Tokens: 1xC, 100B, 4T.", show_default=False)] = None,
) -> None:
    """Training FLOPs of a token, and of a run."""
    from lmlab.methods.ladder.rungs.plan import flops_per_token, parse_length, size_of

    shape = _shape(model)
    per_token = flops_per_token(shape, rows.seq_len)
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
    from lmlab.config import names_in, validate
    from lmlab.files import read_yaml
    from lmlab.files.packaged import recipe_file
    from lmlab.methods.ladder.config import LadderPlan

    if path is not None:
        return validate(LadderPlan, read_yaml(recipe_file(path)), f"'{path}'")
    data = {
        "name": "published ladder",
        "sizes": dict.fromkeys(names_in(sizes)),
        "multiples": names_in(multiples),
    }
    return validate(LadderPlan, data, "the command line")


def _show_plan(found: Any, flops_per_second: float) -> None:
    from lmlab.methods.ladder.rungs.plan import plan_rows
    from lmlab.progress import with_unit

    rows = plan_rows(found, flops_per_second)
    total = sum(float(row["FLOPs"]) for row in rows)
    speed = with_unit(flops_per_second, "FLOP/s")  # of a large GPU by default: hours without it mislead on a laptop
    title = f"{found.name}: {len(rows)} runs, {total:.3g} FLOPs; hours of a device that computes {speed}"
    show(list(rows[0]), [list(row.values()) for row in rows], None, title)


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


# They add the commands that fit and forecast.
import lmlab.methods.ladder.commands.forecasts  # noqa: E402

# isort: split
import lmlab.methods.ladder.commands.decisions  # noqa: E402, F401
