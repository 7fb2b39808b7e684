"""What the commands of circuits share: options, and from names to a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.options import print_table
from lmlab.methods.edge_pruning.config import FindConfig, TaskOptions

if TYPE_CHECKING:
    from lmlab.methods.edge_pruning import Circuit
    from lmlab.methods.edge_pruning.examples.load import Loaded

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        help="A model (directory, GGUF file, checkpoint, stage or run), or a program compiled by Tracr.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of gates, masks and the order of examples.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting, such as pruning.steps=300 or graph.moe=expert.",
        show_default=False,
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of edge-pruning or node-pruning.", show_default=False)]
Figures = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="All figures (and curves, for 'report --curves') as JSON.", show_default=False),
]


def config_of(given: dict[str, Any], overrides: list[str] | None, steps: int | None, batch_size: int) -> FindConfig:
    """The settings of a search, with what was given by options of its own and by --set."""
    from lmlab.config import apply_overrides, validate

    pruning = {key: value for key, value in (("steps", steps), ("micro_batch_size", batch_size)) if value is not None}
    given = {**given, "pruning": {**given.get("pruning", {}), **pruning}}
    return validate(FindConfig, apply_overrides(given, overrides or []), "the options")


def load_model(model: Path, options: TaskOptions, shard: bool = False) -> Loaded:
    """A model and its examples; examples that were left out are told."""
    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning.examples.load import load

    reuse_memory()
    loaded = load(model, options, shard)
    if loaded.dropped:
        print(f"{loaded.dropped} examples were left out, as their token counts differ.")
    return loaded


def task_of(loaded: Loaded, config: FindConfig, options: TaskOptions) -> Any:
    """The task on the masked model; its size and memory are told."""
    from lmlab.distributed import world
    from lmlab.progress import console

    console.quiet = not world().is_main
    task, lines = loaded.task(config.ablation, config.graph, options)
    for line in lines:
        console.print(line)
    return task


def show_circuit(circuit: Circuit) -> None:
    """Print size and figures of a circuit."""
    from rich.table import Table

    figures = circuit.metrics
    print(f"{circuit.num_edges:,} of {circuit.graph.num_edges:,} edges, edge sparsity {100 * circuit.sparsity:.2f} %")
    table = Table()
    for name in ("measure", "model", "circuit", "no edges"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name in figures["circuit"]:
        ends = [f"{figures[which][name]:.4f}" if name in figures[which] else "" for which in ("full", "empty")]
        table.add_row(name.replace("_", " "), ends[0], f"{figures['circuit'][name]:.4f}", ends[1])
    print_table(table)
