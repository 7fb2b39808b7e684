"""`lmlab data`: look at data, pack it, plan mixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.data.packs.config import PackConfig, PackFiles
from lmlab.data.sources.reading.fields import ReadingOptions
from lmlab.words import counted

app = typer.Typer(no_args_is_help=True)

TokenPlace = "Tokenized shards, MDS with a column input_ids, or JSON lines with that key."


@app.command(
    name="inspect",
    epilog=example(
        "lmlab data inspect runs/demo/tokens --out page.html",
        "lmlab data inspect 's3://bucket/*.parquet' --text-field content",
    ),
)
@options(ReadingOptions, "fields")
def data_inspect(
    path: Annotated[
        str,
        typer.Argument(help="Tokenized shards, what a stage collect wrote, or any source: file, glob, folder or URL."),
    ],
    fields: ReadingOptions,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Count tokens of text by this tokenizer.", show_default=False)
    ] = None,
    documents: Annotated[int, typer.Option(min=0, help="How many documents to show.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a page there.", show_default=False)
    ] = None,
) -> None:
    """Show documents, tokens, lengths, domains, and what is set aside and why."""
    from lmlab.inspection import inspect_data, print_inspection, write_inspection
    from lmlab.runs import Vocabulary
    from lmlab.terminal import Terminal

    found = inspect_data(path, Vocabulary.find(tokenizer).load() if tokenizer else None, documents, fields.given())
    print_inspection(found, Terminal())
    if out is not None:
        print(f"Page: {write_inspection(found, out)}")


@app.command(
    name="pack",
    epilog=example(
        "lmlab data pack runs/books/tokens --pack-length 65536 --min-chunk-length 65536 --out packs/books-64K",
        "lmlab data pack runs/chat/tokens --pack-length 65536 --intact --out packs/chat",
        "lmlab data pack runs/repos/tokens --pack-length 524288 --mode split --lengths 524288 --lengths 65536"
        " --out packs/repos",
    ),
)
@options(PackConfig)
@options(PackFiles, "files")
def data_pack(
    sources: Annotated[list[str], typer.Argument(help=TokenPlace)],
    settings: PackConfig,
    files: PackFiles,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory that receives the sequences.")],
) -> None:
    """Pack documents of token ids into sequences of one length, which remember where each document stands, and say
    what was cut and dropped. A recipe's stage `train` takes the result where it takes tokens.
    """
    from rich import box
    from rich.table import Table

    from lmlab.data import write_packs
    from lmlab.data.packs.account import REASONS

    found = write_packs(sources, settings, out, files.compression)["account"]
    table = Table("", "tokens", "share", box=box.SIMPLE)
    whole = found["tokens"] + found["special"] or 1

    def row(name: str, count: int) -> None:
        table.add_row(name, f"{count:,}", f"{count / whole:.2%}")

    row(f"read, {counted(found['documents'], 'documents')}, special tokens included", whole)
    row(f"packed, {found['sequences']:,} sequences, {found['pieces']:,} documents or parts", found["packed"])
    row("of these repeated", found["repeats"])
    for reason, count in found["dropped"].items():
        row(f"dropped: {REASONS[reason]}", count)
    for distance, count in found["tokens_with_context_beyond"].items():
        row(f"with more than {counted(int(distance), 'tokens')} of their document before them", count)
    print_table(table)
    print(
        f"{found['cut']:,} documents ({found['cut_fraction']:.2%}) do not stand whole in one sequence.\nPacked: {out}"
    )


@app.command(
    name="mix-plan",
    epilog=example(
        "lmlab data mix-plan packs/repos@0.3 packs/books@0.3 packs/web@0.4 --tokens 20000000000 --length 65536",
        "lmlab data mix-plan runs/code/tokens#2 runs/prose/tokens --length 1024 --length 4096",
    ),
)
def data_mix_plan(
    streams: Annotated[
        list[str],
        typer.Argument(help="PATH@SHARE, PATH#REPEATS or PATH; token data. Shares add up to 1."),
    ],
    length: Annotated[
        list[int] | None, typer.Option(help="Count tokens of documents that have at least so many; may be repeated.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the whole training, where streams have shares.", show_default=False)
    ] = None,
) -> None:
    """Say how many tokens of long documents each stream has, and how often it would be gone through, before a run."""
    from rich import box
    from rich.table import Table

    from lmlab.data import parse_stream, plan_mix, plan_rows
    from lmlab.terminal import printable

    plans = plan_mix([parse_stream(each) for each in streams], length or [8192, 65536], tokens)
    heading, rows = plan_rows(plans)
    table = Table(*heading, box=box.SIMPLE)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else printable(str(cell)) for cell in row))
    print_table(table)


@app.command(name="peek", epilog=example("lmlab data peek packs/books-64K --samples 2"))
def data_peek(
    place: Annotated[str, typer.Argument(help=TokenPlace)],
    samples: Annotated[int, typer.Option(min=1, help="How many, from the first on.")] = 3,
    tokenizer: Annotated[
        Path | None, typer.Option(help="By default the one stored with the data.", show_default=False)
    ] = None,
    shown: Annotated[int, typer.Option(min=1, help="Tokens shown of each document's beginning and end.")] = 24,
) -> None:
    """Show where documents begin and end in the first samples of token data."""
    from lmlab.data import peek
    from lmlab.runs import Vocabulary
    from lmlab.terminal import printable

    words = Vocabulary.find(tokenizer).load() if tokenizer else None
    for found in peek(place, samples, words, shown):
        size = found.stop - found.start
        learned = "" if found.learned == size else f", {found.learned:,} learned"
        print(f"{found.where} {printable(found.domain)} {found.start:,}-{found.stop:,} ({size:,} tokens{learned})")
        print(f"    {printable(found.begin)!r}\n    ... {printable(found.end)!r}")
