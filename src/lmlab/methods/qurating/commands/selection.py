"""`lmlab quality`: the commands that plan, choose, filter, order, score and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError
from lmlab.methods.qurating.cli import Out, app
from lmlab.methods.qurating.config import AnalysisConfig, RatingOptions
from lmlab.methods.qurating.selecting.settings import USUAL_SEED, SelectionSettings, ShardOptions, TableFormat
from lmlab.words import counted

_SHOWN = 12  # columns of a table in a terminal
In = Annotated[
    list[Path],
    typer.Option("--in", help="Annotated corpus: file or folder of Parquet, Arrow or JSON lines. May be repeated."),
]
DomainWeights = Annotated[
    Path | None, typer.Option(help="YAML file of labels and weights, in place of their shares.", show_default=False)
]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="Counts texts where there are no lengths.", show_default=False)
]


@app.command(
    epilog=example(
        "lmlab quality plan --in rated --metric educational_value_average --tokens 30B --domain source_domain"
    )
)
@options(SelectionSettings, exclude=("mode", "tau"))
def plan(
    where: In,
    settings: SelectionSettings,
    domain_weights: DomainWeights = None,
    tokenizer: TokenizerPath = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan as JSON.", show_default=False)] = None,
) -> None:
    """Show what each temperature would choose: mean rating, effective rows, deciles, domains, overlaps.

    Nothing is drawn or written.
    """
    from lmlab.files import write_json
    from lmlab.methods.qurating.commands.shared import print_rows
    from lmlab.methods.qurating.selecting.plan import plan_selection
    from lmlab.stats import without_noise

    config = _config(where, settings, domain_weights, "sample", tokenizer)
    found = plan_selection(_locations(where), config, measure=_measure(tokenizer))
    rows = [
        [each.name, without_noise(each.mean_z), round(each.rows), round(each.effective_rows), *each.deciles]
        for each in found.outlooks
    ]
    columns = ["setting", "mean z", "rows", "effective rows", *(f"decile {number}" for number in range(1, 11))]
    print_rows(
        columns,
        rows,
        f"{found.tokens:,} of {found.corpus_tokens:,} tokens, {found.corpus_rows:,} rows; shares of the chosen tokens",
    )
    print("Effective rows are those among which the first draw is spread, not those that are chosen.")
    if settings.domain is not None:
        names = sorted(found.corpus_domains, key=lambda name: -found.corpus_domains[name])[:_SHOWN]
        lines = [("corpus", found.corpus_domains), *((each.name, each.domains) for each in found.outlooks)]
        shares = [[line, *(of[name] for name in names)] for line, of in lines]
        few = "" if len(names) == len(found.corpus_domains) else f", the {len(names)} largest"
        print_rows(["setting", *names], shares, f"Shares of tokens by {settings.domain}{few}")
    names = [each.name for each in found.outlooks]
    print_rows(
        ["overlap with", *names],
        [[each.name, *each.overlap.values()] for each in found.outlooks],
        "Share of a choice that another has too",
    )
    for column, most in config.cap_duplicates.items():
        print(f"At most {counted(most, 'rows')} of each label in '{column}': that plays no part in this plan.")
    if found.repeats > 1:
        print(f"The corpus does not fill the budget: all rows would have to be repeated {found.repeats:.2f} times.")
    if out is not None:
        write_json(out, found.to_json())
        print(f"Plan: {out}")


@app.command(
    epilog=example(
        "lmlab quality select --in rated --metric educational_value_average --mode sample --tau 2.0 --tokens 30B"
        " --domain source_domain --out chosen",
        "lmlab quality select --in rated --mode uniform --tokens 10% --out baseline",
        "lmlab quality select --in rated --weights 'educational_value_average=1,facts_and_trivia_average=.5' --mode"
        " top_k --tokens 1M --out best",
    )
)
@options(SelectionSettings, exclude=("mode",))
@options(ShardOptions, "shards")
def select(
    where: In,
    mode: Annotated[str, typer.Option(help="sample, top_k, bottom_k, uniform, or mixture: the metrics take turns.")],
    settings: SelectionSettings,
    shards: ShardOptions,
    domain_weights: DomainWeights = None,
    tokenizer: TokenizerPath = None,
    manifest_only: Annotated[bool, typer.Option("--manifest-only", help="Do not write texts.")] = False,
    out: Out = Path("selection"),
) -> None:
    """Choose rows up to a number of tokens: manifest.parquet, selection.json, and the rows as shards N-of-M."""
    from lmlab.files import owned_folder, write_json
    from lmlab.methods.qurating.selecting.materialize import materialize
    from lmlab.methods.qurating.selecting.selection import select as choose
    from lmlab.methods.qurating.selecting.selection import select_mixture
    from lmlab.methods.qurating.selecting.tables.table import RatedTable
    from lmlab.methods.qurating.selecting.token_counts import parse_tokens

    if parse_tokens(shards.shard_tokens) < 1:
        raise UserError("A shard of no tokens holds nothing.", "Give --shard-tokens a number of 1 or more.")
    config = _config(where, settings, domain_weights, "sample" if mode == "mixture" else mode, tokenizer)
    places = _locations(where)
    settings_of = config.model_dump(mode="json")
    with owned_folder(out, "lmlab quality select", settings_of, RatedTable(places).files) as folder:
        manifest = (select_mixture if mode == "mixture" else choose)(places, config, measure=_measure(tokenizer))
        report = manifest.report
        manifest.write(folder.new("manifest.parquet", data=False))
        write_json(folder.new("selection.json", data=False), report)
        written = []
        if not manifest_only:
            size = parse_tokens(shards.shard_tokens)
            names = list(shards.columns) or None
            written = materialize(places, manifest, out, names, size, shards.format, folder.new)
    print(
        f"{report['rows']:,} of {report['of_rows']:,} rows, {report['tokens']:,} of {report['of_tokens']:,} tokens."
        f" {report['noise']}."
    )
    for reason, count in report["dropped"].items():
        print(f"Left out: {counted(count, 'rows')} ({reason}).")
    print(f"Manifest: {out / 'manifest.parquet'}")
    if written:
        print(f"Shards: {len(written)} in {out}")


@app.command(
    epilog=example(
        "lmlab quality filter --in rated --min educational_value_average=0.5 --max length=4096 --out filtered"
    )
)
@options(SelectionSettings, only=("minimum", "maximum"))
@options(TableFormat, "files")
@options(RatingOptions, "sharing", only=("workers", "backend"))
def filter(
    where: In,
    settings: SelectionSettings,
    files: TableFormat,
    sharing: RatingOptions,
    out: Out = Path("filtered"),
) -> None:
    """Keep the rows whose columns are within bounds: of each file of the corpus one, N-of-M. Several processes share
    the files; the same command goes on after a kill.
    """
    from lmlab.methods.qurating.selecting.materialize import filter_rows
    from lmlab.methods.qurating.selecting.tables.files import Processes

    bounds = settings.minimum, settings.maximum
    if not any(bounds):
        raise UserError("There is no bound.", "Give --min COLUMN=VALUE or --max COLUMN=VALUE.")
    processes = Processes(sharing.workers, sharing.backend)
    found = filter_rows(_locations(where), *bounds, out, files.format, processes)
    print(
        f"{found['kept']:,} of {counted(found['rows'], 'rows')} kept; {found['nonfinite']:,} without a finite value are"
        f" not.\nShards: {out}"
    )


@app.command(
    epilog=example("lmlab quality order --in chosen --metric required_expertise_average --tau 2.0 --out curriculum")
)
@options(
    SelectionSettings,
    only=("metric", "tau", "id", "seed"),
    notes={"tau": "Here of the sample that the rows come from; 0 orders by the bare rating."},
    tau=0.0,
    seed=USUAL_SEED,
)
@options(TableFormat, "files", format="jsonl")
def order(
    where: In,
    settings: SelectionSettings,
    files: TableFormat,
    descending: Annotated[bool, typer.Option("--descending", help="High to low.")] = False,
    out: Out = Path("curriculum"),
) -> None:
    """Write rows in the order of a curriculum. Train on them with `order: {order: sequential}`."""
    from lmlab.files import owned_folder
    from lmlab.methods.qurating.selecting.curriculum import write_ordered
    from lmlab.methods.qurating.selecting.drawing.temperature import check_temperature
    from lmlab.methods.qurating.selecting.tables.table import RatedTable

    places = _locations(where)
    if settings.metric is None:
        raise UserError("There is no column to order by.", "Name it with --metric.")
    check_temperature(settings.tau)
    how: dict[str, Any] = {"tau": settings.tau, "seed": settings.seed, "descending": descending, "id": settings.id}
    with owned_folder(out, "lmlab quality order", [settings.metric, how], RatedTable(places).files) as folder:
        path = write_ordered(places, settings.metric, out, **how, kind=files.format, place=folder.new)
    print(f"Rows in order: {out / path.name}")


@app.command(
    epilog=example(
        "lmlab quality score dsir --in corpus.parquet --target good.jsonl --out scored",
        "lmlab quality score linear --in corpus.parquet --target good.jsonl --out scored",
        "lmlab quality score ppl --in corpus/ --model models/smollm2 --workers 8 --out scored",
        "lmlab quality score classifier --in rated --grades grades.jsonl --out scored",
        "lmlab quality score buckets --in scored --columns dsir_average,linear_average --out tiers",
        "lmlab quality score fasttext --in corpus/ --model lid.176.bin --label en --name english --out scored",
    )
)
@options(
    RatingOptions,
    "reading",
    only=("text", "precision", "workers", "backend"),
    notes={"precision": "Here of the language model, for ppl."},
)
@options(SelectionSettings, only=("id",))
def score(
    kind: Annotated[str, typer.Argument(help="ppl, dsir, linear, classifier, buckets or fasttext.")],
    where: In,
    reading: RatingOptions,
    settings: SelectionSettings,
    target: Annotated[str | None, typer.Option(help="Good texts, for dsir and linear.", show_default=False)] = None,
    model: Annotated[
        Path | None, typer.Option(help="Language model, for ppl; .bin or .ftz file, for fasttext.", show_default=False)
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Whose probability fasttext gives; by default the likeliest one's.", show_default=False),
    ] = None,
    grades: Annotated[
        str | None, typer.Option(help="Graded texts (index, average), for classifier.", show_default=False)
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of scores, for buckets and classifier.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the column NAME_average; by default the kind.", show_default=False)
    ] = None,
    out: Out = Path("scored"),
) -> None:
    """Add a column of another signal: log-likelihood, DSIR, an n-gram classifier, a regression on grades, buckets over
    scorers, or a label's probability by fastText. Several processes share files, and for ppl blocks of texts; the same
    command goes on after a kill.
    """
    from lmlab.methods.qurating.analysis.score_corpus import score_corpus
    from lmlab.methods.qurating.selecting.tables.files import Processes

    count = score_corpus(
        kind,
        _locations(where),
        out,
        name or kind,
        text=reading.text,
        target=target,
        model=model,
        label=label,
        grades=grades,
        id=settings.id,
        columns=columns.split(",") if columns else [],
        precision=reading.precision,
        processes=Processes(reading.workers, reading.backend),
    )
    print(f"{counted(count, 'rows')} scored.\nScores: {out}")


@app.command(epilog=example("lmlab quality report --in rated --selection chosen --groups language --out quality.html"))
@options(AnalysisConfig)
@options(RatingOptions, "reading", only=("text",))
def report(
    where: In,
    settings: AnalysisConfig,
    reading: RatingOptions,
    selection: Annotated[Path, typer.Option(help="Folder that `lmlab quality select` wrote.")],
    judged: Annotated[
        Path | None,
        typer.Option(help="Folder that `lmlab quality judge` wrote: what its replies cost.", show_default=False),
    ] = None,
    compared: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of the stage quality_compare: what the choice brought. Repeated, one for each seed.",
            show_default=False,
        ),
    ] = None,
    tokenizer: TokenizerPath = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; extremes.md stands beside the selection.")] = Path(
        "quality.html"
    ),
) -> None:
    """Show what a choice did to domains, topics and groups of texts, what it cost, and what it brought."""
    from lmlab.config import validate
    from lmlab.files import add_notes, read_mapping, write_json
    from lmlab.methods.qurating.analysis.analyze import NOTES, analyze
    from lmlab.methods.qurating.analysis.worth import worth_sections
    from lmlab.methods.qurating.report import selection_page
    from lmlab.methods.qurating.selecting.plan import plan_selection
    from lmlab.methods.qurating.selecting.selection import Manifest
    from lmlab.methods.qurating.selecting.settings import SelectionConfig

    config = validate(
        SelectionConfig, read_mapping(selection / "selection.json")["config"], f"'{selection / 'selection.json'}'"
    )
    further = worth_sections(selection, judged, compared or [])
    places, measure = _locations(where), _measure(tokenizer)
    manifest = Manifest.read(selection / "manifest.parquet")
    found = analyze(places, manifest, config, settings, reading.text, measure)
    add_notes(selection, [*NOTES, "plan.json"])
    found.write(selection)
    write_json(selection / "plan.json", plan_selection(places, config, measure=measure).to_json())
    print(
        f"Page: {selection_page(selection, 'A selection by quality', further).write(out)}\nTexts to read:"
        f" {selection / 'extremes.md'}"
    )


def _locations(where: list[Path]) -> list[str]:
    return [str(path) for path in where]


def _measure(tokenizer: Path | None) -> Any:
    if tokenizer is None:
        return None
    import numpy as np

    from lmlab.runs import Vocabulary

    own = Vocabulary.find(tokenizer).load()
    return lambda texts: np.array(
        [len(ids) for ids in own.encode_batch([text or "" for text in texts.to_pylist()], "as_text")], np.int64
    )


def _config(
    where: list[Path], settings: SelectionSettings, domain_weights: Path | None, mode: str, tokenizer: Path | None
) -> Any:
    """The settings for the corpus that is there."""
    from lmlab.config import validate
    from lmlab.files import read_yaml
    from lmlab.methods.qurating.selecting.tables.lengths import budget_of

    domains = settings.domains if domain_weights is None else read_yaml(domain_weights)
    chosen = validate(SelectionSettings, settings.model_dump() | {"mode": mode, "domains": domains}, "the options")
    return chosen.resolved(budget_of(settings.tokens, _locations(where), settings.length, _measure(tokenizer)))
