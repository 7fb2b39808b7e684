"""`lmlab circuits`: find circuits of a model, measure, compare, draw and convert them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError
from lmlab.methods.edge_pruning.commands.shared import (
    Figures,
    Model,
    Set,
    config_of,
    load_model,
    require_ability,
    require_comparable,
    search_options,
    show_circuit,
    show_stability,
    task_of,
    task_of_circuit,
)
from lmlab.methods.edge_pruning.config import (
    CONVERGED,
    CircuitConfig,
    CircuitExamplesConfig,
    ExampleOptions,
    FindConfig,
    RepeatOptions,
    TaskOptions,
)
from lmlab.runs.loading import Drawn
from lmlab.words import counted

app = typer.Typer(
    no_args_is_help=True,
    help="Circuits: which edges between the parts of a model do a task (Edge Pruning, ACDC, EAP, EAP-IG).",
)


@app.command(
    epilog=example(
        "lmlab circuits data ioi --tokenizer models/smollm2 --out ioi.jsonl",
        "lmlab circuits find --model models/smollm2 --data ioi.jsonl --target 0.98 --out ioi.json",
        "lmlab circuits find --model tracr/reverse --ablation zero --out reverse.json",
    )
)
@options(FindConfig)
@options(TaskOptions, "task")
@options(RepeatOptions, "repeats")
@search_options
def find(
    model: Model,
    settings: FindConfig,
    task: TaskOptions,
    drawn: Drawn,
    training: dict[str, Any],
    repeats: RepeatOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="The circuit, a JSON file.")] = Path("circuit.json"),
    bootstrap: Annotated[
        int,
        typer.Option(min=0, help="Search so often again on examples drawn with replacement: the circuit's stability."),
    ] = 0,
    unlike: Annotated[
        list[Path] | None,
        typer.Option(
            "--unlike", help="A circuit whose edges cost five prices each; may be repeated.", show_default=False
        ),
    ] = None,
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
    from lmlab.distributed import world
    from lmlab.files import require_writable
    from lmlab.methods.edge_pruning import Circuit, best_of, find_circuit, overlap, resampled, with_bootstrap

    config, seeds = (
        config_of(settings.model_dump(exclude_unset=True), set_, training.get("steps"), task.batch_size),
        repeats.seeds,
    )
    if seeds > 1 and not config.draws:
        raise UserError(
            f"--seeds {seeds}: the method {config.method} draws nothing, so that every seed finds the same circuit.",
            "Leave it out; --bootstrap tells how stable the circuit is.",
        )
    require_writable(out)
    loaded = load_model(model, task, shard, search=True)
    searched = task_of(loaded, config, task)
    held_out = loaded.held_out_task(searched, task)
    if held_out is None and not loaded.ground_truth and world().is_main:
        print("Note: no examples are held out, so the figures are those of the examples that the search saw.")
    others = [Circuit.load(path) for path in unlike or []]
    several = seeds > 1 or bootstrap > 0

    def once(name: str, number: int, examples: Any = searched, force: bool = task.force) -> Circuit:
        place = None if run is None else run / name if several else run
        return find_circuit(examples, config, number, place, force, loaded.about(), held_out, others)

    circuit = best_of(found := [once(f"seed-{drawn.seed + number}", drawn.seed + number) for number in range(seeds)])
    if bootstrap and world().is_main:
        circuit.save(out)  # what was found stays, whatever becomes of the searches that follow
    # that the model can do the task shows on all examples; on some draws of them it may look as if it could not
    draws = [
        once(f"bootstrap-{number}", int(circuit.about["seed"]), resampled(searched, number), True)
        for number in range(bootstrap)
    ]
    if draws:
        circuit = with_bootstrap(circuit, draws)
    if not world().is_main:
        return
    circuit.save(out)
    show_circuit(circuit)
    if seeds > 1:
        show_stability(found, circuit)
    if draws:
        steady = circuit.metrics["bootstrap"]
        print(
            f"Over {len(draws)} searches on resampled examples: mean Jaccard index {steady['jaccard']:.3f} with each"
            f" other, {steady['jaccard_with_circuit']:.3f} with the circuit; {steady['core']:,} edges are in all."
        )
        if steady["unable"]:
            print(f"Warning: on {steady['unable']} of them the model does the task no better than without edges.")
    for path, other in zip(unlike or [], others, strict=True):
        figures = overlap(circuit.kept_E, other.kept_E)
        print(f"Shared with '{path}': {figures['intersection']:,} edges, Jaccard index {figures['jaccard']:.3f}.")
    if config.ablation in loaded.ground_truth:
        known, own = set(loaded.ground_truth[config.ablation]), set(circuit.edges)
        print(
            f"Known circuit: {counted(len(known), 'edges')}, {len(own & known)} found, {len(own - known)} too"
            f" many{': exact' if own == known else ''}."
        )
    tried = circuit.metrics.get("search", {}).get("single_edges_tried")
    if tried is not None:
        how = f"{tried:,.0f} single edges were tried" if tried else "single edges were not tried"
        print(f"Converged: {CONVERGED[circuit.about['converged']]} ({how}).")
    for text in circuit.about["warnings"]:
        print(f"Warning: {text}")
    print(f"Circuit: {out}")


@app.command(
    epilog=example(
        "lmlab circuits evaluate ioi.json --model models/smollm2 --data ioi-test.jsonl --curve --completeness --out"
        " ioi-figures.json"
    )
)
@options(TaskOptions, "task", exclude=("recompute", "held_out"))
@options(CircuitConfig, "further", only=("curve",), curve=False)
def evaluate(
    circuit: Annotated[Path, typer.Argument(help="A circuit.")],
    model: Model,
    task: TaskOptions,
    further: CircuitConfig,
    completeness: Annotated[
        bool, typer.Option("--completeness", help="Also compare circuit and model with the same edges taken out.")
    ] = False,
    minimality: Annotated[bool, typer.Option("--minimality", help="Also take out each edge alone.")] = False,
    repaired: Annotated[
        int,
        typer.Option(
            min=0, help="Also pair each prompt so often with the corrupted input of another one: the worst cases."
        ),
    ] = 0,
    metric: Annotated[
        str | None,
        typer.Option(help="What faithfulness is measured by, such as probability_difference.", show_default=False),
    ] = None,
    rank: Annotated[
        str, typer.Option(help="Of --curve: edges by their signed or absolute scores, or by the method's own rule.")
    ] = "own",
    out: Figures = None,
) -> None:
    """Measure a circuit on examples: distance, logit difference, accuracy, exact match, faithfulness."""
    from dataclasses import replace

    from lmlab.files import require_writable, write_json
    from lmlab.methods.edge_pruning import Circuit, Ends, areas, measure_each, ranking
    from lmlab.methods.edge_pruning import completeness as measure_completeness
    from lmlab.methods.edge_pruning import curve as measure_curve
    from lmlab.methods.edge_pruning import minimality as measure_minimality
    from lmlab.methods.edge_pruning.worst import worst_cases

    if rank not in ("own", "signed", "absolute"):
        raise UserError(f"--rank {rank}: known are own, signed and absolute.")
    if out is not None:
        require_writable(out)
    found = Circuit.load(circuit)
    loaded, measured = task_of_circuit(found, model, task)
    ends = Ends.of(measured, metric)
    require_ability(ends, task.force)
    everything: dict[str, Any] = ends.summary(measure_each(measured, found.kept_E))
    if "prompts" in found.about:
        searched = set(found.about["prompts"])
        everything["seen"] = sum(each in searched for each in measured.examples.prompt_hashes)
    if completeness:
        everything |= measure_completeness(measured, found.kept_E, ends)
    if repaired:
        everything |= {"repaired": worst_cases(measured, found.kept_E, repaired)}
    if minimality:
        one_by_one = measure_minimality(measured, found.kept_E)
        effects = {" -> ".join(found.graph.edge(number)): rise for number, rise in one_by_one["effects"].items()}
        everything |= {"superfluous": one_by_one["superfluous"], "effects": effects}
    if further.curve:
        if found.scores_E is None:
            raise UserError(f"'{circuit}' has no scores, by which edges could be ranked.", "Leave out --curve.")
        scores_E = {"signed": found.scores_E, "absolute": found.scores_E.abs()}.get(
            rank, ranking(found.about.get("method", ""), found.scores_E)
        )
        rows = measure_curve(measured, scores_E, ends)
        everything |= {"curve": rows, **areas(rows)}
    show_circuit(replace(found, metrics=everything))
    for key in ("completeness_gap", "superfluous", "cpr", "cmd", "cpr_log", "cmd_log"):
        if key in everything:
            print(f"{key.replace('_', ' ')}: {everything[key]:.4g}")
    if repaired:
        worst, reader = everything["repaired"], loaded.tokenizer
        texts = [str(worst[key]) if reader is None else reader.decode(worst[key]) for key in ("clean", "corrupted")]
        print(
            f"Over {worst['n']:,} pairs of other prompts: distance {worst['mean']:.4g} in the mean (of the task's own"
            f" {worst['own']:.4g}), 99th percentile {worst['p99']:.4g}, largest {worst['max']:.4g}: {texts[0]!r} beside"
            f" {texts[1]!r}."
        )
    if out is not None:
        write_json(out, everything)
        print(f"Figures: {out}")


@app.command(
    epilog=example(
        "lmlab circuits report ioi.json --curves methods.json --out ioi.html",
        "lmlab circuits report ioi.json --model models/smollm2 --data ioi.jsonl --prompts 3 -o ioi.html",
        "lmlab circuits report ioi.json -o ioi.dot -o ioi.graphml",
    )
)
@options(TaskOptions, "task", only=("data", "split", "tokenizer", "device"))
def report(
    circuit: Annotated[Path, typer.Argument(help="A circuit.")],
    task: TaskOptions,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The circuit's model, to show prompts.", show_default=False)
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help="With --model: show so many prompts \\[default: 3].", show_default=False),
    ] = None,
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
    force: Annotated[
        bool, typer.Option("--force", help="Compare circuits that were found under different ablations.")
    ] = False,
) -> None:
    """Write a page with the graph to explore, or the graph for other programs."""
    from lmlab.methods.edge_pruning import Circuit
    from lmlab.methods.edge_pruning.commands.compare import read_curves
    from lmlab.methods.edge_pruning.graph.formats import to_dot, to_graphml
    from lmlab.methods.edge_pruning.prompts import prompts_section
    from lmlab.methods.edge_pruning.report import circuit_page

    found = Circuit.load(circuit)
    drawn = None
    if curves is not None:
        drawn = read_curves(curves)
    if len({each.resolve() for each in (circuit, *(others or []))}) <= len(others or []):
        raise UserError("--with: a circuit is named twice.", "Name each circuit once.")
    compared = {str(each): Circuit.load(each) for each in others or []}
    require_comparable({str(circuit): found, **compared}, force, by_kind=True)
    shown = None
    if model is not None:
        loaded, measured = task_of_circuit(found, model, task)
        between = " " if loaded.tokenizer is None else ""
        shown = prompts_section(found, measured, loaded.written, prompts or 3, between=between)
    elif prompts is not None or task != TaskOptions():
        raise UserError("--prompts, --data and how they are read are of prompts for a model.", "Give --model too.")
    for path in out or [Path("circuit.html")]:
        if path.suffix == ".html":
            circuit_page(found, drawn, compared, prompts=shown).write(path)
        elif path.suffix in (".graphml", ".dot"):
            (to_graphml if path.suffix == ".graphml" else to_dot)(found, path)
        else:
            raise UserError(f"--out {path}: the name must end in .html, .graphml or .dot.")
        print(f"{'Page' if path.suffix == '.html' else 'Graph'}: {path}")


@app.command(
    name="data", epilog=example("lmlab circuits data ioi --tokenizer models/smollm2 --count 200 --out ioi.jsonl")
)
@options(CircuitExamplesConfig, "made", only=("tokenizer", "shots"))
@options(ExampleOptions, "how")
@options(Drawn, "drawn")
def make_data(
    task: Annotated[
        str, typer.Argument(help="ioi, greater-than, pronouns, boolean, induction, mcqa, addition or subtraction.")
    ],
    made: CircuitExamplesConfig,
    how: ExampleOptions,
    drawn: Drawn,
    out: Annotated[Path, typer.Option("--out", "-o", help="The examples, JSON lines.")],
) -> None:
    """Make examples of a task: clean and corrupted prompts of equal length, with single-token answers."""
    from lmlab.files import write_jsonl
    from lmlab.methods.edge_pruning import generate
    from lmlab.runs import Vocabulary

    if task != "boolean" and made.shots != CircuitExamplesConfig.model_fields["shots"].default:
        raise UserError(f"--shots has no influence: the task {task} has no solved examples.", "Leave it out.")
    rows = generate(task, Vocabulary.find(made.tokenizer).load(), how.count, drawn.seed, how.split, made.shots)
    print(f"{write_jsonl(out, rows)} examples: {out}")


@app.command(
    epilog=example(
        "lmlab circuits convert edges.json --model models/gpt2 --from edge-list --out circuit.json",
        "lmlab circuits convert circuit.json --to eap-ig --out graph.json",
    )
)
@options(FindConfig, only=("ablation",))
def convert(
    source: Annotated[Path, typer.Argument(help="A circuit, or with --from a file of another program.")],
    settings: FindConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="What is written.")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="edge-list or checkpoint (the reference implementation), or eap-ig (also MIB; .json or .pt).",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="edge-list, eap-ig, or mib (a folder of nine circuits by rank).", show_default=False),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="With --from: the model it belongs to.", show_default=False)
    ] = None,
    join: Annotated[
        bool, typer.Option(help="Of --from eap-ig: keep the embeddings of tokens and positions one writer.")
    ] = False,
) -> None:
    """Convert circuits from and to the files of other programs."""
    from lmlab.methods.edge_pruning import Circuit, CircuitGraph, GraphOptions, ranking
    from lmlab.methods.edge_pruning.graph.checkpoints import read_checkpoint
    from lmlab.methods.edge_pruning.graph.formats import read_eap_ig, read_edge_list, write_eap_ig, write_edge_list
    from lmlab.methods.edge_pruning.graph.submission import write_submission

    if (from_ is None) == (to is None):
        raise UserError("Give either --from or --to.")
    known = ("edge-list", "eap-ig", "mib" if from_ is None else "checkpoint")
    if (from_ or to) not in known:
        raise UserError(f"The format '{from_ or to}' is not known. Known: {', '.join(known)}.")
    if to == "mib":
        found = Circuit.load(source)
        if found.scores_E is None:
            raise UserError(f"'{source}' has no scores, by which circuits of nine sizes could be made.")
        counts = write_submission(found, out, ranking(found.about.get("method", ""), found.scores_E))
        print(f"Circuits of {', '.join(f'{count:,}' for count in counts)} edges.")
    elif to is not None:
        (write_edge_list if to == "edge-list" else write_eap_ig)(Circuit.load(source), out)
    else:
        if model is None:
            raise UserError("--from needs --model, whose graph the edges belong to.")
        from lmlab.runs import Model as FoundModel

        shape, options_ = FoundModel.find(model).config, GraphOptions()
        if from_ == "eap-ig":  # whose embeddings are one writer
            options_ = GraphOptions(join_embeddings=shape.positions == "learned" and join)
        graph = CircuitGraph(shape, options_)
        if from_ == "edge-list":
            kept_E, scores_E = read_edge_list(source, graph), None
        else:
            kept_E, scores_E = (read_eap_ig if from_ == "eap-ig" else read_checkpoint)(source, graph)
        about: dict[str, Any] = {"method": from_, "model": str(model), "warnings": []}
        Circuit(graph, kept_E, settings.ablation, scores_E, about).save(out)
    print(f"Written: {out}")


import lmlab.methods.edge_pruning.commands.compare  # noqa: E402 (adds the command that compares)
import lmlab.methods.edge_pruning.commands.neurons  # noqa: E402 (adds the command for neurons)
import lmlab.methods.edge_pruning.commands.sweep  # noqa: E402, F401 (adds the command that sweeps)
