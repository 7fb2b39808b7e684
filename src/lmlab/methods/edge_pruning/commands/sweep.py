"""`lmlab circuits sweep`: circuits of several sizes on one task, by the same method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.methods.edge_pruning.cli import app
from lmlab.methods.edge_pruning.commands.shared import Model, Set, config_of, search_options
from lmlab.methods.edge_pruning.config import FindConfig, RepeatOptions, SweepOptions, TaskOptions
from lmlab.runs.loading import Drawn

if TYPE_CHECKING:
    from lmlab.runs import PlannedRun

STAGE = "circuit"
"""What the stage is called in the run of a search."""
_SIZES = ("target", "price", "num_edges")
_NO_COLUMN = ("edge_sparsity", "curve", "n", "errors", "held_out", "converged", "prefers_answer")


@app.command(
    epilog=example(
        "lmlab circuits sweep --model models/smollm2 --data ioi.jsonl --targets 0.9,0.95,0.98 --out sweep",
        "lmlab circuits sweep --model tracr/reverse --ablation zero --prices 0.001,0.01,0.1 --seeds 3 --out sweep",
    )
)
@options(FindConfig, exclude=_SIZES)
@options(TaskOptions, "task")
@options(RepeatOptions, "repeats")
@options(SweepOptions, "how")
@search_options
def sweep(
    model: Model,
    settings: FindConfig,
    task: TaskOptions,
    drawn: Drawn,
    training: dict[str, Any],
    repeats: RepeatOptions,
    how: SweepOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the runs, with sweep.json.")],
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
    """Find circuits of several sizes, each as a run of its own whose page `lmlab report` writes. A sweep that was
    stopped goes on with what is missing.
    """
    from lmlab.runs import one_job, require_same_work, run_many

    points = _points({"target": targets, "price": prices, "num_edges": edge_counts})
    configs = [
        config_of(
            {**settings.model_dump(exclude_unset=True), name: value}, set_, training.get("steps"), task.batch_size
        )
        for name, value in points
    ]
    seeds, first = repeats.seeds, configs[0]
    if seeds > 1 and not first.draws:
        raise UserError(f"--seeds {seeds}: the method {first.method} draws nothing.", "Leave it out.")
    runs = [
        _run(_stage(model, config, task), name, value, seed)
        for (name, value), config in zip(points, configs, strict=True)
        for seed in range(drawn.seed, drawn.seed + seeds)
    ]
    with one_job(out, "--out"):
        require_same_work(out / "search.json", _shared(runs[0], out), "search", "--out")
        outcomes = run_many(runs, out, how.workers)
    _show([(each.name, dict((each.results or {})[STAGE])) for each in outcomes])
    print(f"Circuits: {out}")


def _stage(model: Path, config: FindConfig, task: TaskOptions) -> dict[str, Any]:
    """One search as a stage. Places are whole paths, so that the sweep goes on from any folder."""
    stage: dict[str, Any] = {"kind": "circuit", "model": str(model.expanduser().resolve()), "curve": False}
    stage |= config.model_dump(mode="json", exclude_unset=True)
    stage |= task.model_dump(mode="json", exclude_defaults=True, exclude={"data", "tokenizer"})
    if task.data is not None:
        stage["examples"] = str(task.data.expanduser().resolve())
    if task.tokenizer is not None:
        stage["tokenizer"] = str(Path(task.tokenizer).expanduser().resolve())
    return stage


def _run(stage: dict[str, Any], name: str, value: float, seed: int) -> PlannedRun:
    from lmlab.runs import PlannedRun

    size = f"{name}-{value:g}"
    recipe = {"name": f"{size}, seed {seed}", "seed": seed, "stages": {STAGE: stage}}
    return PlannedRun(f"{size}/seed-{seed}", recipe, {name: value, "seed": seed})


def _shared(run: PlannedRun, out: Path) -> dict[str, Any]:
    """What all circuits of a folder have in common: settings, and the contents of model and examples."""
    from lmlab.config import influences
    from lmlab.runs import Recipe, plan_stages

    (stage,) = plan_stages(Recipe.parse(run.recipe, "the search"), out / run.name)
    settings = influences(stage.entry.config)
    return {
        "settings": {key: settings[key] for key in settings if key not in _SIZES},
        "inputs": stage.content["inputs"],
    }


def _show(found: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Print a row for each circuit."""
    from rich.table import Table

    first = found[0][1]
    which = "held out from the searches" if first["held_out"] else "that the searches saw"
    columns = [name for name in first if name not in _NO_COLUMN]
    table = Table(title=f"Figures on examples {which}", title_justify="left")
    table.add_column("circuit")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, results in found:
        cells = (results[column] for column in columns)
        table.add_row(name, *(f"{each:.4g}" if isinstance(each, float) else f"{each}" for each in cells))
    print_table(table)


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
