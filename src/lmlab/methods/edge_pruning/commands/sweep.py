"""`lmlab circuits sweep`: circuits of several sizes on one task, by the same method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.methods.edge_pruning.cli import app
from lmlab.methods.edge_pruning.commands.shared import Model, Set, config_of, load_model, search_options, task_of
from lmlab.methods.edge_pruning.config import DRAWN, FindConfig, RepeatOptions, TaskOptions
from lmlab.runs.loading import Drawn

_SIZES = ("target", "price", "num_edges")


@app.command(
    epilog=example(
        "lmlab circuits sweep --model models/smollm2 --data ioi.jsonl --targets 0.9,0.95,0.98 --out sweep",
        "lmlab circuits sweep --model tracr/reverse --ablation zero --prices 0.001,0.01,0.1 --seeds 3 --out sweep",
    )
)
@options(FindConfig, exclude=_SIZES)
@options(TaskOptions, "task")
@options(RepeatOptions, "repeats")
@search_options
def sweep(
    model: Model,
    settings: FindConfig,
    task: TaskOptions,
    drawn: Drawn,
    training: dict[str, Any],
    repeats: RepeatOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder: a circuit for each, and sweep.json.")],
    targets: Annotated[
        str | None, typer.Option(help="Edge sparsities, with commas between them.", show_default=False)
    ] = None,
    prices: Annotated[
        str | None, typer.Option(help="Prices of an edge, with commas between them.", show_default=False)
    ] = None,
    edge_counts: Annotated[
        str | None, typer.Option(help="Numbers of edges, with commas between them.", show_default=False)
    ] = None,
    set_: Set = None,
) -> None:
    """Find circuits of several sizes. A sweep that was stopped goes on with what is missing."""
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.edge_pruning import Circuit, find_circuit
    from lmlab.runs import one_job, require_same_work

    points = _points({"target": targets, "price": prices, "num_edges": edge_counts})
    configs = {
        f"{name}-{value:g}": config_of(
            {**settings.model_dump(), name: value}, set_, training.get("steps"), task.batch_size
        )
        for name, value in points
    }
    first = next(iter(configs.values()))
    seeds = repeats.seeds
    if seeds > 1 and first.method not in DRAWN:
        raise UserError(f"--seeds {seeds}: the method {first.method} draws nothing.", "Leave it out.")
    loaded = load_model(model, task, search=True)
    searched = task_of(loaded, first, task)
    held_out = loaded.held_out_task(searched, task)
    rows = []
    with one_job(out, "--out"):
        shared = first.model_dump(mode="json", exclude=set(_SIZES))
        now = {"settings": shared, **loaded.about(), "seed": drawn.seed}
        require_same_work(out / "search.json", now, "search", "--out")
        for name, config in configs.items():
            for seed in range(drawn.seed, drawn.seed + seeds):
                path = out / f"{name}-seed-{seed}.json"
                if not path.exists():
                    circuit = find_circuit(searched, config, seed, None, task.force, loaded.about(), held_out)
                    circuit.save(path)
                found = Circuit.load(path)
                shown = found.metrics.get("held_out") or found.metrics
                rows.append(
                    {
                        "circuit": path.name,
                        "edges": found.num_edges,
                        "converged": found.about.get("converged"),
                        "held_out": "held_out" in found.metrics,
                        **shown["circuit"],
                    }
                )
        write_json(out / "sweep.json", {"circuits": rows})
    which = "held out from the searches" if held_out is not None else "that the searches saw"
    table = Table(title=f"Figures on examples {which}", title_justify="left")
    columns = [name for name in rows[0] if name not in ("converged", "held_out", "prefers_answer")]
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == "circuit" else "right")
    for row in rows:
        table.add_row(*(f"{row[key]:.4g}" if isinstance(row[key], float) else f"{row[key]}" for key in columns))
    print_table(table)
    print(f"Circuits: {out}")


def _points(given: dict[str, str | None]) -> list[tuple[str, float | int]]:
    """The sizes that were asked for, by the name of their setting."""
    named = {name: text for name, text in given.items() if text is not None}
    if len(named) != 1:
        raise UserError("Give one of --targets, --prices and --edge-counts.")
    ((name, text),) = named.items()
    try:
        values = [int(each) if name == "num_edges" else float(each) for each in text.split(",")]
    except ValueError as error:
        raise UserError(f"'{text}' is no list of numbers with commas between them.") from error
    if len(set(values)) < len(values):
        raise UserError(f"'{text}' names a size twice.")
    return [(name, value) for value in values]
