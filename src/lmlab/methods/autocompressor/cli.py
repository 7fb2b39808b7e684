"""`lmlab compress`: learn to write summary vectors for text, and to read them in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import DryRun, IdField, Out, Redo, Set, TextField, example, run_recipe_file
from lmlab.errors import UserError
from lmlab.methods.autocompressor.commands import kinds
from lmlab.methods.autocompressor.config import EncodeConfig

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
def text(
    compressor: Compressor,
    file: Annotated[Path, typer.Argument(help="A text file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The vectors, as a soft prompt (safetensors).")],
    segment: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a segment, by default as the window allows.", show_default=False),
    ] = None,
    vectors: Annotated[
        int | None, typer.Option(min=1, help="Vectors of a segment, of a nested compressor.", show_default=False)
    ] = None,
) -> None:
    """Compress one text, and write what stands for it as a soft prompt."""
    import torch

    from lmlab.methods.autocompressor import AutoCompressor
    from lmlab.models import save_soft_prompt
    from lmlab.runs import Model

    model = AutoCompressor.load(compressor)
    try:
        ids = Model.find(compressor).tokenizer().encode_prompt(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' cannot be read as text: {error}.") from None
    found = model.compress(torch.tensor([ids]), segment_lengths=segment, summary_length=vectors)
    save_soft_prompt(found.soft_prompt, out, model.model)
    print(f"{len(ids):,} tokens in {found.segments} segments became {found.length} vectors.\nVectors: {out}")


@app.command(
    epilog=example(
        "lmlab compress encode runs/compress --in docs.jsonl --segment 2048 --out store",
        "lmlab compress encode runs/compress --in wiki.parquet --segment 512 --independent --dtype int8 --workers 4"
        " --out store",
    )
)
@options(EncodeConfig)
def encode(
    compressor: Compressor,
    documents: Annotated[str, typer.Option("--in", help="File, glob, folder or URL of texts or records.")],
    settings: EncodeConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.")],
    text_field: TextField = "text",
    id_field: IdField = None,
) -> None:
    """Compress documents into a store. The same command after a kill goes on, and elsewhere shares the work."""
    from lmlab.commandline.options import fields_of
    from lmlab.methods.autocompressor import EncodeJob
    from lmlab.methods.autocompressor.store.encode import encode as run

    told = settings.model_dump(exclude={"workers", "backend", "gpus"})
    fields = tuple(fields_of(text_field, id_field, None).items())
    job = EncodeJob(compressor, documents, str(out), fields=fields, **told)
    found = run(job, settings.workers, settings.backend, settings.gpus)
    print(
        f"{found['documents']:,} documents ({found['empty']:,} without text), {found['encoded']:,} encoded now;"
        f" {found['tokens']:,} tokens became {found['rows']:,} summaries.\nStore: {out}"
    )


app.command(epilog=kinds.compare_help)(kinds.compare)
app.command(epilog=kinds.probe_help)(kinds.probe)
app.command(epilog=kinds.cartridge_help)(kinds.cartridge)
