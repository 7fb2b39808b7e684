"""`lmlab poison`: passages of other tools, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import changes
from lmlab.commandline.options import AsJson, example
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.commands.shared import encoder_options, retriever
from lmlab.methods.corpus_poisoning.config import CraftConfig
from lmlab.retrieval.config import EncoderConfig
from lmlab.words import counted

import_help = example(
    "lmlab poison import results/ --form reference --encoder models/contriever --out attack",
    "lmlab poison import nq.json --form poisonedrag --out attack",
)
export_help = example("lmlab poison export attack --out results --name nq --encoder models/contriever")


@encoder_options(exclude=("cache", "precision"))
@changes(CraftConfig, ("k",), "chosen", {"k": "Here those of which set, where the folder has several."})
def import_(
    source: Annotated[Path, typer.Argument(help="The reference's folder of JSON files, or PoisonedRAG's file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the overlay.")],
    which: EncoderConfig,
    chosen: dict[str, Any],
    form: Annotated[str, typer.Option(help="reference or poisonedrag.")] = "reference",
    partial: Annotated[bool, typer.Option("--partial", help="Take what is there of incomplete sets.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read passages of other tools as an overlay that is marked."""
    import json

    from lmlab.methods.corpus_poisoning.formats import black_box, read_poisonedrag, read_reference

    if form == "poisonedrag":
        found = black_box(read_poisonedrag(source))
        found.save(out)
        if as_json:
            print(json.dumps({"passages": len(found), "out": str(out)}))
            return
        print(f"{counted(len(found), 'passages')} without gradients (question and text): {out}")
        return
    if form != "reference":
        raise UserError(f"--form {form}: reference or poisonedrag.")
    made = retriever(which)
    found, about = read_reference(source, made.encoder.tokenizer, chosen.get("k"), partial)
    found.save(out)
    if as_json:
        print(json.dumps({"passages": len(found), **about, "out": str(out)}))
        return
    told = f"k = {about['found']}/{about['k']}" if about["found"] < about["k"] else f"k = {about['k']}"
    passages = counted(len(found), "passages")
    print(f"{passages} ({told}), {about['round_trip']} with a text that is read as the same tokens: {out}")


@encoder_options(exclude=("cache", "precision"))
def export(
    passages: Annotated[Path, typer.Argument(help="Crafted passages.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the reference's files.")],
    which: EncoderConfig,
    name: Annotated[str, typer.Option(help="The collection's name in file names.")] = "data",
    as_json: AsJson = False,
) -> None:
    """Write passages as the reference's files, one a cluster."""
    import json

    from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
    from lmlab.methods.corpus_poisoning.formats import write_reference

    found = AdversarialSet.load(passages)
    made = retriever(which)
    write_reference(found, made.encoder.tokenizer, out, name, Path(which.encoder).name)
    if as_json:
        print(json.dumps({"files": len(found), "out": str(out)}))
        return
    print(f"{counted(len(found), 'files')}: {out}")
