"""`lmlab compress compare`, `probe`, `memory` and `cartridge`: kinds beside each other, and memories of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import ModelPlace, example
from lmlab.errors import UserError
from lmlab.methods.autocompressor.comparing.config import CompareConfig
from lmlab.methods.autocompressor.kinds.config import CartridgeConfig, KindConfig
from lmlab.runs.loading import Loading
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.data import Tokenizer
    from lmlab.evals import Evaluator
    from lmlab.methods.autocompressor.kinds.base import Compressor

compare_help = example(
    "lmlab compress compare models/smollm2 --out runs/kinds",
    "lmlab compress compare models/smollm2 --task json_kv --length 1024 --ratio 2,10 --kind prune:kvzip"
    " --kind prune:snap+prune:norm --out runs/two",
)
probe_help = example("lmlab compress probe models/smollm2 papers/*.txt --kind prune:snap --ratio 4")
memory_help = example(
    "lmlab compress memory models/smollm2 paper.txt --kind prune:kvzip --ratio 4 --out paper.safetensors",
    "lmlab generate --model models/smollm2 --soft-prompt paper.safetensors 'In short, the paper'",
)
cartridge_help = example(
    "lmlab compress cartridge models/smollm2 paper.txt --rows 64 --steps 200 --out paper.safetensors",
)


Kind = Annotated[str, typer.Option(help="A kind of compression that needs no training.")]


@takes_model
@options(CompareConfig)
@options(Loading, "loading")
def compare(
    model: ModelPlace,
    settings: CompareConfig,
    loading: Loading,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the rows and the table.")],
    trained: Annotated[
        list[Path] | None,
        typer.Option(help="A kind that was trained (compress_fit); may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Compare kinds of compression at equal key-value positions: what answers lose, with another context's memory as
    control, and bytes. The same command after a kill goes on with the contexts that are missing.
    """
    from rich import box
    from rich.table import Table

    from lmlab.commandline.options import print_table
    from lmlab.evals import Evaluator
    from lmlab.methods.autocompressor.comparing.run import TABLE, compare
    from lmlab.methods.autocompressor.comparing.table import COLUMNS, cells

    evaluator = Evaluator.load(model, loading.device, loading.precision)
    lines = compare(evaluator, settings, out, _trained(trained or [], evaluator))
    table = Table(*COLUMNS, box=box.SIMPLE)
    for line in lines:
        table.add_row(*cells(line))
    print_table(table)
    print(f"Table: {out / TABLE}")


def _trained(places: list[Path], evaluator: Evaluator) -> dict[str, Compressor]:
    from lmlab.methods.autocompressor.comparing.run import model_of
    from lmlab.methods.autocompressor.fitting.files import load_kind

    found: dict[str, Compressor] = {}
    for place in places:
        network = model_of(evaluator)
        weight = network.embedding.weight
        compressor = load_kind(place, weight.device, weight.dtype)
        if compressor.model.config.vocab_size != network.config.vocab_size:
            raise UserError(f"The model in '{place}' has another vocabulary than the one it is compared with.")
        if compressor.kind in found:
            raise UserError(f"Two kinds are called '{compressor.kind}'.", "Compare them one after the other.")
        found[compressor.kind] = compressor
    return found


@takes_model
@options(KindConfig, only=("ratio",))
@options(Loading, "loading")
def probe(
    model: ModelPlace,
    files: Annotated[list[Path], typer.Argument(help="Text files; more than one for intervals.")],
    settings: KindConfig,
    loading: Loading,
    kind: Kind = "prune:kvzip",
    tokens: Annotated[int, typer.Option(min=16, help="Most tokens of each text.")] = 512,
) -> None:
    """Say what a memory has lost: texts are said again from it, and names, numbers and rare words counted apart."""
    from rich import box
    from rich.table import Table

    from lmlab.commandline.options import print_table
    from lmlab.evals import Evaluator
    from lmlab.methods.autocompressor.comparing.probe import probe
    from lmlab.methods.autocompressor.comparing.run import model_of
    from lmlab.methods.autocompressor.comparing.table import told
    from lmlab.methods.autocompressor.kinds.base import create

    evaluator = Evaluator.load(model, loading.device, loading.precision)
    network = model_of(evaluator)
    texts = [_ids(evaluator.tokenizer, file)[:tokens] for file in files]
    if short := [str(file) for file, ids in zip(files, texts, strict=True) if len(ids) < 2]:
        raise UserError(f"'{short[0]}' has less than two tokens.", "Leave it out.")
    compressor = create(kind, network, tokenizer=evaluator.tokenizer)
    if compressor.learns:
        raise UserError(f"'{kind}' must be trained before it is probed.", "Probe it from Python: comparing.probe.")
    table = Table("words", "tokens", "NLL without", "whole text", "memory", "gain retained", box=box.SIMPLE)
    for line in probe(network, compressor, evaluator.tokenizer, texts, settings.ratio):
        losses = (f"{each:.3f}" for each in (line.without, line.whole, line.kept))
        table.add_row(line.words, f"{line.tokens:,}", *losses, told(line.retained))
    print_table(table)


def _ids(tokenizer: Tokenizer, file: Path) -> list[int]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' cannot be read as text: {error}.") from None
    # the mark at the beginning of every text is none
    if not text.strip() or not (ids := tokenizer.encode_prompt(text, "as_text")):
        raise UserError(f"'{file}' has no text.", "Name a file with some.")
    return ids


@takes_model
@options(KindConfig, only=("ratio", "sinks", "seed"))
@options(Loading, "loading")
def memory(
    model: ModelPlace,
    file: Annotated[Path, typer.Argument(help="A text file.")],
    settings: KindConfig,
    loading: Loading,
    out: Annotated[Path, typer.Option("--out", "-o", help="The memory (safetensors).")],
    kind: Kind = "prune:kvzip",
    query: Annotated[
        str | None, typer.Option(help="What will be asked, for kinds that look at it.", show_default=False)
    ] = None,
) -> None:
    """Compress one text by any kind that needs no training, to be read by generate and chat (--soft-prompt)."""
    import torch

    from lmlab.evals import Evaluator
    from lmlab.methods.autocompressor.comparing.run import model_of
    from lmlab.methods.autocompressor.kinds.base import create
    from lmlab.models import save_memory

    evaluator = Evaluator.load(model, loading.device, loading.precision)
    network = model_of(evaluator)
    compressor = create(kind, network, tokenizer=evaluator.tokenizer, **settings.model_dump())
    if compressor.learns or compressor.trains_each:
        raise UserError(
            f"'{kind}' must be trained before it compresses.",
            "Train rows for one text: lmlab compress cartridge; or vectors: lmlab compress train, then compress text",
        )
    ids = _ids(evaluator.tokenizer, file)
    asked = None if query is None else torch.tensor([evaluator.tokenizer.encode(query, "as_text")])
    found = compressor.compress(torch.tensor([ids]), query_BQ=asked)
    save_memory(found, out, network)
    slots = float(found.slots_B.mean())
    print(f"{counted(len(ids), 'tokens')} became {slots:,.0f} key-value positions.\nMemory: {out}")


@takes_model
@options(CartridgeConfig, exclude=("ratio", "sinks"))
@options(Loading, "loading", only=("device",))
def cartridge(
    model: ModelPlace,
    file: Annotated[Path, typer.Argument(help="A text file.")],
    settings: CartridgeConfig,
    loading: Loading,
    out: Annotated[Path, typer.Option("--out", "-o", help="The rows, as a memory (safetensors).")],
) -> None:
    """Train a few rows of keys and values to stand for one text. The same command after a kill goes on."""
    from dataclasses import replace

    import torch

    from lmlab.files import sha256_json
    from lmlab.hardware import select_device
    from lmlab.methods.autocompressor.kinds.cartridge import train_cartridge
    from lmlab.models import hash_of_ids, kernel_of, known_fingerprint, save_memory
    from lmlab.runs import Model

    found = Model.find(model)
    network = found.load(select_device(loading.device), torch.float32)
    ids = _ids(found.tokenizer(), file)
    if settings.rows is None:
        raise UserError("How large is the cartridge?", "--rows 64")
    key = sha256_json([hash_of_ids(ids), settings.model_dump(mode="json")])[:16]
    trained = train_cartridge(network, torch.tensor(ids), settings, out.with_name(f"{out.name}.{key}.training"))
    memory = replace(
        trained,
        tokens_B=(len(ids),),
        source_hash=(hash_of_ids(ids),),
        model_hash=known_fingerprint(network),
        about={"compressor": "cartridge", "kernel": kernel_of(network)},
    )
    save_memory(memory, out, network)
    rows = memory.rows.slots if memory.rows else 0
    print(f"{counted(len(ids), 'tokens')} became {counted(rows, 'rows')}.\nCartridge: {out}")
