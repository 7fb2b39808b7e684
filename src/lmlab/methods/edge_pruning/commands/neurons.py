"""`lmlab circuits neurons`: which single numbers of what heads and feed-forward networks write do a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.methods.edge_pruning.cli import app
from lmlab.methods.edge_pruning.commands.shared import (
    Model,
    Set,
    config_of,
    load_model,
    require_ability,
    task_of,
)
from lmlab.methods.edge_pruning.config import FindConfig, TaskOptions
from lmlab.words import counted


@app.command(
    epilog=example("lmlab circuits neurons --model models/smollm2 --data ioi.jsonl --batch-size 4 --out neurons.json")
)
@options(FindConfig, only=("ig_steps", "metric", "ablation"))
@options(TaskOptions, "task")
def neurons(
    model: Model,
    settings: FindConfig,
    task: TaskOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Scores of the best neurons and the curve, JSON.")],
    most: Annotated[int, typer.Option(min=1, help="How many neurons are written.")] = 1000,
    mib: Annotated[
        Path | None,
        typer.Option(
            "--out-mib",
            help="Also all scores as a graph that the benchmark MIB reads at its neuron level (.json or .pt).",
            show_default=False,
        ),
    ] = None,
    set_: Set = None,
) -> None:
    """Rank neurons by node attribution with integrated gradients, and measure the best."""
    from rich.table import Table

    from lmlab.files import require_writable, write_json
    from lmlab.methods.edge_pruning import Ends, areas, attribute_neurons, learn_constants, neuron_curve
    from lmlab.methods.edge_pruning.graph.formats import require_known, write_neurons

    given = {name: getattr(settings, name) for name in ("metric", "ablation", "ig_steps")}
    config = config_of({**given, "method": "nap-ig"}, set_, None, task.batch_size)
    if config.method != "nap-ig" or config.target is not None or config.num_edges is not None:
        raise UserError(
            "method, target and num_edges have no influence on neurons, which are ranked in one way and kept in ten"
            " numbers.",
            "Leave them out of --set.",
        )
    require_writable(out)
    if mib is not None:
        require_writable(mib)
        if mib.resolve() == out.resolve():
            raise UserError(f"--out-mib: '{mib}' is also what --out writes.", "Name another file.")
    loaded = load_model(model, task, search=True)
    searched = task_of(loaded, config, task)
    if mib is not None:
        require_known(searched.masked.graph)
    held_out = loaded.held_out_task(searched, task)
    if config.ablation == "optimal":
        searched = learn_constants(searched, config.optimal)
    if held_out is not None and config.ablation in ("mean", "optimal") and searched.constants is not None:
        held_out = held_out.with_constants(searched.constants)
    measured = held_out or searched
    ends = Ends.of(measured)
    require_ability(ends, task.force)
    scores_WD = attribute_neurons(searched, config.ig_steps, config.metric)
    rows = neuron_curve(measured, scores_WD.abs(), ends)
    places = scores_WD.abs().flatten().argsort(descending=True, stable=True)[:most].tolist()
    width, names = scores_WD.shape[1], searched.masked.graph.writers
    best = [
        [names[place // width], place % width, float(f"{float(scores_WD.flatten()[place]):.6g}")] for place in places
    ]
    which = "held out from the search" if held_out is not None else "that the search saw"
    table = Table(title=f"Neurons kept, on {counted(len(measured.examples), 'examples')} {which}", title_justify="left")
    for column in ("share", "neurons", "distance", "standard error", "faithfulness", "95 % interval"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{100 * row['fraction']:g} %",
            f"{row['neurons']:,}",
            f"{row['distance']:.4g}",
            "" if row["distance_error"] is None else f"{row['distance_error']:.2g}",
            f"{row['faithfulness']:.4g}",
            ""
            if row["faithfulness_low"] is None
            else f"{row['faithfulness_low']:.3f} to {row['faithfulness_high']:.3f}",
        )
    print_table(table)
    found = areas(rows)
    print(f"CPR {found['cpr']:.4g}, CMD {found['cmd']:.4g}; faithfulness by {ends.metric.replace('_', ' ')}.")
    print("Highest: " + ", ".join(f"{name}[{dimension}] {score:.3g}" for name, dimension, score in best[:8]))
    about = {**loaded.about(), "ablation": config.ablation, "metric": config.metric, "ig_steps": config.ig_steps}
    content = {**about, "neurons": best, "curve": rows, **found, "full": ends.full, "empty": ends.empty}
    write_json(out, {**content, "held_out": held_out is not None, "n": len(measured.examples)})
    print(f"Neurons: {out}")
    if mib is not None:
        write_neurons(searched.masked.graph, scores_WD, mib)
        print(f"Graph: {mib}")
