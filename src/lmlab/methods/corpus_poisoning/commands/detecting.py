"""`lmlab poison`: detectors, and the gate before an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import AsJson, example
from lmlab.methods.corpus_poisoning.commands.shared import (
    Gate,
    Passages,
    collection_options,
    documents_of,
    encoder_options,
    retriever,
)
from lmlab.methods.corpus_poisoning.config import DetectorsConfig, RateConfig
from lmlab.retrieval.config import CollectionConfig, EncoderConfig

_AT_ONCE = 256  # records of a file

detect_fit_help = example("lmlab poison detect fit --data data/scifact --sentinels mine.jsonl --rate 0.005 --out gate")
detect_score_help = example("lmlab poison detect score --gate gate --passages attack")
detect_sweep_help = example("lmlab poison detect sweep --data data/scifact --passages attack --sentinels mine.jsonl")
gate_help = example("lmlab poison gate new.jsonl --gate gate --out verdicts.jsonl")


@collection_options(exclude=("split", "ignore_missing"))
@options(DetectorsConfig)
@options(RateConfig, "strictness")
@encoder_options()
def detect_fit(
    collection: CollectionConfig,
    settings: DetectorsConfig,
    strictness: RateConfig,
    which: EncoderConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the gate.")] = Path("gate"),
    as_json: AsJson = False,
) -> None:
    """Fit detectors on one half of a clean corpus, set the gate's threshold on the other, and write the gate."""
    from lmlab.methods.corpus_poisoning.defend.run import context_of, dump, fit_gate

    target = documents_of(which, collection)
    gate = fit_gate(target, context_of(target, settings), settings.detectors, strictness.rate, out)
    if as_json:
        print(dump({"detectors": list(gate.detectors), "rate": gate.rate, "out": str(out)}))
        return
    print(f"A gate of {', '.join(gate.detectors)} that refuses {100 * strictness.rate:g} % of clean passages: {out}")


@options(DetectorsConfig, exclude=("detectors", "sentinels", "sentinel_count"))
@collection_options(exclude=("split", "ignore_missing"), data=None)
@encoder_options()
def detect_score(
    passages: Passages,
    settings: DetectorsConfig,
    collection: CollectionConfig,
    which: EncoderConfig,
    gate: Gate = Path("gate"),
) -> None:
    """Score passages by a gate's detectors, and part them from documents of a clean collection that the gate was not
    fitted on, if --data names one; JSON.
    """
    from lmlab.methods.corpus_poisoning.defend.detector import Passages as Texts
    from lmlab.methods.corpus_poisoning.defend.run import dump, open_gate, read_texts, score_passages

    clean = None
    if collection.data:
        target = documents_of(which, collection)
        clean = Texts(target.data.corpus.texts, target.documents)
    opened = open_gate(retriever(which), gate, settings.language_model, settings.masked_model)
    print(dump(score_passages(opened, read_texts(passages), clean)))


@collection_options(exclude=("split", "ignore_missing"))
@options(DetectorsConfig)
@encoder_options()
def detect_sweep(
    collection: CollectionConfig, passages: Passages, settings: DetectorsConfig, which: EncoderConfig
) -> None:
    """Shares of clean and of crafted passages that each detector refuses, over thresholds; JSON."""
    from lmlab.methods.corpus_poisoning.defend.run import context_of, dump, sweep_passages

    target = documents_of(which, collection)
    print(dump(sweep_passages(target, context_of(target, settings), settings.detectors, passages)))


@options(DetectorsConfig, exclude=("detectors", "sentinels", "sentinel_count"))
@encoder_options(exclude=("cache", "precision"))
def gate(
    source: Annotated[str, typer.Argument(help="Records of JSON lines with text; - for standard input.")],
    settings: DetectorsConfig,
    which: EncoderConfig,
    gate: Gate = Path("gate"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Verdicts; by default standard output.", show_default=False)
    ] = None,
    fail: Annotated[bool, typer.Option("--fail", help="End with exit code 1 when a passage is refused.")] = False,
) -> None:
    """Admit or refuse new documents, one verdict a line, for a pipeline that fills an index."""
    import sys

    from lmlab.files import atomic_file
    from lmlab.methods.corpus_poisoning.defend.run import open_gate, run_gate, standard_streams

    found = open_gate(retriever(which), gate, settings.language_model, settings.masked_model)
    stream, target = standard_streams(source, out)
    at_once = 1 if source == "-" else _AT_ONCE
    name = "standard input" if source == "-" else f"'{source}'"
    with stream:
        if target is None:
            total, refused = run_gate(found, stream, sys.stdout, name, at_once)
        else:
            with atomic_file(target, "w") as sink:
                total, refused = run_gate(found, stream, sink, name, at_once)
    typer.echo(f"{total - refused:,} admitted, {refused:,} refused.", err=True)
    if fail and refused:
        raise typer.Exit(1)
