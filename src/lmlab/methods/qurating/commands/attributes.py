"""`lmlab quality attributes` and `join`: ratings as files beside documents, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.options import example
from lmlab.methods.qurating.cli import app
from lmlab.methods.qurating.commands.selection import Id, In, Out


@app.command(epilog=example("lmlab quality attributes --in rated --name edu --out attributes/edu"))
def attributes(
    where: In,
    name: Annotated[str, typer.Option(help="Of the rater: attributes are called NAME__COLUMN.")] = "quality",
    columns: Annotated[
        str | None,
        typer.Option(help="Columns to write, with commas; by default all NAME_average.", show_default=False),
    ] = None,
    id: Id = None,
    text_field: Annotated[str, typer.Option(help="Field with the text.")] = "text",
    out: Out = Path("attributes"),
) -> None:
    """Write ratings as attribute files of Dolma: for each file of documents one of its name, with spans and scores."""
    from lmlab.methods.qurating.analysis.attributes import write_attributes

    wanted = columns.split(",") if columns else []
    count = write_attributes(list(map(str, where)), out, name, wanted, id=id or "id", text=text_field)
    print(f"{count:,} rows.\nAttributes: {out}")


@app.command(epilog=example("lmlab quality join documents/ --attributes attributes/edu --out rated"))
def join(
    documents: Annotated[str, typer.Argument(help="Documents, as JSON lines or Parquet.")],
    attribute: Annotated[list[str], typer.Option("--attributes", help="Folder of attribute files. May be repeated.")],
    out: Out = Path("rated"),
) -> None:
    """Read attribute files of Dolma: documents with a column ATTRIBUTE_average for each, which can be selected by."""
    from lmlab.methods.qurating.analysis.attributes import join_attributes

    print(f"{join_attributes(documents, attribute, out):,} rows.\nDocuments with ratings: {out}")
