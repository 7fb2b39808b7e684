"""`lmlab data`: look at data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.options import DomainField, IdField, TextField, example, fields_of

app = typer.Typer(no_args_is_help=True, help="Look at data.")


@app.command(
    name="inspect",
    epilog=example(
        "lmlab data inspect runs/demo/tokens --out page.html",
        "lmlab data inspect 's3://bucket/*.parquet' --text-field content",
    ),
)
def data_inspect(
    path: Annotated[
        str,
        typer.Argument(help="Tokenized shards, what a stage collect wrote, or any source: file, glob, folder or URL."),
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Count tokens of text by this tokenizer.", show_default=False)
    ] = None,
    documents: Annotated[int, typer.Option(min=0, help="How many documents to show.")] = 5,
    text_field: TextField = "text",
    id_field: IdField = None,
    domain_field: DomainField = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a page there.", show_default=False)
    ] = None,
) -> None:
    """Show documents, tokens, lengths, domains, and what is set aside and why."""
    from lmlab.inspection import inspect_data, print_inspection, write_inspection
    from lmlab.runs import Vocabulary
    from lmlab.terminal import Terminal

    fields = fields_of(text_field, id_field, domain_field)
    found = inspect_data(path, Vocabulary.find(tokenizer).load() if tokenizer else None, documents, fields)
    print_inspection(found, Terminal())
    if out is not None:
        print(f"Page: {write_inspection(found, out)}")
