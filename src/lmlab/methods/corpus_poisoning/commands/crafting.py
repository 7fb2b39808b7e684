"""`lmlab poison`: crafting passages, and training with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import AsJson, example, print_table
from lmlab.errors import UserError, reads
from lmlab.methods.corpus_poisoning.commands.shared import Queries, collection_options, encoder_options, retriever
from lmlab.methods.corpus_poisoning.config import CraftConfig, HardenConfig, ParityConfig
from lmlab.retrieval.config import CollectionConfig, EncoderConfig
from lmlab.words import counted

Settings = Annotated[
    Path | None,
    typer.Option("--config", help="A YAML file with settings, which go before options.", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, which goes before options.", show_default=False),
]

MaxSeconds = Annotated[
    float | None, typer.Option(min=1, help="Stop after so long; the next run goes on.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run was cut off; that is what happens anyway.")]

craft_help = example(
    "lmlab poison craft --data data/scifact --encoder minilm --k 10 --out attack",
    "lmlab poison craft --data data/scifact --encoder minilm --payload-position prefix --out attack",
)
harden_help = example("lmlab poison harden --data data/scifact --encoder minilm --rounds 3 --out hardened")


def with_files(settings: CraftConfig, config: Path | None, set_: list[str] | None) -> CraftConfig:
    """Settings with those of a file and of `--set`."""
    from lmlab.config import apply_overrides, validate
    from lmlab.files import read_yaml

    data = {**settings.model_dump(), **(read_yaml(config) if config else {})}
    return validate(CraftConfig, apply_overrides(data, set_ or []), "the settings")


@reads("a text")
def read_payload(path: Path) -> str:
    """The text that a user wants in every passage.

    Raises:
        UserError: it is no text, or empty.
    """
    if not (text := path.read_text("utf-8").strip()):
        raise UserError(f"'{path}' holds no text.", "Leave --payload-file out for the canary.")
    return text


@collection_options(split="train")
@options(CraftConfig, exclude=("payload", "precision"))
@options(ParityConfig, "reference")
@encoder_options()
def craft(
    collection: CollectionConfig,
    settings: CraftConfig,
    reference: ParityConfig,
    which: EncoderConfig,
    out: Annotated[Path, typer.Option("--out", "-o", "--output_file", help="Folder of the attack.")] = Path("attack"),
    queries: Queries = None,
    payload_file: Annotated[
        Path | None,
        typer.Option(help="A text of your own for every passage, which the report shows.", show_default=False),
    ] = None,
    max_seconds: MaxSeconds = None,
    resume: Resume = False,
    parity: Annotated[
        bool,
        typer.Option("--parity", "--do_kmeans", help="The reference's algorithm with its quirks, for comparison."),
    ] = False,
    config: Settings = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Craft passages against a retriever of your own; they are written as an overlay with a list of ids to remove."""
    from lmlab.methods.corpus_poisoning.attack.run import craft_for

    if payload_file is not None:
        if not payload_file.is_file():
            raise UserError(f"No such file: '{payload_file}'.")
        place = settings.payload_position if settings.payload_position != "none" else "prefix"
        text = read_payload(payload_file)
        settings = settings.model_copy(update={"payload": text, "payload_position": place})
    settings = with_files(settings, config, set_).model_copy(update={"precision": which.precision})
    if parity:
        from lmlab.methods.corpus_poisoning.attack.parity import craft_by_reference
        from lmlab.methods.corpus_poisoning.attack.searching.reference import ReferenceSettings

        how = ReferenceSettings(
            settings.length,
            settings.candidates,
            reference.batch,
            reference.iterations,
            reference.gradient_batches,
            not reference.dont_init_gold,
        )
        about: dict[str, Any] = craft_by_reference(
            retriever(which), collection.data, collection.split, how, out, settings.k, reference.cluster, settings.seed
        )
        if as_json:
            print(json.dumps({**about, "out": str(out)}))
            return
        print(f"{about['found']} of {counted(about['k'], 'clusters')} by the reference's algorithm: {out}")
        return
    found = craft_for(
        retriever(which),
        collection.data,
        collection.split,
        settings,
        out,
        queries,
        max_seconds,
        collection.ignore_missing,
    )
    if as_json:
        about = {"run": found.run, "passages": len(found.passages), "clusters": len(found.clusters)}
        spent = {"cpu_seconds": found.seconds, "evaluations": found.evaluations}
        payload = found.passages.passages[0].payload if len(found.passages) else ""
        print(json.dumps({**about, **spent, "payload": payload, "out": str(out)}))
        return
    print(
        f"{counted(len(found.passages), 'passages')} for {counted(len(found.clusters), 'clusters')} of queries in"
        f" {found.seconds:.0f} CPU s ({found.evaluations:,} evaluations):"
        f" {out / 'adversarial.jsonl'}\nTo remove them: {out / 'removal.txt'}"
    )


@collection_options(exclude=("split", "ignore_missing"))
@options(CraftConfig, exclude=("payload", "precision", "payload_position", "target_asr"))
@options(HardenConfig, "how")
@encoder_options()
def harden(
    collection: CollectionConfig,
    settings: CraftConfig,
    how: HardenConfig,
    which: EncoderConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of rounds.")] = Path("hardened"),
    max_seconds: MaxSeconds = None,
    resume: Resume = False,
    config: Settings = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Train a retriever with crafted passages as negatives, and attack what comes out anew, several rounds."""
    from rich.table import Table

    from lmlab.methods.corpus_poisoning.attack.run import time_limit
    from lmlab.methods.corpus_poisoning.defend.harden import harden as run_rounds

    depth = how.depth
    settings = with_files(settings, config, set_).model_copy(update={"precision": which.precision})
    with time_limit(max_seconds):
        rows = run_rounds(retriever(which), collection.data, settings, how, out)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("round", "clean nDCG@10", f"ASR@{depth} %, old passages", f"ASR@{depth} %, new attack")
    for row in rows:
        old, new = row[f"asr@{depth}_old"], row[f"asr@{depth}_new"]
        told = "" if old is None else f"{100 * old:.2f}"
        table.add_row(str(row["round"]), f"{row['clean_ndcg@10']:.4f}", told, f"{100 * new:.2f}")
    print_table(table)
