"""`lmlab programs`: train, export, verify, minimize, run and explain programs; read those of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import DryRun, Out, Redo, example, print_table, run_stages
from lmlab.errors import LmlabError, UserError
from lmlab.methods.transformer_programs.config import TrainSettings

if TYPE_CHECKING:
    from lmlab.methods.transformer_programs.program.ir import Program
    from lmlab.methods.transformer_programs.tasks.rasp import Example

app = typer.Typer(
    no_args_is_help=True,
    help="Transformers that are programs: train, export faithfully, verify, minimize, run and explain them.",
)

Where = Annotated[Path, typer.Argument(help="A program: its directory or program.json.")]
To = Annotated[Path, typer.Option("--out", "-o", help="Directory of the program.")]
Drop = Annotated[float, typer.Option(min=0, help="With --minimize: accuracy that it may cost.")]
Labels = Annotated[
    str | None,
    typer.Option(
        help="tokens or sequence: what the labels of a file belong to.", show_default="what the program answers"
    ),
]
TokenColumn = Annotated[int, typer.Option(help="Of a file with columns, counted from 0.")]
LabelColumn = Annotated[int, typer.Option(help="Of a file with columns; -1 is the last.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="Labeled sequences: JSON lines or CoNLL columns.", show_default=False),
]
Task = Annotated[str | None, typer.Option(help="In place of data: sequences of a task.", show_default=False)]
Most = Annotated[int, typer.Option("--examples", min=1, help="At most so many sequences.")]


@app.command(
    epilog=example(
        "lmlab programs train --task hist --num-layers 1 --seeds 8 --epochs 20 --out runs/hist",
        "lmlab programs train --data train.jsonl --valid valid.jsonl --embedding-vars 4 --d-var 32 --out runs/tags",
    )
)
@options(TrainSettings)
def train(
    settings: TrainSettings,
    out: Out = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Make the program short.")] = False,
    max_accuracy_drop: Drop = 0.001,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Train all seeds of a shape as one computation and export the best one's program; the same command goes on where
    it was stopped.
    """
    name = settings.task or Path(settings.data or "programs").stem
    stage = {"kind": "train_program", **settings.model_dump(mode="json", exclude_defaults=True)}
    stage |= {"minimize": minimize, "max_accuracy_drop": max_accuracy_drop}
    run_stages(name, {"program": stage}, out, None, dry_run, redo)


@app.command(
    epilog=example(
        "lmlab programs sweep recipes/programs-laptop.yaml --vary stages.hist.num_heads=1,2,4 --out runs/shapes"
    )
)
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe with one stage train_program.")],
    vary: Annotated[list[str], typer.Option(help="KEY=VALUE,VALUE,... as for 'lmlab sweep'; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the runs.")] = Path("runs/programs-sweep"),
    rungs: Annotated[int, typer.Option(min=1, help="How often the better part goes on for longer.")] = 3,
    factor: Annotated[int, typer.Option(min=2, help="One of so many goes on, for so many times the epochs.")] = 3,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once.", show_default=False)] = None,
    ray: Annotated[bool, typer.Option("--ray", help="On a Ray cluster.")] = False,
) -> None:
    """Train many shapes by successive halving: all for a short time, the better part for longer."""
    from rich.table import Table

    from lmlab.methods.transformer_programs.training.sweep import sweep as halve
    from lmlab.runs import parse_axes

    rows = halve(recipe, parse_axes(vary), out, rungs, factor, workers, "ray" if ray else "processes")
    table = Table("rung", "run", "epochs", "validation, %", "test, %", "best seed")
    for row in rows:
        test = "" if row.test_accuracy is None else f"{100 * row.test_accuracy:.2f}"
        cells = (row.rung, row.name, f"{row.epochs:g}", f"{100 * row.valid_accuracy:.2f}", test, row.best_seed)
        table.add_row(*map(str, cells))
    print_table(table)


@app.command(epilog=example("lmlab programs export runs/hist --minimize --max-accuracy-drop 0.001 --out hist_program/"))
def export(
    run: Annotated[Path, typer.Argument(help="What 'lmlab programs train' wrote, or a run of the reference.")],
    out: To = Path("program"),
    seed: Annotated[int | None, typer.Option(help="Which seed, by default the best.", show_default=False)] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Make the program short.")] = False,
    max_accuracy_drop: Drop = 0.001,
    max_rows: Annotated[int, typer.Option(min=1, help="The longest table.")] = 50_000,
    max_length: Annotated[
        int | None, typer.Option(help="Places for which tables of counts shall hold.", show_default=False)
    ] = None,
    exhaustive: Annotated[int, typer.Option(min=0, help="Try all inputs where they are at most so many.")] = 1_000_000,
    allow_unfaithful: Annotated[
        bool, typer.Option("--allow-unfaithful", help="Write a program that differs from its model, marked as such.")
    ] = False,
) -> None:
    """Write the program of a trained network, once it is shown to answer as the network does."""
    from lmlab.methods.transformer_programs.analysis.export import ExportOptions, export_program
    from lmlab.methods.transformer_programs.tasks.load import load_data
    from lmlab.methods.transformer_programs.training.run import TrainedNetworks

    networks = TrainedNetworks.find(run)
    settings, place = networks.settings(), networks.place_of(seed)
    chosen = ExportOptions(minimize, max_accuracy_drop, max_rows, max_length, exhaustive, allow_unfaithful)
    about = {"task": settings.task} if settings.task else None
    manifest = export_program(networks.load(), place, load_data(settings), out, chosen, about)
    _show_manifest(manifest, out)


@app.command(name="import", epilog=example("lmlab programs import their/hist.py --out hist_program/"))
def import_(
    source: Annotated[Path, typer.Argument(help="Python text that the reference wrote, or its run's directory.")],
    out: To = Path("program"),
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Of a run on text: a file with 'tokens' and 'labels', JSON.", show_default=False),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="The longest table.")] = 50_000,
) -> None:
    """Read a program, or a trained network, of the reference. Its text is parsed, never executed."""
    from lmlab.files import read_mapping
    from lmlab.methods.transformer_programs.analysis.export import write_program
    from lmlab.methods.transformer_programs.analysis.minimize import described
    from lmlab.methods.transformer_programs.network.convert import to_program
    from lmlab.methods.transformer_programs.network.reference import load_reference
    from lmlab.methods.transformer_programs.program.import_python import import_python

    if source.is_dir():
        names = read_mapping(vocabulary) if vocabulary else {}
        program = to_program(load_reference(source, names.get("tokens"), names.get("labels")), max_rows=max_rows)
    else:
        program = import_python(source)
    _show_manifest(write_program(program, out, {"source": str(source), "size": described(program)}), out)


@app.command(epilog=example("lmlab programs minimize hist_program/ --task hist --out hist_short/"))
def minimize(
    program: Where,
    out: To = Path("program"),
    data: Data = None,
    task: Task = None,
    labels: Labels = None,
    token_column: TokenColumn = 0,
    label_column: LabelColumn = -1,
    max_accuracy_drop: Drop = 0.001,
    examples: Most = 20_000,
) -> None:
    """Make a program short, as far as its accuracy on some data allows."""
    from lmlab.methods.transformer_programs.analysis.export import write_program
    from lmlab.methods.transformer_programs.analysis.minimize import minimize as shorten
    from lmlab.methods.transformer_programs.program.files import load_program

    read = load_program(program)
    found = shorten(
        read,
        _examples(read, data, task, labels, (token_column, label_column), examples, splits=("train", "valid")),
        max_accuracy_drop,
    )
    about = {"max_accuracy_drop": max_accuracy_drop, "before": found.before, "after": found.after}
    _show_manifest(write_program(found.program, out, {"minimized": about}), out)


@app.command(
    epilog=example(
        "lmlab programs verify hist_program/ --oracle hist --exhaustive 7",
        "lmlab programs verify hist_short/ --against hist_program/ --data test.jsonl",
    )
)
def verify(
    program: Where,
    against: Annotated[Path | None, typer.Option(help="Another program.", show_default=False)] = None,
    run: Annotated[Path | None, typer.Option(help="The networks it was exported from.", show_default=False)] = None,
    oracle: Annotated[
        str | None,
        typer.Option(help="A task's rule, or module:function of your own, which is run.", show_default=False),
    ] = None,
    exhaustive: Annotated[
        int | None, typer.Option(min=1, help="All sequences up to so many symbols.", show_default=False)
    ] = None,
    data: Data = None,
    task: Task = None,
    labels: Labels = None,
    token_column: TokenColumn = 0,
    label_column: LabelColumn = -1,
    examples: Most = 20_000,
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
        total = sum(len(symbols) ** length for length in range(1, exhaustive + 1))
        if total > 20 * checks.EXHAUSTIVE:
            raise UserError(f"{total:,} inputs are too many to try all.", "Lower --exhaustive.")
        bos, eos = _marks(read)
        sequences = list(checks.every_input(symbols, exhaustive, bos, eos))
    else:
        sequences = [
            tokens
            for tokens, _ in _examples(
                read, data, task or _task_of(oracle), labels, (token_column, label_column), examples
            )
        ]
    if against is not None:
        report = checks.compare_programs(read, load_program(against), sequences)
    elif oracle is not None:
        report = checks.compare_oracle(read, _oracle(oracle), sequences)
    else:
        from lmlab.methods.transformer_programs.training.run import TrainedNetworks

        networks = TrainedNetworks.find(run or program)
        report = checks.verify(networks.load(), read, sequences, networks.place_of(None))
    if not report.equal:
        raise LmlabError(difference(report))
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
    sequences = given if raw else [_marked(read, each) for each in given]
    execution = Interpreter(read, rule).run(sequences)  # type: ignore[arg-type]
    if trace:
        for number in range(len(sequences)):
            _show_trace(execution, number)
        return
    for answer in execution.answers:
        console.print(json.dumps(answer, ensure_ascii=False) if input_ else _joined(answer), markup=False)


@app.command(epilog=example("lmlab programs evaluate hist_program/ --task hist"))
def evaluate(
    program: Where,
    data: Data = None,
    task: Task = None,
    labels: Labels = None,
    token_column: TokenColumn = 0,
    label_column: LabelColumn = -1,
    examples: Most = 20_000,
    spans: Annotated[bool, typer.Option("--spans", help="Also strict F1 of BIO spans.")] = False,
) -> None:
    """The accuracy of a program on labeled data."""
    from lmlab.methods.transformer_programs.analysis.explain import measure_program
    from lmlab.methods.transformer_programs.program.files import load_program
    from lmlab.progress import console

    read = load_program(program)
    figures = measure_program(read, _examples(read, data, task, labels, (token_column, label_column), examples), spans)
    for name, value in figures.items():
        console.print(f"{name.replace('_', ' ')}: {value if isinstance(value, int) else f'{100 * value:.2f} %'}")


@app.command(epilog=example("lmlab programs explain hist_program/ --task hist --out hist.html"))
def explain(
    program: Where,
    data: Data = None,
    task: Task = None,
    labels: Labels = None,
    token_column: TokenColumn = 0,
    label_column: LabelColumn = -1,
    examples: Most = 2000,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("program.html"),
) -> None:
    """Write an HTML page: what each variable is, an input place by place, what decided an answer, dead branches."""
    from lmlab.methods.transformer_programs.analysis.explain import write_page
    from lmlab.methods.transformer_programs.program.files import load_program
    from lmlab.progress import console

    read = load_program(program)
    write_page(
        read,
        _examples(read, data, task, labels, (token_column, label_column), examples),
        out,
        str(read.about.get("task") or program.name),
    )
    console.print(f"Page: {out}")


def _task_of(oracle: str | None) -> str | None:
    return oracle if oracle and ":" not in oracle else None


def _oracle(name: str) -> Any:
    """The rule of a task, or a function that the user names."""
    from lmlab.methods.transformer_programs.tasks.rasp import task

    if ":" not in name:
        return task(name).label
    from importlib import import_module

    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--oracle {name}: {error}.", "Name it as module:function.") from None


def _examples(
    program: Program,
    data: Path | None,
    task: str | None,
    labels: str | None,
    columns: tuple[int, int],
    most: int,
    splits: Sequence[str] = ("test",),
) -> list[Example]:
    """Labeled sequences for a program: of a file, or drawn."""
    from lmlab.config import validate
    from lmlab.methods.transformer_programs.config import DataConfig
    from lmlab.methods.transformer_programs.tasks.load import draw, read_examples
    from lmlab.progress import console

    if data is not None:
        if labels not in ("tokens", "sequence", None):
            raise UserError(f"--labels {labels}: expected tokens or sequence.")
        sequence = labels == "sequence" if labels else program.pool_outputs
        if sequence != program.pool_outputs:
            gives = "one answer a sequence" if program.pool_outputs else "an answer for each token"
            raise UserError(f"--labels {labels}: the program gives {gives}.", "Leave --labels out.")
        found = read_examples(str(data), "sequence" if sequence else "tokens", *_marks(program), *columns)
        longest = program.longest
        kept = [each for each in found if longest is None or len(each[0]) <= longest]
        if not kept:
            raise UserError(f"No sequence of '{data}' has at most {longest} places, which the program knows.")
        if len(kept) < len(found):
            told = (
                f"{len(found) - len(kept):,} of {len(found):,} sequences are longer than the program's {longest} places"
            )
            console.print(f"{told} and left out.", style="yellow")
        return kept[:most]
    name = task or program.about.get("task")
    if not isinstance(name, str):
        raise UserError("Give --data or --task.")
    drawn = draw(validate(DataConfig, {"task": name}, "the options"))
    parts = {"train": drawn.train, "valid": drawn.valid, "test": drawn.test}
    return [each for split in splits for each in getattr(parts[split], "examples", ())][:most]


def _marks(program: Program) -> tuple[str | None, str | None]:
    """The marks that sequences of a program have at their ends: those in its vocabulary."""
    known = program.vocabulary or ()
    return (program.bos if program.bos in known else None, program.eos if program.eos in known else None)


def _marked(program: Program, tokens: list[str]) -> list[str]:
    bos, eos = _marks(program)
    before = [bos] if bos and tokens[:1] != [bos] else []
    return [*before, *tokens, *([eos] if eos and tokens[-1:] != [eos] else [])]


def _joined(answer: Any) -> str:
    return answer if isinstance(answer, str) else " ".join(answer)


def _show_trace(execution: Any, number: int) -> None:
    from rich.table import Table

    program, tokens = execution.program, execution.tokens[number]
    table = Table("", *(f"{place} {token}" for place, token in enumerate(tokens)))
    for name in program.variables:
        cells = [str(each) for each in execution.variable(name, number)]
        if name in execution.places:
            taken = execution.places[name][number].tolist()
            cells = [f"{cell} (at {'none' if at < 0 else at})" for cell, at in zip(cells, taken, strict=False)]
        table.add_row(name, *cells)
    answer = execution.answers[number]
    table.add_row("ANSWER", *([answer] if isinstance(answer, str) else answer))
    print_table(table)


def _show_manifest(manifest: dict[str, Any], out: Path) -> None:
    from lmlab.progress import console

    checked = manifest.get("verification")
    if checked:
        every = f", all inputs up to {checked['exhaustive']} symbols among them" if checked.get("exhaustive") else ""
        word = "equal" if manifest["faithful"] else "NOT EQUAL"
        console.print(f"Program and network are {word} on {checked['places']:,} places{every}.")
    for split, value in manifest.get("accuracy", {}).items():
        console.print(f"accuracy on {split}: {100 * value:.2f} %")
    shorter = manifest.get("minimized")
    if shorter:
        for name in ("accuracy", "lines", "nodes", "predicate_pairs", "table_rows", "classifier_rows"):
            before, after = shorter["before"][name], shorter["after"][name]
            shown = f"{100 * before:.2f} % -> {100 * after:.2f} %" if name == "accuracy" else f"{before} -> {after}"
            console.print(f"{name.replace('_', ' ')}: {shown}")
    console.print(f"Program: {out}")
