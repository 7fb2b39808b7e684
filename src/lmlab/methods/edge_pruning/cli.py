"""`lmlab circuits`: find circuits of a model, measure, compare, draw and convert them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.methods.edge_pruning.config import FindConfig

if TYPE_CHECKING:
    from lmlab.methods.edge_pruning import Circuit
    from lmlab.methods.edge_pruning.examples.load import Loaded

app = typer.Typer(
    no_args_is_help=True,
    help="Circuits: which edges between the parts of a model do a task (Edge Pruning, ACDC, EAP, EAP-IG).",
)

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        help="A model (directory, GGUF file, checkpoint, stage or run), or a program compiled by Tracr.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="Examples, JSON lines; a compiled program brings its own.", show_default=False),
]
Split = Annotated[str | None, typer.Option(help="Take the lines of this split.", show_default=False)]
Words = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="Directory of the tokenizer, by default the model's.", show_default=False),
]
Ablate = Annotated[str, typer.Option(help="What pruned edges carry: interchange (the corrupted run), zero, or mean.")]
Seed = Annotated[int, typer.Option(help="Of gates, masks and the order of examples.")]
Batch = Annotated[int, typer.Option(min=1, help="Examples at once.")]
Most = Annotated[
    int | None, typer.Option("--examples", min=1, help="Take the first so many examples.", show_default=False)
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Compute sub-layers again in the backward pass: less memory, more time.")
]
Force = Annotated[bool, typer.Option("--force", help="Go on though the model cannot do the task.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting, such as pruning.steps=300 or graph.moe=expert.",
        show_default=False,
    ),
]
Drop = Annotated[bool, typer.Option("--drop-mismatched", help="Leave out pairs whose token counts differ.")]
First = Annotated[bool, typer.Option("--first-token", help="Take the first token of answers that have several.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of edge-pruning or node-pruning.", show_default=False)]


@app.command(
    epilog=example(
        "lmlab circuits data ioi --tokenizer models/smollm2 --out ioi.jsonl",
        "lmlab circuits find --model models/smollm2 --data ioi.jsonl --target 0.98 --out ioi.json",
        "lmlab circuits find --model tracr/reverse --ablation zero --out reverse.json",
    )
)
@options(FindConfig)
def find(
    model: Model,
    settings: FindConfig,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The circuit, a JSON file.")] = Path("circuit.json"),
    steps: Steps = None,
    split: Split = None,
    tokenizer: Words = None,
    examples: Most = None,
    batch_size: Batch = 16,
    seed: Seed = 0,
    device: Device = "auto",
    recompute: Recompute = False,
    drop_mismatched: Drop = False,
    first_token: First = False,
    force: Force = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: spread the frozen weights over the processes (FSDP2).")
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(help="Directory for metrics and checkpoints, to go on after a stop.", show_default=False),
    ] = None,
    set_: Set = None,
) -> None:
    """Find a circuit, measure it, and write it."""
    from dataclasses import replace

    from lmlab.distributed import world
    from lmlab.methods.edge_pruning import find_circuit

    config = _config(settings.model_dump(), set_, steps, batch_size)
    loaded = _load(model, data, split, tokenizer, device, drop_mismatched, first_token, shard)
    task = _task(loaded, config, batch_size, recompute, examples)
    circuit = find_circuit(task, config, seed, run, force, loaded.model_hash)
    if not world().is_main:
        return
    about = {**circuit.about, "model": str(model), "data": str(data or model)}
    if loaded.tokenizer is not None:
        about["tokenizer_hash"] = loaded.tokenizer.fingerprint[:16]
    circuit = replace(circuit, about=about)
    circuit.save(out)
    _show(circuit)
    if config.ablation in loaded.ground_truth:
        known, own = set(loaded.ground_truth[config.ablation]), set(circuit.edges)
        print(
            f"Known circuit: {len(known)} edges, {len(own & known)} found, {len(own - known)} too"
            f" many{': exact' if own == known else ''}."
        )
    for text in circuit.about["warnings"]:
        print(f"Warning: {text}")
    print(f"Circuit: {out}")


Curve = Annotated[
    bool,
    typer.Option("--curve", help="Also faithfulness of the best 0.1 to 100 % of all edges by score, with its areas."),
]
OnModel = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="In place of circuits: compare methods on this model.", show_default=False),
]
Figures = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="All figures (and curves, for 'report --curves') as JSON.", show_default=False),
]


@app.command(
    epilog=example(
        "lmlab circuits evaluate ioi.json --model models/smollm2 --data ioi-test.jsonl --curve --completeness --out"
        " ioi-figures.json"
    )
)
def evaluate(
    circuit: Annotated[Path, typer.Argument(help="A circuit.")],
    model: Model,
    data: Data = None,
    curve: Curve = False,
    completeness: Annotated[
        bool, typer.Option("--completeness", help="Also compare circuit and model with the same edges taken out.")
    ] = False,
    minimality: Annotated[bool, typer.Option("--minimality", help="Also take out each edge alone.")] = False,
    out: Figures = None,
    split: Split = None,
    tokenizer: Words = None,
    examples: Most = None,
    batch_size: Batch = 16,
    device: Device = "auto",
    drop_mismatched: Drop = False,
    first_token: First = False,
    force: Force = False,
) -> None:
    """Measure a circuit on examples: distance, logit difference, accuracy, exact match, faithfulness."""
    from dataclasses import replace

    from lmlab.files import write_json
    from lmlab.methods.edge_pruning import Circuit, Ends, FindConfig, areas, measure, ranking
    from lmlab.methods.edge_pruning import completeness as measure_completeness
    from lmlab.methods.edge_pruning import curve as measure_curve
    from lmlab.methods.edge_pruning import minimality as measure_minimality

    found = Circuit.load(circuit)
    loaded = _load(model, data, split, tokenizer, device, drop_mismatched, first_token)
    task = _task(loaded, FindConfig(ablation=found.ablation, graph=found.graph.options), batch_size, False, examples)
    now = {"model_hash": loaded.model_hash, "graph_hash": task.masked.graph.describe()["hash"]}
    found.require(**now, **({} if loaded.tokenizer is None else {"tokenizer_hash": loaded.tokenizer.fingerprint[:16]}))
    ends = Ends.of(task)
    ends.require_ability(force)
    figures = measure(task, found.kept_E)
    figures["faithfulness"] = ends.faithfulness(figures)
    everything: dict[str, Any] = {"circuit": figures, "full": ends.full, "empty": ends.empty}
    if completeness:
        everything |= measure_completeness(task, found.kept_E, ends)
    if minimality:
        one_by_one = measure_minimality(task, found.kept_E)
        effects = {" -> ".join(found.graph.edge(number)): rise for number, rise in one_by_one["effects"].items()}
        everything |= {"superfluous": one_by_one["superfluous"], "effects": effects}
    if curve:
        if found.scores_E is None:
            raise UserError(f"'{circuit}' has no scores, by which edges could be ranked.", "Leave out --curve.")
        rows = measure_curve(task, ranking(found.about.get("method", ""), found.scores_E), ends)
        everything |= {"curve": rows, **areas(rows)}
    _show(replace(found, metrics=everything))
    for key in ("completeness_gap", "superfluous", "cpr", "cmd"):
        if key in everything:
            print(f"{key.replace('_', ' ')}: {everything[key]:.4g}")
    if out is not None:
        write_json(out, everything)
        print(f"Figures: {out}")


@app.command(
    epilog=example(
        "lmlab circuits compare few-shot.json instruction.json",
        "lmlab circuits compare --model tracr/reverse --ablation zero --method edge-pruning --method acdc --method eap"
        " --out methods.json",
    )
)
@options(FindConfig, exclude=("method", "price", "threshold", "ig_steps", "preset", "warm_start"))
def compare(
    settings: FindConfig,
    circuits: Annotated[list[Path] | None, typer.Argument(help="Circuits of one graph.", show_default=False)] = None,
    model: OnModel = None,
    data: Data = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="A method to compare; may be repeated.", show_default=False)
    ] = None,
    steps: Steps = None,
    split: Split = None,
    tokenizer: Words = None,
    examples: Most = None,
    batch_size: Batch = 16,
    seed: Seed = 0,
    device: Device = "auto",
    force: Force = False,
    out: Figures = None,
    set_: Set = None,
) -> None:
    """Compare circuits (overlap, stability), or methods on one task (faithfulness at equal size, curves over
    sparsity).
    """
    if bool(circuits) == (model is not None):
        raise UserError("Give circuits to compare, or --model to compare methods.")
    if model is None:
        _compare_circuits(circuits or [], out)
        return
    given = settings.model_dump()
    if settings.target is None and settings.num_edges is None:
        given["target"] = 0.95  # methods can be compared at equal size only
    first = _config(given, set_, steps, batch_size)
    loaded = _load(model, data, split, tokenizer, device)
    task = _task(loaded, first, batch_size, False, examples)
    configs = {
        name: _config({**given, "method": name}, set_, steps, batch_size)
        for name in methods or ("edge-pruning", "eap", "eap-ig", "random")
    }
    _compare_methods(task, configs, seed, loaded.ground_truth.get(first.ablation), force, out)


def _compare_circuits(paths: Sequence[Path], out: Path | None) -> None:
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.edge_pruning import Circuit, overlap, stability

    found = [Circuit.load(path) for path in paths]
    if len(found) < 2:
        raise UserError("Two circuits at least can be compared.")
    for each in found[1:]:
        _ = found[0] & each  # refuses circuits of different graphs
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
    task: Any, configs: dict[str, FindConfig], seed: int, known: Any, force: bool, out: Path | None
) -> None:
    import time

    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.edge_pruning import Ends, areas, auroc, curve, measure, ranking, search

    ends = Ends.of(task)
    ends.require_ability(force)
    results: dict[str, Any] = {}
    for name, config in configs.items():
        start = time.perf_counter()
        found = search(task, config, seed)
        seconds = time.perf_counter() - start
        figures = measure(task, found.kept_E)
        scores_E = ranking(name, found.scores_E)
        rows = curve(task, scores_E, ends)
        results[name] = {
            "seconds": seconds,
            "edges": int(found.kept_E.sum()),
            **figures,
            "faithfulness": ends.faithfulness(figures),
            **areas(rows),
            "curve": rows,
        }
        if known is not None:
            truth_E = task.masked.graph.mask(known)
            results[name] |= {"auroc": auroc(scores_E, truth_E), "exact": bool((truth_E == found.kept_E).all())}
    table = Table(title="Methods", title_justify="left")
    first = next(iter(results.values()))
    columns = [key for key in first if key not in ("curve", "prefers_answer")]
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


@app.command(
    epilog=example(
        "lmlab circuits report ioi.json --curves methods.json --out ioi.html",
        "lmlab circuits report ioi.json -o ioi.dot -o ioi.graphml",
    )
)
def report(
    circuit: Annotated[Path, typer.Argument(help="A circuit.")],
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "-o",
            help="A page (.html), .graphml or .dot; may be repeated \\[default: circuit.html].",
            show_default=False,
        ),
    ] = None,
    curves: Annotated[
        Path | None, typer.Option(help="What 'compare --model' has written, to draw curves.", show_default=False)
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Another circuit to compare with; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Write a page with the graph to explore, or the graph for other programs."""
    from lmlab.files import read_mapping
    from lmlab.methods.edge_pruning import Circuit
    from lmlab.methods.edge_pruning.graph.formats import to_dot, to_graphml
    from lmlab.methods.edge_pruning.report import circuit_page

    found = Circuit.load(circuit)
    drawn = None
    if curves is not None:
        content = read_mapping(curves)
        if not isinstance(content, dict) or not isinstance(content.get("methods"), dict):
            raise UserError(
                f"'{curves}' holds no curves.",
                "Make it with: lmlab circuits compare --model DIR --data FILE --out FILE",
            )
        drawn = {name: each["curve"] for name, each in content["methods"].items()}
    for path in out or [Path("circuit.html")]:
        if path.suffix == ".html":
            circuit_page(found, drawn, {str(each): Circuit.load(each) for each in others or []}).write(path)
        elif path.suffix in (".graphml", ".dot"):
            (to_graphml if path.suffix == ".graphml" else to_dot)(found, path)
        else:
            raise UserError(f"--out {path}: the name must end in .html, .graphml or .dot.")
        print(f"{'Page' if path.suffix == '.html' else 'Graph'}: {path}")


@app.command(
    name="data", epilog=example("lmlab circuits data ioi --tokenizer models/smollm2 --count 200 --out ioi.jsonl")
)
def make_data(
    task: Annotated[str, typer.Argument(help="ioi, greater-than, pronouns, boolean or induction.")],
    tokenizer: Annotated[Path, typer.Option(help="Directory of a tokenizer.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The examples, JSON lines.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    shots: Annotated[int, typer.Option(min=0, help="Of boolean: solved examples in the prompt.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Make examples of a task: clean and corrupted prompts of equal length, with single-token answers."""
    from lmlab.files import write_jsonl
    from lmlab.methods.edge_pruning import generate
    from lmlab.runs import Vocabulary

    rows = generate(task, Vocabulary.find(tokenizer).load(), count, seed, split, shots)
    print(f"{write_jsonl(out, rows)} examples: {out}")


@app.command(
    epilog=example(
        "lmlab circuits convert edges.json --model models/gpt2 --from edge-list --out circuit.json",
        "lmlab circuits convert circuit.json --to eap-ig --out graph.json",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="A circuit, or with --from a file of another program.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="What is written.")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="edge-list (the reference implementation) or eap-ig (also MIB).", show_default=False
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="edge-list or eap-ig.", show_default=False)] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="With --from: the model it belongs to.", show_default=False)
    ] = None,
    ablation: Ablate = "interchange",
) -> None:
    """Convert circuits from and to the files of other programs."""
    from lmlab.methods.edge_pruning import Circuit, CircuitGraph
    from lmlab.methods.edge_pruning.graph.formats import read_eap_ig, read_edge_list, write_eap_ig, write_edge_list

    if (from_ is None) == (to is None):
        raise UserError("Give either --from or --to.")
    if (from_ or to) not in ("edge-list", "eap-ig"):
        raise UserError(f"The format '{from_ or to}' is not known. Known: edge-list, eap-ig.")
    if ablation not in ("interchange", "zero", "mean"):
        raise UserError(f"--ablation {ablation}: known are interchange, zero and mean.")
    if to is not None:
        (write_edge_list if to == "edge-list" else write_eap_ig)(Circuit.load(source), out)
    else:
        if model is None:
            raise UserError("--from needs --model, whose graph the edges belong to.")
        from lmlab.runs import Model as FoundModel

        graph = CircuitGraph(FoundModel.find(model).config)
        kept_E, scores_E = (read_edge_list(source, graph), None) if from_ == "edge-list" else read_eap_ig(source, graph)
        Circuit(graph, kept_E, ablation, scores_E, {"method": from_, "model": str(model), "warnings": []}).save(out)  # type: ignore[arg-type]
    print(f"Written: {out}")


def _config(given: dict[str, Any], overrides: list[str] | None, steps: int | None, batch_size: int) -> FindConfig:
    from lmlab.config import apply_overrides, validate

    pruning = {key: value for key, value in (("steps", steps), ("micro_batch_size", batch_size)) if value is not None}
    given = {**given, "pruning": {**given.get("pruning", {}), **pruning}}
    return validate(FindConfig, apply_overrides(given, overrides or []), "the options")


def _load(
    model: Path,
    data: Path | None,
    split: str | None,
    tokenizer: Path | None,
    device: str,
    drop_mismatched: bool = False,
    first_token: bool = False,
    shard: bool = False,
) -> Loaded:
    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning.examples.load import load

    reuse_memory()
    loaded = load(model, data, split, tokenizer, device, drop_mismatched, first_token, shard)
    if loaded.dropped:
        print(f"{loaded.dropped} examples were left out, as their token counts differ.")
    return loaded


def _task(loaded: Loaded, config: FindConfig, batch_size: int, recompute: bool, examples: int | None) -> Any:
    from lmlab.distributed import world
    from lmlab.progress import console

    console.quiet = not world().is_main
    task, lines = loaded.task(config.ablation, config.graph, batch_size, recompute, examples)
    for line in lines:
        console.print(line)
    return task


def _show(circuit: Circuit) -> None:
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
