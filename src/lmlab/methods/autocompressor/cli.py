"""`lmlab compress`: learn to write summary vectors for text, and to read them in its place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import changes, options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import AllowPickle, DryRun, Out, Redo, Set, Trust, example, run_recipe_file
from lmlab.data.sources.reading.fields import RecordFields
from lmlab.errors import UserError
from lmlab.methods.autocompressor.commands import kinds
from lmlab.methods.autocompressor.config import (
    CompressorConfig,
    EncodeConfig,
    IclConfig,
    OtherLines,
    PplConfig,
    RagConfig,
    RerankConfig,
)
from lmlab.words import counted

app = typer.Typer(
    no_args_is_help=True,
    help="Context compression: learn to write summary vectors for text, and to read them in its place.",
)

Compressor = Annotated[str, typer.Argument(help="A compressor: its directory, the stage that trained it, or a run.")]


@app.command(
    epilog=example(
        "lmlab compress train compress.yaml --out runs/compress", "lmlab compress train compress.yaml --dry-run"
    )
)
def train(
    file: Annotated[Path, typer.Argument(help="A recipe with a stage 'compress_train'.")],
    out: Out = None,
    set: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Teach a model to compress, by a recipe. The same command after a kill goes on."""
    run_recipe_file(file, out, set, dry_run, redo)


@app.command(
    epilog=example("lmlab compress text runs/compress paper.txt --out paper.safetensors"),
)
@options(EncodeConfig, only=("segment",))
def text(
    compressor: Compressor,
    file: Annotated[Path, typer.Argument(help="A text file.")],
    settings: EncodeConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="The vectors, as a soft prompt (safetensors).")],
    vectors: Annotated[
        int | None, typer.Option(min=1, help="Vectors of a segment, of a nested compressor.", show_default=False)
    ] = None,
) -> None:
    """Compress one text, and write what stands for it as a soft prompt."""
    from lmlab.methods.autocompressor.compressor.run import compressed
    from lmlab.models import save_soft_prompt

    try:
        written = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' cannot be read as text: {error}.") from None
    if not written.strip():
        raise UserError(f"'{file}' has no text.", "Name a file with some.")
    model, found, tokens = compressed(compressor, written, settings.segment, vectors)
    save_soft_prompt(found.soft_prompt, out, model.model)
    parts = f"{counted(found.segments, 'segments')} became {counted(found.length, 'vectors')}"
    print(f"{counted(tokens, 'tokens')} in {parts}.\nVectors: {out}")


@app.command(
    epilog=example(
        "lmlab compress encode runs/compress --in docs.jsonl --segment 2048 --out store",
        "lmlab compress encode runs/compress --in wiki.parquet --segment 512 --independent --dtype int8 --workers 4"
        " --out store",
    )
)
@options(EncodeConfig)
@options(RecordFields, "fields", only=("text_field", "id_field"))
def encode(
    compressor: Compressor,
    documents: Annotated[
        str, typer.Option("--in", help="What is compressed: a file, glob, folder or URL of texts or records.")
    ],
    settings: EncodeConfig,
    fields: RecordFields,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.")],
) -> None:
    """Compress documents into a store. The same command after a kill goes on, and elsewhere shares the work."""
    from lmlab.methods.autocompressor import EncodeJob
    from lmlab.methods.autocompressor.store.encode import encode as run

    told = settings.model_dump(exclude={"workers", "backend", "gpus"})
    named = tuple(fields.model_dump(exclude_none=True).items())
    job = EncodeJob(compressor, documents, str(out), fields=named, **told)
    found = run(job, settings.workers, settings.backend, settings.gpus)
    print(
        f"{found['documents']:,} documents ({found['empty']:,} without text), {found['encoded']:,} encoded now;"
        f" {counted(found['tokens'], 'tokens')} became {found['rows']:,} summaries.\nStore: {out}"
    )


@app.command(
    epilog=example(
        "lmlab compress ppl runs/compress --data docs.jsonl --context 0,512,2048 --target 512 --segment 512 --out ppl",
        "lmlab compress ppl runs/compress --data docs.jsonl --baseline truncate,full,rmt --rmt runs/rmt --out ppl",
    )
)
@options(PplConfig)
@options(RecordFields, "fields", only=("text_field", "id_field"))
@options(OtherLines, "beside")
def ppl(
    compressor: Compressor,
    data: Annotated[str, typer.Option(help="File, glob, folder or URL of texts or records.")],
    settings: PplConfig,
    fields: RecordFields,
    beside: OtherLines,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("ppl"),
) -> None:
    """Perplexity of texts after compressed context, beside truncation, full attention, other documents' vectors.

    The same command after a kill goes on.
    """
    from lmlab.methods.autocompressor.measure.ppl import table
    from lmlab.methods.autocompressor.measure.run import run_ppl

    others = {"rmt": beside.rmt, "base": beside.base}
    found = run_ppl(compressor, data, settings, out, others, fields.model_dump(exclude_none=True))
    _print(["line", "context", "perplexity", "gain in nats (95 %)", "summaries better by"], table(found))
    for context, each in found["gain_retained"].items():
        if each["share"] is None:
            print(f"Gain retained at {context} tokens: full attention gains nothing that can be told from 0.")
        else:
            limits = "" if each["low"] is None else f" ({each['low']:.0%} to {each['high']:.0%})"
            print(f"Gain retained at {context} tokens: {each['share']:.0%}{limits} of that of full attention.")
    for name, why in found["refused"].items():
        print(f"{name} was left out: {why}")
    print(f"Results: {out}")


@app.command(
    epilog=example(
        "lmlab compress icl runs/compress --task sst2 --soft 30,30,30 --plain 0 --seeds 7 --out icl",
        "lmlab compress icl runs/compress --task ag_news --demonstrations train.jsonl --tests test.jsonl --soft-tokens"
        " 750,750 --out icl",
    )
)
@options(IclConfig)
def icl(
    compressor: Compressor,
    task: Annotated[str, typer.Option(help="ag_news, sst2, boolq, wic, wsc, rte, cb, copa, multirc, mr or subj.")],
    settings: IclConfig,
    demonstrations: Annotated[
        Path | None,
        typer.Option(help="Records to draw from, JSON lines; by default those of a package.", show_default=False),
    ] = None,
    tests: Annotated[Path | None, typer.Option(help="Records that are asked, JSON lines.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("icl"),
) -> None:
    """Accuracy with demonstrations that are compressed, plain, or both. The same command after a kill goes on."""
    from lmlab.methods.autocompressor.measure.run import run_icl

    found = run_icl(compressor, task, settings, out, demonstrations, tests)
    spread = "" if found["sd"] is None else f" (sd {found['sd']:.1%} over {len(found['seeds'])} draws)"
    print(
        f"{task}: accuracy {found['accuracy']:.1%}{spread} on {found['tests']:,} tests;"
        f" always the commonest answer: {found['majority']:.1%}.\nResults: {out}"
    )


@app.command(epilog=example("lmlab compress extend models/opt-125m models/opt-125m-4k --to 4096"))
@takes_model
def extend(
    model: Annotated[Path, typer.Argument(help="A model with a table of learned positions (OPT, GPT-2).")],
    out: Annotated[Path, typer.Argument(help="The directory that is written.")],
    to: Annotated[int, typer.Option(min=2, help="The longer window, in tokens.")],
) -> None:
    """Repeat a table of positions up to a longer window: the baseline of full attention, to be trained on."""
    from lmlab.methods.autocompressor.compressor.extend import tile_positions
    from lmlab.models import save_pretrained
    from lmlab.runs import Model

    found = Model.find(model)
    save_pretrained(tile_positions(found.load(), to), out, companions=found.source)
    print(f"A window of {counted(to, 'tokens')}: {out}")


@app.command(epilog=example("lmlab compress report ppl icl rag --out compress.html"))
def report(
    places: Annotated[list[Path], typer.Argument(help="Folders of ppl, icl, rag and rerank.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("compress.html"),
) -> None:
    """Show measurements on one page."""
    from lmlab.methods.autocompressor.measure.pages import measured_sections
    from lmlab.reports import Page

    print(f"Page: {Page('Context compression', sections=measured_sections(places)).write(out)}")


Store = Annotated[Path, typer.Option(help="A store of `encode --independent` with the passages' summaries.")]


@app.command(
    epilog=example(
        "lmlab compress rag runs/compress --data texts.jsonl --passages passages.jsonl --store store --out rag",
        "lmlab compress rag runs/compress --data texts.jsonl --passages passages.jsonl --store store --retriever minilm"
        " --k 1,5,10 --lines soft_replug,fused,fused_random",
    )
)
@options(RagConfig)
def rag(
    compressor: Compressor,
    data: Annotated[str, typer.Option(help="Texts whose continuation is predicted.")],
    passages: Annotated[str, typer.Option(help="The documents that the store was made of, one a passage.")],
    store: Store,
    settings: RagConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("rag"),
    trust: Trust = False,
) -> None:
    """Perplexity with retrieved passages: plain, as summaries one by one (REPLUG), and fused."""
    from lmlab.methods.autocompressor.measure.rag import table
    from lmlab.methods.autocompressor.measure.run import run_rag

    found = run_rag(compressor, data, passages, store, settings, out, trust)
    _print(["line", "passages", "perplexity", "gain", "95 %"], table(found))
    print(f"{counted(found['texts'], 'texts')}. Results: {out}")


@app.command(
    epilog=example("lmlab compress rerank runs/compress --data data/scifact --store store --k 20 --plain --out rerank")
)
@options(RerankConfig)
def rerank(
    compressor: Compressor,
    data: Annotated[str, typer.Option(help="A collection (BEIR's layout).")],
    store: Store,
    settings: RerankConfig,
    first: Annotated[
        Path | None, typer.Option(help="A run of the first stage; by default BM25's.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("rerank"),
    trust: Trust = False,
) -> None:
    """Rank the passages of a first stage anew, by how probable the question is after their summaries."""
    from lmlab.methods.autocompressor.measure.run import run_rerank

    found = run_rerank(compressor, data, store, settings, out, first, trust)
    rows = [
        [name, f"{cell['recall']:.3f}", f"{cell.get('questions_per_second', 0):.2f}" if name != "first" else ""]
        for name, cell in found["ways"].items()
    ]
    _print(["ranked by", f"recall@{found['k']}", "questions a second"], rows)
    print(f"{counted(found['questions'], 'questions')}. Results: {out}")


def _print(columns: list[str], rows: Iterable[list[str]]) -> None:
    from rich import box
    from rich.table import Table

    from lmlab.commandline.options import print_table

    shown = Table(*columns, box=box.SIMPLE)
    for row in rows:
        shown.add_row(*row)
    print_table(shown)


@app.command(
    epilog=example(
        "lmlab compress convert AutoCompressor-2.7b-6k models/compressor --allow-pickle",
        "lmlab compress convert runs/compress reference",
        "lmlab compress convert adapters models/compressor --base models/llama-2 --accumulate",
    )
)
@changes(CompressorConfig, ("accumulate",), "told", {"accumulate": "To be said of adapters, whose files do not."})
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint of the reference (whole or adapters), or a compressor.")],
    target: Annotated[Path, typer.Argument(help="The directory that is written, in the other form.")],
    told: dict[str, Any],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The model beside which adapters stand; of a compressor, write its adapters.", show_default=False
        ),
    ] = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Convert checkpoints of the reference implementation, in either direction."""
    from lmlab.methods.autocompressor.compressor.convert import convert as run

    print(run(source, target, base=base, accumulate=told.get("accumulate"), allow_pickle=allow_pickle))


app.command(epilog=kinds.compare_help)(kinds.compare)
app.command(epilog=kinds.probe_help)(kinds.probe)
app.command(epilog=kinds.memory_help)(kinds.memory)
app.command(epilog=kinds.cartridge_help)(kinds.cartridge)
