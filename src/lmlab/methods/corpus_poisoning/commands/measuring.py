"""`lmlab poison`: what passages reach, and the report of attacks and defenses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import AsJson, example, print_table
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.commands.shared import (
    Passages,
    Queries,
    collection_options,
    encoder_options,
    retriever,
    target_of,
)
from lmlab.methods.corpus_poisoning.config import ChosenConfig, DepthsConfig, DetectorsConfig, MemoryConfig, RateConfig
from lmlab.retrieval.config import CollectionConfig, EncoderConfig, SearchConfig
from lmlab.words import counted

Attacks = Annotated[list[Path], typer.Option("--passages", "-p", help="Folders of attacks; may be repeated.")]
Overlap = Annotated[bool, typer.Option("--allow-overlap", help="Evaluate on the attacker's queries too.")]
evaluate_help = example("lmlab poison evaluate --passages attack --data data/scifact --encoder minilm --k 10 --k 20")
transfer_help = example(
    "lmlab poison transfer --passages attack --data data/scifact --data data/fiqa --encoder minilm --encoder models/e5"
)
answers_help = example(
    "lmlab poison answers nq.json --language-model models/smollm2 --data data/scifact --encoder minilm --limit 20"
)
memory_help = example(
    "lmlab poison memory --data data/scifact --encoder minilm --trigger 'be safe and careful' --entries 1000"
)
report_help = example(
    "lmlab poison report --data data/scifact --passages attack --passages stuffing --sentinels mine.jsonl --out report"
)


@collection_options()
@options(ChosenConfig, "chosen")
@options(DepthsConfig, "depths", k=None)
@options(SearchConfig, "how", exclude=("by",))
@encoder_options()
def evaluate(
    passages: Passages,
    collection: CollectionConfig,
    chosen: ChosenConfig,
    depths: DepthsConfig,
    how: SearchConfig,
    which: EncoderConfig,
    queries: Queries = None,
    attack_queries: Annotated[
        str | None,
        typer.Option(
            help="The attacker's queries (file or folder): those that are evaluated too are told and left out.",
            show_default=False,
        ),
    ] = None,
    allow_overlap: Overlap = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Figures as JSON.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """The success rate of passages on held-out queries, and what they displace."""
    from lmlab.files import write_json
    from lmlab.methods.corpus_poisoning.measure.run import evaluate_on

    found = evaluate_on(
        retriever(which),
        collection.data,
        collection.split,
        passages,
        depths,
        queries,
        attack_queries,
        allow_overlap,
        how.index,
        collection.ignore_missing,
        chosen,
    )
    for notice in found["notices"]:
        typer.echo(notice, err=True)
    if out is not None:
        write_json(out, found)
    if as_json:
        print(json.dumps(found))
        return
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print figures of an attack."""
    from rich.table import Table

    table = Table("k", "success %", "95 % interval", "ceiling %", "share of results %", title=found["title"])
    for k, value in found["asr"].items():
        low, high = found["interval"][k]
        ceiling = found["perfect"].get(k) if found["perfect"] else None
        table.add_row(
            str(k),
            f"{100 * value:.2f}",
            f"{100 * low:.2f} to {100 * high:.2f}",
            "" if ceiling is None else f"{100 * ceiling:.2f}",
            f"{100 * found['share'][k]:.2f}",
        )
    print_table(table)
    for line in found["lines"]:
        print(line)


@collection_options(exclude=("data",))
@encoder_options(exclude=("encoder", "query_encoder"))
def transfer(
    passages: Attacks,
    data: Annotated[list[str], typer.Option("--data", "-d", help="BEIR folders; may be repeated.")],
    encoder: Annotated[list[str], typer.Option("--encoder", "-e", help="Encoders; may be repeated.")],
    collection: CollectionConfig,
    which: EncoderConfig,
    k: Annotated[int, typer.Option("--k", min=1, help="Depth of success.")] = 20,
    allow_overlap: Overlap = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Figures as JSON.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Whether passages carry over to other collections and other retrievers: a matrix of success rates."""
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.corpus_poisoning.measure.transfer import retrievers_of, transfer_matrix

    made = retrievers_of(encoder, which)
    rows = transfer_matrix(passages, made, data, collection.split, k, collection.ignore_missing, allow_overlap)
    for notice in dict.fromkeys(notice for row in rows for notice in row["notices"]):
        typer.echo(notice, err=True)
    if out is not None:
        write_json(out, rows)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("passages", "encoder", "collection", f"ASR@{k} %", "95 % interval", "mean rank")
    for row in rows:
        low, high = row["interval"]
        own = " (its own)" if row["own_encoder"] else ""
        rate, bounds = f"{100 * row[f'asr@{k}']:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"
        table.add_row(row["passages"], f"{row['encoder']}{own}", row["data"], rate, bounds, f"{row['mean_rank']:.1f}")
    print_table(table)


@collection_options()
@encoder_options()
def answers(
    questions: Annotated[Path, typer.Argument(help="PoisonedRAG's file: questions, answers, texts of the attacker.")],
    language_model: Annotated[str, typer.Option(help="The model that answers from the results.")],
    collection: CollectionConfig,
    which: EncoderConfig,
    k: Annotated[int, typer.Option("--k", min=1, help="Results that the model reads.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="So many first questions.", show_default=False)] = None,
    each: Annotated[
        int | None,
        typer.Option(min=1, help="So many first texts of the attacker a question; by default all.", show_default=False),
    ] = None,
    gate: Annotated[Path | None, typer.Option("--gate", "-g", help="Folder of a gate.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Figures as JSON.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """What crafted results do to a language model's answers: clean, poisoned, and behind a gate, by three readers. The
    language model reads in --precision, as the encoder does.
    """
    import torch
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.corpus_poisoning.defend.run import open_gate
    from lmlab.methods.corpus_poisoning.formats import read_poisonedrag
    from lmlab.methods.corpus_poisoning.measure.answers import answer_rows
    from lmlab.runs import Model

    asked = read_poisonedrag(questions)[:limit]
    target = target_of(which, collection)
    found = Model.find(language_model)
    opened = None if gate is None else open_gate(target.retriever, gate)
    model = found.load(which.device)
    if which.precision == "bf16":
        model = model.to(torch.bfloat16)
    read = answer_rows(target, asked, model, found.tokenizer(), k, opened, each=each)
    rows = [row.row() for row in read]
    if out is not None:
        write_json(out, rows)
    if as_json:
        print(json.dumps(rows))
        return
    columns = ("reader", "poison", "right %", "as the attacker wants %", "F1 of poison among results")
    title = f"{counted(len(asked), 'questions')}, the language model in {which.precision}"
    table = Table(*columns, "right for sure beside one inserted text %", title=title)
    for row in rows:
        shares = (f"{100 * row['correct']:.1f}", f"{100 * row['wanted']:.1f}", f"{row['f1']:.3f}")
        sure = "" if row["certified"] is None else f"{100 * row['certified']:.1f}"
        table.add_row(row["reader"], row["poison"], *shares, sure)
    print_table(table)


@collection_options()
@options(MemoryConfig)
@encoder_options()
def memory(
    collection: CollectionConfig,
    settings: MemoryConfig,
    which: EncoderConfig,
    attack_split: Annotated[str, typer.Option(help="The split whose questions the attacker has.")] = "train",
    as_json: AsJson = False,
) -> None:
    """One poisoned entry in an agent's memory: how often a trigger brings it up, and what a check of sources costs."""
    from rich.table import Table

    from lmlab.methods.corpus_poisoning.measure.memory import memory_rows

    target = target_of(which, collection)
    attacker = target_of(which, collection.model_copy(update={"split": attack_split}))
    notices = list[str]()
    rows = [row.row() for row in memory_rows(target, attacker, settings, notices)]
    for notice in notices:
        typer.echo(notice, err=True)
    if as_json:
        print(json.dumps(rows))
        return
    k = settings.k
    columns = ("entry", "what is read", f"triggered, in the first {k} %", "not triggered %", f"recall@{k} %", "kept %")
    table = Table(
        *columns, title=f"{counted(rows[0]['entries'], 'entries')}, {counted(rows[0]['questions'], 'questions')}"
    )
    for row in rows:
        shares = (f"{100 * row[name]:.2f}" for name in ("triggered", "others", "recall", "kept"))
        table.add_row(row["poison"], row["rule"], *shares)
    print_table(table)


@collection_options()
@options(DetectorsConfig)
@options(DepthsConfig, "depths", k=None)
@options(RateConfig, "strictness")
@encoder_options()
def report(
    collection: CollectionConfig,
    passages: Attacks,
    settings: DetectorsConfig,
    depths: DepthsConfig,
    strictness: RateConfig,
    which: EncoderConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of report.html, report.json, report.md.")] = Path(
        "report"
    ),
    no_defenses: Annotated[
        bool, typer.Option("--no-defenses", help="Leave out the table of defenses; the report says so.")
    ] = False,
    no_fusion: Annotated[bool, typer.Option("--no-fusion", help="Leave out fusion with BM25.")] = False,
    allow_overlap: Overlap = False,
    as_json: AsJson = False,
) -> None:
    """One page: success undefended and defended, and what each defense costs in clean quality."""
    from lmlab.methods.corpus_poisoning import report as pages
    from lmlab.methods.corpus_poisoning.defend.run import context_of, report_rows

    default = settings.detectors == DetectorsConfig.model_fields["detectors"].default
    if settings.sentinels is None and not no_defenses and default:
        raise UserError(
            "A report of attacks needs a table of defenses beside them, and the defenses need sentinel questions.",
            "Give --sentinels, or name other detectors, or say --no-defenses.",
        )
    target = target_of(which, collection)
    context = None if no_defenses else context_of(target, settings)
    names, asked = settings.detectors, depths.depths(target.depth())
    attacks, rows = report_rows(
        target, context, passages, names, names, asked, not no_fusion, strictness.rate, allow_overlap
    )
    pages.write(pages.build(attacks, rows), attacks, rows, out)
    if as_json:
        print(json.dumps({"attacks": attacks, "defenses": rows, "out": str(out)}))
        return
    print(f"Report: {out / 'report.html'}")
