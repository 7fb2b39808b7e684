"""`lmlab programs`: train, export, verify, minimize, run and explain programs; read those of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import DryRun, Out, Redo, Set, Vary, example, print_table, run_stages
from lmlab.errors import LmlabError, UserError
from lmlab.methods.transformer_programs.commands.decompile import decompile, decompile_example
from lmlab.methods.transformer_programs.commands.shared import (
    joined,
    labeled_examples,
    marked,
    marks_of,
    rule_of,
    show_manifest,
    show_trace,
)
from lmlab.methods.transformer_programs.config import (
    EXHAUSTIVE,
    AccuracyDropConfig,
    ExamplesConfig,
    ExportOptions,
    HalvingConfig,
    MinimizeConfig,
    RowsConfig,
    TrainSettings,
)
from lmlab.runs.loading import AtOnce

app = typer.Typer(
    no_args_is_help=True,
    help="Transformers that are programs: train, export faithfully, verify, minimize, run and explain them.",
)

_EXPLAINED = 2000  # sequences for a page: each input on it is shown place by place

Where = Annotated[Path, typer.Argument(help="A program: its directory or file, or the stage or run that trained it.")]
To = Annotated[Path, typer.Option("--out", "-o", help="Directory of the program.")]


@app.command(
    epilog=example(
        "lmlab programs train --task hist --num-layers 1 --seeds 8 --epochs 20 --out runs/hist",
        "lmlab programs train --data train.jsonl --valid valid.jsonl --embedding-vars 4 --d-var 32 --out runs/tags",
    )
)
@options(TrainSettings)
@options(MinimizeConfig, "shorter")
def train(
    settings: TrainSettings,
    shorter: MinimizeConfig,
    out: Out = None,
    overrides: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Train all seeds of a shape as one computation and export the best one's program; the same command goes on where
    it was stopped.
    """
    name = settings.task or Path(settings.data or "programs").stem
    stage = {"kind": "train_program", **settings.model_dump(mode="json", exclude_defaults=True)}
    stage |= shorter.model_dump(mode="json", exclude_defaults=True)
    run_stages(name, {"program": stage}, out, overrides, dry_run, redo)


@app.command(
    epilog=example(
        "lmlab programs sweep recipes/programs-laptop.yaml --vary stages.hist.num_heads=1,2,4 --out runs/shapes"
    )
)
@options(HalvingConfig, "halving")
@options(AtOnce, "how", only=("workers",))
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe with one stage train_program.")],
    vary: Vary,
    halving: HalvingConfig,
    how: AtOnce,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the runs.")] = Path("runs/programs-sweep"),
    ray: Annotated[bool, typer.Option("--ray", help="On a Ray cluster.")] = False,
) -> None:
    """Train many shapes by successive halving: all for a short time, the better part for longer."""
    from rich.table import Table

    from lmlab.methods.transformer_programs.training.sweep import sweep as halve
    from lmlab.runs import parse_axes

    rows = halve(recipe, parse_axes(vary), out, halving, how.workers, "ray" if ray else "processes")
    table = Table("rung", "run", "epochs", "validation, %", "test, %", "best seed")
    for row in rows:
        test = "" if row.test_accuracy is None else f"{100 * row.test_accuracy:.2f}"
        cells = (row.rung, row.name, f"{row.epochs:g}", f"{100 * row.valid_accuracy:.2f}", test, row.best_seed)
        table.add_row(*map(str, cells))
    print_table(table)


@app.command(epilog=example("lmlab programs export runs/hist --minimize --max-accuracy-drop 0.001 --out hist_program/"))
@options(ExportOptions, "chosen")
def export(
    run: Annotated[Path, typer.Argument(help="What 'lmlab programs train' wrote, or a run of the reference.")],
    chosen: ExportOptions,
    out: To = Path("program"),
    seed: Annotated[int | None, typer.Option(help="Which seed, by default the best.", show_default=False)] = None,
) -> None:
    """Write the program of a trained network, once it is shown to answer as the network does."""
    from lmlab.methods.transformer_programs.analysis.export import export_program
    from lmlab.methods.transformer_programs.tasks.load import about_data, load_data
    from lmlab.methods.transformer_programs.training.run import TrainedNetworks

    networks = TrainedNetworks.find(run)
    settings, place = networks.settings(), networks.place_of(seed)
    manifest = export_program(networks.load(), place, load_data(settings), out, chosen, about_data(settings))
    show_manifest(manifest, out)


@app.command(name="import", epilog=example("lmlab programs import their/hist.py --out hist_program/"))
@options(RowsConfig, "limits")
def import_(
    source: Annotated[Path, typer.Argument(help="Python text that the reference wrote, or its run's directory.")],
    limits: RowsConfig,
    out: To = Path("program"),
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Of a run on text: a file with 'tokens' and 'labels', JSON.", show_default=False),
    ] = None,
) -> None:
    """Read a program, or a trained network, of the reference. Its text is parsed, never executed."""
    from lmlab.files import read_mapping
    from lmlab.methods.transformer_programs.analysis.export import convert, write_program
    from lmlab.methods.transformer_programs.analysis.minimize import described
    from lmlab.methods.transformer_programs.network.reference import load_reference
    from lmlab.methods.transformer_programs.program.import_python import import_python
    from lmlab.methods.transformer_programs.tasks.load import about_data
    from lmlab.methods.transformer_programs.training.run import TrainedNetworks

    manifest: dict[str, Any]
    if source.is_dir():
        names = read_mapping(vocabulary) if vocabulary else {}
        model = load_reference(source, names.get("tokens"), names.get("labels"))
        about = None if vocabulary else about_data(TrainedNetworks.find(source).settings())
        program, manifest = convert(model, limits.max_rows, about)
    else:
        program = import_python(source)
        manifest = {"size": described(program)}
    show_manifest(write_program(program, out, {"source": str(source), **manifest}), out)


@app.command(epilog=example("lmlab programs minimize hist_program/ --task hist --out hist_short/"))
@options(ExamplesConfig, "given")
@options(AccuracyDropConfig, "allowed")
def minimize(
    program: Where,
    given: ExamplesConfig,
    allowed: AccuracyDropConfig,
    out: To = Path("program"),
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Stop looking after so long; else when nothing makes it shorter.", show_default=False),
    ] = None,
) -> None:
    """Make a program short, as far as its accuracy on some data allows."""
    from lmlab.methods.transformer_programs.analysis.export import write_program
    from lmlab.methods.transformer_programs.analysis.minimize import minimize as shorten
    from lmlab.methods.transformer_programs.program.files import load_program

    read = load_program(program)
    found = shorten(
        read,
        labeled_examples(read, given, splits=("train", "valid")),
        allowed.max_accuracy_drop,
        seconds=seconds,
    )
    about = {"max_accuracy_drop": allowed.max_accuracy_drop, "before": found.before, "after": found.after}
    show_manifest(write_program(found.program, out, {"minimized": about}), out)


@app.command(
    epilog=example(
        "lmlab programs verify hist_program/ --oracle hist --exhaustive 7",
        "lmlab programs verify hist_short/ --against hist_program/ --data test.jsonl",
    )
)
@options(ExamplesConfig, "given")
def verify(
    program: Where,
    given: ExamplesConfig,
    against: Annotated[Path | None, typer.Option(help="Another program.", show_default=False)] = None,
    run: Annotated[Path | None, typer.Option(help="The networks it was exported from.", show_default=False)] = None,
    oracle: Annotated[
        str | None,
        typer.Option(help="A task's rule, or module:function of your own, which is run.", show_default=False),
    ] = None,
    exhaustive: Annotated[
        int | None, typer.Option(min=1, help="All sequences up to so many symbols.", show_default=False)
    ] = None,
) -> None:
    """Compare a program with its network, another program, or a rule; the exit code is 1 if they differ."""
    from lmlab.methods.transformer_programs.analysis import verify as checks
    from lmlab.methods.transformer_programs.analysis.export import difference, symbols_of
    from lmlab.methods.transformer_programs.program.files import load_program
    from lmlab.progress import console

    read = load_program(program)
    if sum(each is not None for each in (against, run, oracle)) != 1:
        raise UserError("Give one of --against, --run and --oracle.")
    sequences: Sequence[Sequence[str]]
    if exhaustive is not None:
        symbols = symbols_of(read)
        if not symbols:
            raise UserError(
                "The program does not say its vocabulary, of which all inputs are made.",
                "Give --data, or add 'vocabulary' to program.json.",
            )
        total = sum(len(symbols) ** length for length in range(1, exhaustive + 1))
        if total > 20 * EXHAUSTIVE:  # asked for by name, more may be tried than by default
            raise UserError(f"{total:,} inputs are too many to try all.", "Lower --exhaustive.")
        bos, eos = marks_of(read)
        sequences = list(checks.every_input(symbols, exhaustive, bos, eos))
    else:
        if oracle and ":" not in oracle and not given.task:
            given = given.model_copy(update={"task": oracle})
        sequences = [tokens for tokens, _ in labeled_examples(read, given)]
    if against is not None:
        report = checks.compare_programs(read, load_program(against), sequences)
    elif oracle is not None:
        report = checks.compare_oracle(read, rule_of(oracle), sequences)
    else:
        from lmlab.methods.transformer_programs.training.run import TrainedNetworks

        networks = TrainedNetworks.find(run or program)
        report = checks.verify(networks.load(), read, sequences, networks.place_of(None))
    if not report.equal:
        raise LmlabError(difference(report))
    if not report.places:
        raise UserError("Nothing was compared: no place has an answer to compare with.")
    ties = f", {report.near_ties} near ties" if report.near_ties else ""
    console.print(f"Equal on {report.sequences:,} sequences, {report.places:,} places{ties}.")


@app.command(epilog=example('lmlab programs run hist_program/ "3 1 3 0" --trace'))
def run(
    program: Where,
    tokens: Annotated[str | None, typer.Argument(help="Tokens between spaces.", show_default=False)] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="JSON lines with tokens, in place of them.", show_default=False)
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Every variable at every place.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Add no marks at the ends.")] = False,
    rule: Annotated[
        str, typer.Option(help="faithful, or emitted: which place a head takes in the reference's Python.")
    ] = "faithful",
) -> None:
    """Run a program on one sequence, or on many at once."""
    import json

    from lmlab.files import read_jsonl
    from lmlab.methods.transformer_programs.program.files import load_program
    from lmlab.methods.transformer_programs.program.interpret import Interpreter
    from lmlab.progress import console

    if rule not in ("faithful", "emitted"):
        raise UserError(f"--rule {rule}: expected faithful or emitted.")
    if (tokens is None) == (input_ is None):
        raise UserError("Give either tokens or --input.")
    read = load_program(program)
    if tokens is not None:
        given = [tokens.split()]
    else:
        given = []
        for number, row in enumerate(read_jsonl(input_ or Path()), 1):
            words = row.get("tokens")
            if not isinstance(words, list) or not all(isinstance(each, str) for each in words):
                raise UserError(f"'{input_}', line {number}: 'tokens' is not a list of texts.")
            given.append(words)
    sequences = given if raw else [marked(read, each) for each in given]
    execution = Interpreter(read, rule).run(sequences)  # type: ignore[arg-type]
    if trace:
        for number in range(len(sequences)):
            show_trace(execution, number)
        return
    for answer in execution.answers:
        console.print(json.dumps(answer, ensure_ascii=False) if input_ else joined(answer), markup=False)


@app.command(epilog=example("lmlab programs evaluate hist_program/ --task hist"))
@options(ExamplesConfig, "given")
def evaluate(
    program: Where,
    given: ExamplesConfig,
    spans: Annotated[bool, typer.Option("--spans", help="Also strict F1 of BIO spans.")] = False,
) -> None:
    """The accuracy of a program on labeled data."""
    from lmlab.methods.transformer_programs.analysis.explain import measure_program
    from lmlab.methods.transformer_programs.program.files import load_program
    from lmlab.progress import console

    read = load_program(program)
    figures = measure_program(read, labeled_examples(read, given), spans)
    for name, value in figures.items():
        console.print(f"{name.replace('_', ' ')}: {value if isinstance(value, int) else f'{100 * value:.2f} %'}")


@app.command(epilog=example("lmlab programs explain hist_program/ --task hist --out hist.html"))
@options(ExamplesConfig, "given", examples=_EXPLAINED)
def explain(
    program: Where,
    given: ExamplesConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("program.html"),
) -> None:
    """Write an HTML page: what each variable is, an input place by place, what decided an answer, dead branches."""
    from lmlab.methods.transformer_programs.analysis.explain import write_page
    from lmlab.methods.transformer_programs.program.files import load_program
    from lmlab.progress import console

    read = load_program(program)
    write_page(
        read,
        labeled_examples(read, given),
        out,
        str(read.about.get("task") or program.name),
    )
    console.print(f"Page: {out}")


app.command(epilog=decompile_example)(decompile)
