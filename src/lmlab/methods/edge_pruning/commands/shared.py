"""What the commands of circuits share: options, and from names to a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lmlab.commandline.from_config import changes, options
from lmlab.commandline.options import print_table
from lmlab.methods.edge_pruning.config import TRAINED, EdgePruningConfig, FindConfig, TaskOptions, reads, with_training
from lmlab.runs.loading import Drawn
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.methods.edge_pruning import Circuit
    from lmlab.methods.edge_pruning.examples.load import Loaded
    from lmlab.methods.edge_pruning.graph.graph import Spans
    from lmlab.methods.edge_pruning.measures import Ends

F = TypeVar("F", bound=Callable[..., Any])

_OF_STEPS = {"steps": "Of edge-pruning and node-pruning."}

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        help="A model (directory, GGUF file, checkpoint, stage or run), or a program compiled by Tracr.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting, such as pruning.steps=300 or graph.moe=expert.",
        show_default=False,
    ),
]
Figures = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="All figures (and curves, for 'report --curves') as JSON.", show_default=False),
]


def search_options(command: F) -> F:
    """Options of a search that stand neither among those of its kind nor of its examples."""
    return options(Drawn, "drawn")(changes(EdgePruningConfig, ("steps",), "training", _OF_STEPS)(command))


def config_of(given: dict[str, Any], overrides: list[str] | None, steps: int | None, batch_size: int) -> FindConfig:
    """The settings of a search, with what was given by options of its own and by --set.

    Raises:
        UserError: one of them is wrong, or has no influence on the method.
    """
    from lmlab.config import apply_overrides, validate
    from lmlab.errors import UserError

    given = apply_overrides(given, overrides or [])
    method = given.get("method", FindConfig.model_fields["method"].default)
    if steps is not None and method not in TRAINED:
        raise UserError(f"--steps has no influence: the method {method} trains nothing.", "Leave it out.")
    trained = {"micro_batch_size": batch_size, **({} if steps is None else {"steps": steps})}
    return validate(FindConfig, with_training(given, trained), "the options")


def configs_of(
    given: dict[str, Any], overrides: list[str] | None, steps: int | None, batch_size: int, methods: Sequence[str]
) -> dict[str, FindConfig]:
    """The settings of each method in a comparison: of what was given, what it reads.

    Raises:
        UserError: a setting is wrong, or has no influence on any of the methods.
    """
    from lmlab.config import apply_overrides
    from lmlab.errors import UserError

    given, defaults = apply_overrides(given, overrides or []), FindConfig().model_dump()
    for name, value in given.items():
        if value != defaults.get(name, value) and not any(reads(method, name) for method in methods):
            raise UserError(
                f"{name} has no influence on {', '.join(methods)}.", "Leave it out, or add a method to compare."
            )
    trained = [name for name in methods if name in TRAINED]
    if steps is not None and not trained:
        raise UserError(f"--steps has no influence: {', '.join(methods)} train nothing.", "Leave it out.")
    return {
        name: config_of(
            {key: value for key, value in given.items() if reads(name, key)} | {"method": name},
            None,
            steps if name in trained else None,
            batch_size,
        )
        for name in methods
    }


def load_model(model: Path, options: TaskOptions, shard: bool = False, search: bool = False) -> Loaded:
    """A model and its examples, to search with others held out; examples that were left out are told."""
    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning.examples.load import load, load_to_search

    reuse_memory()
    loaded = (load_to_search if search else load)(model, options, shard)
    if loaded.dropped:
        print(f"{loaded.dropped} examples were left out, as their token counts differ.")
    return loaded


def task_of(loaded: Loaded, config: FindConfig, options: TaskOptions, spans: Spans | None = None) -> Any:
    """The task on the masked model; its size and memory are told."""
    from lmlab.distributed import world
    from lmlab.progress import console

    console.quiet = not world().is_main
    task, lines = loaded.task(config.ablation, config.graph, options, spans)
    for line in lines:
        console.print(line)
    return task


def task_of_circuit(circuit: Circuit, model: Path, options: TaskOptions) -> tuple[Loaded, Any]:
    """The model and the task on which a circuit is measured.

    Raises:
        UserError: it was made for another model, graph or tokenizer.
    """
    loaded = load_model(model, options)
    settings = FindConfig(ablation=circuit.ablation, graph=circuit.graph.options)
    task = task_of(loaded, settings, options, circuit.graph.spans)
    about = loaded.about()
    now = {name: about[name] for name in ("model_hash", "tokenizer_hash") if name in about}
    circuit.require(**now, graph_hash=task.masked.graph.describe()["hash"])
    return loaded, with_constants_of(circuit, task)


def with_constants_of(circuit: Circuit, task: Any) -> Any:
    """The task with what pruned edges of the circuit carry, where those are constants that were learned for it.

    Raises:
        UserError: the circuit has none.
    """
    from lmlab.errors import UserError
    from lmlab.methods.edge_pruning.masking.optimal import from_lists

    if circuit.constants is None and circuit.ablation != "optimal":
        return task
    if circuit.constants is None:
        raise UserError(
            "The circuit does not say which constants its pruned edges carry (optimal ablation).",
            "Find it again, or convert it under another --ablation.",
        )
    return task.with_constants(from_lists(task.masked, circuit.constants))


def show_circuit(circuit: Circuit) -> None:
    """Print size and figures of a circuit."""
    print(f"{circuit.num_edges:,} of {circuit.graph.num_edges:,} edges, edge sparsity {100 * circuit.sparsity:.2f} %")
    held = circuit.metrics.get("held_out")
    if held is not None:
        print(f"On {counted(held['n'], 'examples')} that the search did not see (95 % intervals of the bootstrap):")
        _show_figures(held)
    count = circuit.metrics.get("n")
    if count is not None:
        seen = " that the search saw" if held is not None and "method" in circuit.about else ""
        if circuit.metrics.get("seen"):
            seen = f", of which the search saw {circuit.metrics['seen']:,}"
        print(f"On {counted(count, 'examples')}{seen}:")
    _show_figures(circuit.metrics)


def _show_figures(figures: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table()
    intervals, errors = figures.get("intervals", {}), figures.get("errors", {})
    for name in ("measure", "model", "circuit", "95 % interval", "standard error", "no edges"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name in figures["circuit"]:
        ends = [f"{figures[which][name]:.4f}" if name in figures[which] else "" for which in ("full", "empty")]
        interval = " to ".join(f"{each:.4f}" for each in intervals.get(name, ()))
        error = "" if errors.get(name) is None else f"{errors[name]:.4f}"
        own = f"{figures['circuit'][name]:.4f}"
        table.add_row(name.replace("_", " "), ends[0], own, interval, error, ends[1])
    print_table(table)


def require_ability(ends: Ends, force: bool) -> None:
    """See that circuits of the model can be measured on the task; what speaks against it is told.

    Raises:
        UserError: the model does not do the task (`Ends.require_ability`).
    """
    ends.require_ability(force)
    for text in ends.doubts():
        print(f"Warning: {text}")


def show_stability(circuits: Sequence[Circuit], best: Circuit) -> None:
    """Print how far circuits of several seeds agree."""
    found = best.metrics["stability"]
    print(
        f"Over {counted(len(circuits), 'seeds')}: mean Jaccard index of edges {found['jaccard']:.3f}, of writers"
        f" {found['node_jaccard']:.3f}; {len(found['core']):,} edges are in all circuits, {found['in_any']:,} in any;"
        f" {min(found['edges']):,} to {max(found['edges']):,} edges, distance {min(found['distances']):.4g} to"
        f" {max(found['distances']):.4g}; {found['converged']} of {len(circuits)} converged. Written is seed"
        f" {best.about['seed']}."
    )


def require_comparable(circuits: Mapping[str, Circuit], force: bool = False, by_kind: bool = False) -> None:
    """See that edges of circuits, by name, mean the same.

    Arguments:
        by_kind: circuits of different graphs are compared by kinds of edges.

    Raises:
        UserError: they belong to different graphs, or pruned edges carry different things in them.
    """
    from lmlab.errors import UserError
    from lmlab.methods.edge_pruning.graph.circuit import same_graph

    (first_name, first), *others = circuits.items()
    for name, each in others:
        if not by_kind and not same_graph(each, first):
            raise UserError(
                f"'{first_name}' and '{name}' belong to different graphs, so their edges cannot be compared.",
                f"Their kinds can: lmlab circuits report {first_name} --with {name}",
            )
        if each.ablation != first.ablation:
            text = f"pruned edges carry {first.ablation} in '{first_name}' and {each.ablation} in '{name}'"
            if not force:
                raise UserError(
                    f"The circuits were found under different ablations: {text}.",
                    "Find both under the same --ablation, or compare them all the same with --force.",
                )
            print(f"Warning: {text}; their edges do not mean the same.")
