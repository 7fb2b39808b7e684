"""`lmlab poison`: what passages reach, and the report of attacks and defenses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.commands.shared import (
    DEPTHS,
    AsJson,
    Cache,
    Data,
    Depths,
    Device,
    EncoderPlace,
    IgnoreMissing,
    LanguageModel,
    MaskedModel,
    MaxLength,
    Names,
    Passages,
    PrecisionOption,
    QueryEncoder,
    Rate,
    SentinelCount,
    Sentinels,
    Split,
    retriever,
)

evaluate_help = example("lmlab poison evaluate --passages attack --data data/scifact --encoder minilm --k 10 --k 20")
report_help = example(
    "lmlab poison report --data data/scifact --passages attack --passages stuffing --sentinels mine.jsonl --out report"
)


def evaluate(
    passages: Passages,
    data: Data,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    k: Depths = None,
    queries: Annotated[str | None, typer.Option(help="Other queries on the same corpus.", show_default=False)] = None,
    attack_queries: Annotated[
        str | None,
        typer.Option(
            help="The attacker's queries (file or folder): those that are evaluated too are told and left out.",
            show_default=False,
        ),
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Evaluate on the attacker's queries too.")
    ] = False,
    index: Annotated[
        str, typer.Option(help="Also the success by this index: hnsw, faiss-hnsw, int8, binary, truncated.")
    ] = "exact",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
    max_length: MaxLength = None,
    ignore_missing: IgnoreMissing = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Figures as JSON.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """The success rate of passages on held-out queries, and what they displace."""
    from lmlab.files import write_json
    from lmlab.methods.corpus_poisoning.measure.run import evaluate_on

    found = evaluate_on(
        retriever(encoder, cache, precision, device, query_encoder, max_length),
        data,
        split,
        passages,
        sorted(set(k)) if k else list(DEPTHS),
        queries,
        attack_queries,
        allow_overlap,
        index,
        ignore_missing,
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


def report(
    data: Data,
    passages: Annotated[list[Path], typer.Option("--passages", "-p", help="Folders of attacks; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of report.html, report.json, report.md.")] = Path(
        "report"
    ),
    detector: Names = None,
    sentinels: Sentinels = None,
    sentinel_count: SentinelCount = 500,
    language_model: LanguageModel = None,
    masked_model: MaskedModel = None,
    k: Depths = None,
    no_defenses: Annotated[
        bool, typer.Option("--no-defenses", help="Leave out the table of defenses; the report says so.")
    ] = False,
    rate: Rate = 0.005,
    no_fusion: Annotated[bool, typer.Option("--no-fusion", help="Leave out fusion with BM25.")] = False,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """One page: success undefended and defended, and what each defense costs in clean quality."""
    from lmlab.methods.corpus_poisoning import report as pages
    from lmlab.methods.corpus_poisoning.defend.gate import DEFAULT_DETECTORS
    from lmlab.methods.corpus_poisoning.defend.run import context_of, report_rows
    from lmlab.methods.corpus_poisoning.setup import Target

    if sentinels is None and not no_defenses and not detector:
        raise UserError(
            "A report of attacks needs a table of defenses beside them, and the defenses need sentinel questions.",
            "Give --sentinels, or name other detectors, or say --no-defenses.",
        )
    target = Target.load(retriever(encoder, cache, precision, device, query_encoder), data, split)
    context = None
    if not no_defenses:
        context = context_of(target, sentinels, sentinel_count, language_model, masked_model)
    names = detector or list(DEFAULT_DETECTORS)
    depths = sorted(set(k)) if k else [depth for depth in DEPTHS if depth <= len(target.data.corpus)]
    attacks, rows = report_rows(target, context, passages, names, names, depths, not no_fusion, rate)
    pages.write(pages.build(attacks, rows), attacks, rows, out)
    print(f"Report: {out / 'report.html'}")
