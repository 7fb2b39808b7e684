"""`lmlab quality attributes`, `join` and `ensemble`: ratings as files beside documents, back, and of several raters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.methods.qurating.cli import Out, app
from lmlab.methods.qurating.commands.selection import In
from lmlab.methods.qurating.config import RatingOptions
from lmlab.methods.qurating.selecting.settings import SelectionSettings, ShardOptions
from lmlab.words import counted


@app.command(epilog=example("lmlab quality attributes --in rated --name edu --out attributes/edu"))
@options(ShardOptions, "written", only=("columns",), notes={"columns": "Of these, by default all NAME_average."})
@options(SelectionSettings, only=("id",))
@options(RatingOptions, "reading", only=("text",))
def attributes(
    where: In,
    written: ShardOptions,
    settings: SelectionSettings,
    reading: RatingOptions,
    name: Annotated[str, typer.Option(help="Of the rater: attributes are called NAME__COLUMN.")] = "quality",
    out: Out = Path("attributes"),
) -> None:
    """Write ratings as attribute files of Dolma: for each file of documents one of its name, with spans and scores."""
    from lmlab.methods.qurating.analysis.attributes import write_attributes

    found = list(map(str, where)), out, name, written.columns
    count = write_attributes(*found, id=settings.id or "id", text=reading.text)
    print(f"{counted(count, 'rows')}.\nAttributes: {out}")


@app.command(epilog=example("lmlab quality join documents/ --attributes attributes/edu --out rated"))
def join(
    documents: Annotated[str, typer.Argument(help="Documents, as JSON lines or Parquet.")],
    attribute: Annotated[list[str], typer.Option("--attributes", help="Folder of attribute files. May be repeated.")],
    out: Out = Path("rated"),
) -> None:
    """Read attribute files of Dolma: documents with a column ATTRIBUTE_average for each, which can be selected by."""
    from lmlab.methods.qurating.analysis.attributes import join_attributes

    print(f"{counted(join_attributes(documents, attribute, out), 'rows')}.\nDocuments with ratings: {out}")


@app.command(epilog=example("lmlab quality ensemble rated-0 rated-1 rated-2 --out rated"))
@options(ShardOptions, "written", only=("columns",), notes={"columns": "Of ratings, by default all NAME_average."})
@options(SelectionSettings, only=("id",))
def ensemble(
    rated: Annotated[list[str], typer.Argument(help="Folders of one corpus, each annotated by another rater.")],
    written: ShardOptions,
    settings: SelectionSettings,
    out: Out = Path("rated"),
) -> None:
    """Join the ratings of several raters: their mean, and their disagreement, which `select --uncertainty` holds
    against a row.
    """
    from lmlab.methods.qurating.analysis.ensemble import write_ensemble

    found = write_ensemble(rated, out, written.columns, id=settings.id or "id")
    print(f"{counted(found.rows, 'rows')} by {found.raters} raters.")
    for name, value in found.agreement.items():
        left = f"; {counted(found.missing[name], 'rows lack')} a rating, and get none" if found.missing[name] else ""
        print(f"{name}: the raters correlate by {value:.3f} on average{left}")
    name = next(iter(found.agreement))
    print(
        f"Choose by a lower bound: lmlab quality select --in {out} --metric {name} --uncertainty {name}_deviation ..."
    )
