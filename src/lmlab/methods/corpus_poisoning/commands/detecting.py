"""`lmlab poison`: detectors, and the gate before an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.options import example
from lmlab.methods.corpus_poisoning.commands.shared import (
    Cache,
    Data,
    Device,
    EncoderPlace,
    Gate,
    LanguageModel,
    MaskedModel,
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

detect_fit_help = example("lmlab poison detect fit --data data/scifact --sentinels mine.jsonl --rate 0.005 --out gate")
detect_score_help = example("lmlab poison detect score --gate gate --passages attack")
detect_sweep_help = example("lmlab poison detect sweep --data data/scifact --passages attack --sentinels mine.jsonl")
gate_help = example("lmlab poison gate new.jsonl --gate gate --out verdicts.jsonl")


def detect_fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the gate.")] = Path("gate"),
    detector: Names = None,
    sentinels: Sentinels = None,
    sentinel_count: SentinelCount = 500,
    rate: Rate = 0.01,
    language_model: LanguageModel = None,
    masked_model: MaskedModel = None,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """Fit detectors on one half of a clean corpus, set the gate's threshold on the other, and write the gate."""
    from lmlab.methods.corpus_poisoning.defend.gate import DEFAULT_DETECTORS
    from lmlab.methods.corpus_poisoning.defend.run import context_of, fit_gate
    from lmlab.methods.corpus_poisoning.setup import Target

    target = Target.load(retriever(encoder, cache, precision, device, query_encoder), data, split)
    context = context_of(target, sentinels, sentinel_count, language_model, masked_model)
    gate = fit_gate(target, context, detector or DEFAULT_DETECTORS, rate, out)
    print(f"A gate of {', '.join(gate.detectors)} that refuses {100 * rate:g} % of clean passages: {out}")


def detect_score(
    passages: Passages,
    gate: Gate = Path("gate"),
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A clean collection to part them from.", show_default=False)
    ] = None,
    language_model: LanguageModel = None,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """Score passages by a gate's detectors; JSON."""
    from lmlab.methods.corpus_poisoning.defend.detector import Passages as Texts
    from lmlab.methods.corpus_poisoning.defend.run import dump, open_gate, read_texts, score_passages
    from lmlab.methods.corpus_poisoning.setup import Target

    found = retriever(encoder, cache, precision, device, query_encoder)
    clean = None
    if data is not None:
        target = Target.load(found, data, split)
        clean = Texts(target.data.corpus.texts, target.documents)
    print(dump(score_passages(open_gate(found, gate, language_model), read_texts(passages), clean)))


def detect_sweep(
    data: Data,
    passages: Passages,
    detector: Names = None,
    sentinels: Sentinels = None,
    sentinel_count: SentinelCount = 500,
    language_model: LanguageModel = None,
    masked_model: MaskedModel = None,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """Shares of clean and of crafted passages that each detector refuses, over thresholds; JSON."""
    from lmlab.methods.corpus_poisoning.defend.gate import DEFAULT_DETECTORS
    from lmlab.methods.corpus_poisoning.defend.run import context_of, dump, sweep_passages
    from lmlab.methods.corpus_poisoning.setup import Target

    target = Target.load(retriever(encoder, cache, precision, device, query_encoder), data, split)
    context = context_of(target, sentinels, sentinel_count, language_model, masked_model)
    print(dump(sweep_passages(target, context, detector or DEFAULT_DETECTORS, passages)))


def gate(
    source: Annotated[str, typer.Argument(help="Records of JSON lines with text; - for standard input.")],
    gate: Gate = Path("gate"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Verdicts; by default standard output.", show_default=False)
    ] = None,
    encoder: EncoderPlace = "minilm",
    query_encoder: QueryEncoder = None,
    language_model: LanguageModel = None,
    device: Device = "cpu",
    fail: Annotated[bool, typer.Option("--fail", help="End with exit code 1 when a passage is refused.")] = False,
) -> None:
    """Admit or refuse new documents, one verdict a line, for a pipeline that fills an index."""
    import sys

    from lmlab.files import atomic_file
    from lmlab.methods.corpus_poisoning.defend.run import open_gate, run_gate, standard_streams

    found = open_gate(retriever(encoder, Path("vectors"), "fp32", device, query_encoder), gate, language_model)
    stream, target = standard_streams(source, out)
    name = "standard input" if source == "-" else f"'{source}'"
    with stream:
        if target is None:
            total, refused = run_gate(found, stream, sys.stdout, name)
        else:
            with atomic_file(target, "w") as sink:
                total, refused = run_gate(found, stream, sink, name)
    typer.echo(f"{total - refused:,} admitted, {refused:,} refused.", err=True)
    if fail and refused:
        raise typer.Exit(1)
