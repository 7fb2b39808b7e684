"""`lmlab quality clean`: texts by the published rules of web corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.methods.qurating.cli import Out, app
from lmlab.methods.qurating.commands.selection import In
from lmlab.methods.qurating.config import RatingOptions
from lmlab.methods.qurating.selecting.settings import TableFormat
from lmlab.words import counted


@app.command(
    epilog=example(
        "lmlab quality clean --in corpus/ --rule gopher-repetition --rule gopher --rule fineweb --redact --out cleaned",
        "lmlab quality clean --in corpus/ --rule c4 --rule c4-paragraphs --format jsonl --out cleaned",
    )
)
@options(TableFormat, "files")
@options(RatingOptions, "reading", only=("text", "workers", "backend"))
def clean(
    where: In,
    files: TableFormat,
    reading: RatingOptions,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            help="c4, c4-paragraphs, gopher, gopher-repetition or fineweb. May be repeated: the first that refuses a"
            " text decides.",
            show_default=False,
        ),
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="Replace e-mail and public IP addresses.")] = False,
    language: Annotated[str, typer.Option(help="Of the words that rules count.")] = "en",
    out: Out = Path("cleaned"),
) -> None:
    """Keep the texts that the published rules of web corpora keep, and redact addresses in them: of each file of the
    corpus one, N-of-M. Several processes share the files; the same command goes on after a kill.
    """
    from lmlab.methods.qurating.analysis.cleaning import clean_rows
    from lmlab.methods.qurating.commands.shared import print_rows
    from lmlab.methods.qurating.selecting.tables.files import Processes

    counts, reasons = clean_rows(
        [str(path) for path in where],
        out,
        rules or [],
        redact=redact,
        language=language,
        text=reading.text,
        kind=files.format,
        processes=Processes(reading.workers, reading.backend),
    )
    if reasons:
        print_rows(["refused by", "rows"], list(reasons.items()))
    print(
        f"{counts['kept']:,} of {counted(counts['rows'], 'rows')} kept, {counts['changed']:,} of them with another"
        f" text.\nShards: {out}"
    )
