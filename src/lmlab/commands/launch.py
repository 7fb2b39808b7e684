"""`lmlab launch`: start recipes on clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import DryRun, Out, Set, Vary, example
from lmlab.errors import UserError
from lmlab.runs.loading import AtOnce

app = typer.Typer(no_args_is_help=True)

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]


@app.command(
    name="slurm",
    epilog=example(
        "lmlab launch slurm recipes/demo.yaml --nodes 8 --out runs/big > job.sh",
        "lmlab launch slurm x.yaml --repeat 4 --output job.sh",
    ),
)
def launch_slurm(
    recipe: RecipeFile,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="Processes of a machine, one a GPU; 0 for one process without a GPU.")
    ] = 8,
    cpus_per_gpu: Annotated[int, typer.Option(min=1, help="Cores for each process.")] = 8,
    time: Annotated[
        str, typer.Option(help="Limit of a job; two minutes before it a checkpoint is written.")
    ] = "24:00:00",
    repeat: Annotated[
        int, typer.Option(min=1, help="Jobs one after the other, each going on where the last one stopped.")
    ] = 1,
    partition: Annotated[str | None, typer.Option(help="Of the cluster, as it calls it.", show_default=False)] = None,
    account: Annotated[str | None, typer.Option(help="Who pays, as the cluster calls it.", show_default=False)] = None,
    setup: Annotated[
        str | None,
        typer.Option(help="Line of shell before the start, such as 'source venv/bin/activate'.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the script there, not to standard output.", show_default=False)
    ] = None,
    out: Out = None,
    set_: Set = None,
) -> None:
    """Write a submission script that runs a recipe on many machines; submit it with sbatch."""
    from lmlab.files import write_text
    from lmlab.files.packaged import recipe_file
    from lmlab.launch.slurm import SlurmJob
    from lmlab.runs import Recipe

    name = Recipe.load(recipe, set_ or []).name
    directory = (out or Path("runs") / name).resolve()
    settings = [part for override in set_ or [] for part in ("--set", override)]
    command = ["run", str(recipe_file(recipe).resolve()), "--out", str(directory), *settings]
    job = SlurmJob(
        name, command, directory.parent, nodes, gpus_per_node, cpus_per_gpu, time, repeat, partition, account, setup
    )
    if output is None:
        print(job.script(), end="")
    else:
        write_text(output, job.script())
        print(f"{output}: submit it with sbatch {output}")


@app.command(
    name="sweep",
    epilog=example(
        "lmlab launch sweep recipes/demo.yaml --vary seed=0,1,2 --out runs/seeds",
        "lmlab launch sweep x.yaml --vary model.trainer.optimizer.learning_rate=1e-3,3e-3 --backend ray --gpus 1"
        " --workers 16",
    ),
)
@options(AtOnce, "how", workers=1)
def launch_sweep(
    recipe: RecipeFile,
    how: AtOnce,
    vary: Vary,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory that gets a run for each combination.")] = Path(
        "runs/sweep"
    ),
    backend: Annotated[
        str,
        typer.Option(
            help="processes: on this machine; ray: on the cluster of RAY_ADDRESS; slurm: write a job file for each run."
        ),
    ] = "processes",
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe many times with different settings. Finished runs are skipped, those that were cut off go on."""
    from rich.table import Table

    from lmlab.launch.slurm import write_jobs
    from lmlab.runs import Recipe, StageRecord, parse_axes, run_many
    from lmlab.runs import vary as combine
    from lmlab.terminal import Terminal

    if backend not in ("processes", "ray", "slurm"):
        raise UserError(f"Unknown backend '{backend}'.", "Use processes, ray or slurm.")
    runs = combine(recipe, parse_axes(vary), set_ or [])
    for each in runs:
        Recipe.parse(each.recipe, f"'{recipe}', run '{each.name}'")
    if dry_run:
        for each in runs:
            print(f"{out / each.name}  {' '.join(f'{key}={value}' for key, value in each.settings.items())}")
        return
    if backend == "slurm":
        for path in write_jobs(runs, out, gpus_per_node=int(how.gpus)):
            print(f"sbatch {path}")
        return
    run_many(runs, out, how.workers, backend, how.gpus, fresh=True)  # type: ignore[arg-type]
    table = Table("run", "result")
    for each in runs:
        told = []
        for entry in Recipe.stored(out / each.name).stages:
            if entry.kind in ("train", "evaluate"):
                record = StageRecord.read(out / each.name / entry.name)
                told.append(entry.stage.summary(record.read_results(entry.stage.results_type)))
        table.add_row(each.name, "\n".join(told) or "done")
    Terminal().print(table)
