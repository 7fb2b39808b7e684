"""`lmlab circuits compare`: circuits with each other, or methods on one task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ConfigDict, Field

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.config import Config, validate
from lmlab.errors import UserError
from lmlab.methods.edge_pruning.cli import app
from lmlab.methods.edge_pruning.commands.shared import (
    Figures,
    Set,
    configs_of,
    load_model,
    require_ability,
    require_comparable,
    search_options,
    task_of,
)
from lmlab.methods.edge_pruning.config import FindConfig, TaskOptions
from lmlab.runs.loading import Drawn
from lmlab.words import counted

OnModel = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="In place of circuits: compare methods on this model.", show_default=False),
]


@app.command(
    epilog=example(
        "lmlab circuits compare few-shot.json instruction.json",
        "lmlab circuits compare --model tracr/reverse --ablation zero --method edge-pruning --method acdc --method eap"
        " --out methods.json",
    )
)
@options(FindConfig, exclude=("method", "price", "threshold", "ig_steps", "preset", "warm_start", "whole_gradient"))
@options(TaskOptions, "task", exclude=("recompute", "drop_mismatched", "first_token"))
@search_options
def compare(
    settings: FindConfig,
    task: TaskOptions,
    drawn: Drawn,
    training: dict[str, Any],
    circuits: Annotated[list[Path] | None, typer.Argument(help="Circuits of one graph.", show_default=False)] = None,
    model: OnModel = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="A method to compare; may be repeated.", show_default=False)
    ] = None,
    out: Figures = None,
    set_: Set = None,
) -> None:
    """Compare circuits (overlap, stability), or methods on one task (faithfulness at equal size, curves over
    sparsity).
    """
    from lmlab.files import require_writable

    if bool(circuits) == (model is not None):
        raise UserError("Give circuits to compare, or --model to compare methods.")
    if model is None:
        _compare_circuits(circuits or [], task.force, out)
        return
    if len(set(methods or ())) < len(methods or ()):
        raise UserError("--method: a method is named twice.", "Name each once.")
    if out is not None:
        require_writable(out)
    given = settings.model_dump(exclude_unset=True)
    if settings.target is None and settings.num_edges is None:
        given["target"] = 0.95  # methods can be compared at equal size only
    configs = configs_of(
        given, set_, training.get("steps"), task.batch_size, methods or ("edge-pruning", "eap", "eap-ig", "random")
    )
    first = next(iter(configs.values()))  # graph and ablation are the same in all
    loaded = load_model(model, task, search=True)
    compared = task_of(loaded, first, task)
    held_out = loaded.held_out_task(compared, task) or compared
    _compare_methods(compared, held_out, configs, drawn.seed, loaded.ground_truth.get(first.ablation), task.force, out)


class _Point(Config):
    model_config = ConfigDict(extra="allow")
    fraction: float = Field(gt=0, le=1)
    faithfulness: float
    distance: float


class _Curve(Config):
    model_config = ConfigDict(extra="allow")
    curve: list[_Point] = Field(min_length=1)


class _Curves(Config):
    model_config = ConfigDict(extra="allow")
    methods: dict[str, _Curve] = Field(min_length=1)


def read_curves(path: Path) -> dict[str, list[dict[str, float]]]:
    """The curves of methods, by their names, that `compare --model --out` has written.

    Raises:
        UserError: the file holds none.
    """
    from lmlab.files import read_mapping

    content = read_mapping(path)
    if not isinstance(content, dict) or "methods" not in content:
        raise UserError(
            f"'{path}' holds no curves.", "Make it with: lmlab circuits compare --model DIR --data FILE --out FILE"
        )
    found = validate(_Curves, content, f"'{path}'")
    return {name: [point.model_dump() for point in each.curve] for name, each in found.methods.items()}


def _compare_circuits(paths: Sequence[Path], force: bool, out: Path | None) -> None:
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.edge_pruning import Circuit, overlap, stability

    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("The same file is named twice: a circuit equals itself.", "Name each circuit once.")
    found = [Circuit.load(path) for path in paths]
    if len(found) < 2:
        raise UserError("Two circuits at least can be compared.")
    require_comparable(dict(zip(map(str, paths), found, strict=True)), force)
    table = Table(title="Overlap", title_justify="left")
    for name in ("a", "b", "edges of a", "edges of b", "shared", "Jaccard", "of the smaller", "by chance", "p"):
        table.add_column(name, justify="left" if len(name) == 1 and name != "p" else "right")
    pairs = []
    for i, a in enumerate(found):
        for b, path in zip(found[i + 1 :], paths[i + 1 :], strict=True):
            figures = overlap(a.kept_E, b.kept_E)
            pairs.append({"a": str(paths[i]), "b": str(path), **figures})
            table.add_row(
                str(paths[i]),
                str(path),
                *(f"{value:,}" if isinstance(value, int) else f"{value:.3g}" for value in figures.values()),
            )
    print_table(table)
    steady = stability([each.kept_E for each in found])
    always = int((steady["frequency"] == 1).sum())
    print(f"Mean Jaccard index of pairs {steady['jaccard']:.3f}; {always:,} edges are in all {len(found)} circuits.")
    if out is not None:
        write_json(
            out,
            {
                "pairs": pairs,
                "jaccard": steady["jaccard"],
                "in_all": [list(edge) for edge in found[0].graph.edges(steady["frequency"] == 1)],
            },
        )
        print(f"Figures: {out}")


def _compare_methods(
    task: Any, held_out: Any, configs: dict[str, FindConfig], seed: int, known: Any, force: bool, out: Path | None
) -> None:
    import time

    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.edge_pruning import Ends, areas, auroc, curve, learn_constants, measure_each, ranking, search

    own = task is held_out
    if task.ablation == "optimal":  # constants for circuits of all sizes, the same for all methods
        task = learn_constants(task, next(iter(configs.values())).optimal, None, seed)
    if own:
        held_out = task
    elif task.ablation in ("mean", "optimal"):  # means too are those of the search
        held_out = held_out.with_constants(task.constants)
    ends = Ends.of(held_out)
    require_ability(ends, force)
    which = "that the searches saw" if own else "held out from the searches"
    print(f"Figures are those of {counted(len(held_out.examples), 'examples')} {which}.")
    results: dict[str, Any] = {}
    for name, config in configs.items():
        start = time.perf_counter()
        found = search(task, config, seed)
        seconds = time.perf_counter() - start
        summary = ends.summary(measure_each(held_out, found.kept_E))
        figures = summary["circuit"]
        scores_E = ranking(name, found.scores_E)
        rows = curve(held_out, scores_E, ends)
        results[name] = {
            "seconds": seconds,
            "edges": int(found.kept_E.sum()),
            **figures,
            **areas(rows),
            "n": summary["n"],
            "errors": summary["errors"],
            "intervals": summary["intervals"],
            "curve": rows,
        }
        if known is not None:
            truth_E = task.masked.graph.mask(known)
            results[name] |= {"auroc": auroc(scores_E, truth_E), "exact": bool((truth_E == found.kept_E).all())}
    table = Table(title="Methods", title_justify="left")
    first = next(iter(results.values()))
    columns = [key for key in first if key not in ("curve", "prefers_answer", "errors", "intervals")]
    for column in ("method", *columns):
        table.add_column(column.replace("_", " "), justify="left" if column == "method" else "right")
    for name, figures in results.items():
        table.add_row(
            name, *(f"{figures[key]:.4g}" if isinstance(figures[key], float) else f"{figures[key]}" for key in columns)
        )
    print_table(table)
    if out is not None:
        write_json(out, {"methods": results, "full": ends.full, "empty": ends.empty})
        print(f"Figures: {out}")
