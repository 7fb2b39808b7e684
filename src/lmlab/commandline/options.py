"""What commands share: options, and running stages from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.errors import UserError

ModelPlace = Annotated[str, typer.Argument(help="A model's directory, GGUF file, checkpoint, stage or run.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Directory of the run \\[default: runs/NAME].", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated.", show_default=False
    ),
]
Vary = Annotated[
    list[str],
    typer.Option(
        "--vary",
        metavar="KEY=VALUE,VALUE,...",
        help="Values of a key; all combinations are run. May be repeated, for other keys.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with estimates and stop.")]
Processes = Annotated[
    int | None, typer.Option(min=1, help="With --dry-run: plan for so many processes (GPUs).", show_default=False)
]
PerMachine = Annotated[int, typer.Option(min=1, help="With --processes: how many of them a machine has.")]
Trust = Annotated[bool, typer.Option("--trust", help="Read vectors that others wrote; they can tell a model anything.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin files of PyTorch too, as plain weights only.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OnlyTell = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and what it costs; send nothing.")]
Clause = Annotated[
    str | None, typer.Option("--clause", help="Completes 'choose the one which ...'.", show_default=False)
]
NewRun = Annotated[bool, typer.Option("--new-run", help="Let the folder hold another judge's grades too.")]
Redo = Annotated[bool, typer.Option("--redo", help="Run changed stages again; what they wrote before is moved aside.")]

_PIPED_WIDTH = 240  # columns of a file or pipe, which need not fit a screen


def example(*lines: str) -> str:
    return "Example:\n\n" + "\n\n".join(f"  [bold]{line}[/bold]" for line in lines)


def print_table(table: Any) -> None:
    """Print a table of `rich`; what is not a terminal gets it as wide as it is."""
    from lmlab.terminal import Terminal

    terminal = Terminal()
    (terminal if terminal.is_terminal else Terminal(width=_PIPED_WIDTH)).print(table)


def run_recipe_file(path: Path, out: Path | None, overrides: list[str] | None, dry_run: bool, redo: bool) -> Path:
    from lmlab.runs import Recipe

    return execute(Recipe.load(path, overrides or [], planning=dry_run), out, dry_run, redo)


def run_stages(
    name: str,
    stages: dict[str, Any],
    out: Path | None,
    overrides: list[str] | None,
    dry_run: bool,
    redo: bool,
    seed: int = 0,
    where: str = "the command line",
) -> Path:
    """Run stages as a recipe of that name; the directory of the run.

    Arguments:
        where: what messages call the place where they were asked for.
    """
    from lmlab.config import apply_overrides
    from lmlab.runs import Recipe

    data = apply_overrides(
        {"name": name, "seed": seed, "stages": stages}, [f"stages.{override}" for override in overrides or []]
    )
    return execute(Recipe.parse(data, where, planning=dry_run), out, dry_run, redo)


def execute(recipe: Any, out: Path | None, dry_run: bool, redo: bool) -> Path:
    """Run a recipe, or print its plan; the directory of the run."""
    from lmlab.distributed import world
    from lmlab.hardware import reuse_memory
    from lmlab.hardware.threads import settle
    from lmlab.progress import console
    from lmlab.runs import print_plan, run_recipe

    directory = out or Path("runs") / recipe.name
    if dry_run:
        print_plan(recipe, directory)
        return directory
    reuse_memory()
    settle()
    console.quiet = not world().is_main
    run_recipe(recipe, directory, redo)
    report_path = directory / "report.html"
    console.print(
        f"Results: {directory / 'results.json'}" + (f"\nReport: {report_path}" if report_path.exists() else "")
    )
    return directory


@contextmanager
def planning_for(processes: int | None, per_machine: int, dry_run: bool) -> Iterator[None]:
    """Make a plan as one process of many would, without them."""
    from lmlab.distributed import World, imagine

    if processes is None:
        yield
        return
    if not dry_run:
        raise UserError(
            "--processes belongs to --dry-run; to start several processes use torchrun.",
            "torchrun --nproc-per-node N -m lmlab run ...",
        )
    local = min(per_machine, processes)
    if processes % local:
        raise UserError(f"--processes {processes} is not a multiple of --per-machine {local}.")
    with imagine(World(0, processes, 0, local)):
        yield
