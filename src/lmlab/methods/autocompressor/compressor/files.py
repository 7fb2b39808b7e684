"""The files of a compressor: the directory of its model, which any other program reads as such, and beside it
`compressor.json` and `compressor.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lmlab.config import Config, validate
from lmlab.errors import LmlabError, UserError, reads
from lmlab.files import atomic_file, read_mapping, sha256_json, write_json
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.config import CompressorConfig
from lmlab.models import (
    LoRAConfig,
    ModelConfig,
    Transformer,
    add_lora,
    known_fingerprint,
    remove_lora,
    save_pretrained,
)
from lmlab.runs import Model
from lmlab.train import load_checkpoint

SETTINGS, WEIGHTS = "compressor.json", "compressor.safetensors"
TABLE = "embed_summary.weight"
_FORMAT = "lmlab compressor 1"


class CheckpointNote(Config):
    """What stands beside the checkpoints of a training, so that they are read before it is done.

    Attributes:
        shape: of the model.
        lora: adapters beside the weights of `base`, if those are trained alone.
        base: where the training began, from here.
    """

    compressor: CompressorConfig
    shape: ModelConfig
    lora: LoRAConfig | None = None
    base: str


def model_fingerprint(compressor: AutoCompressor) -> str:
    """Of the weights that read vectors, whichever precision they were read in: the same as a soft prompt's."""
    return known_fingerprint(compressor.model)


def fingerprint(compressor: AutoCompressor) -> str:
    """Of all that vectors depend on: the model, the summary tokens, how they are read."""
    table = compressor.summary_embedding_ND.detach().float().cpu()
    told = compressor.config.model_dump(include={"summary_length", "accumulate", "rope_positions", "position_budget"})
    if compressor.config.vector_scale != 1:  # not told otherwise, so that stores from before the setting stay valid
        told["vector_scale"] = compressor.config.vector_scale
    return sha256_json([model_fingerprint(compressor), table.tolist(), told])


def save_compressor(
    compressor: AutoCompressor,
    directory: str | Path,
    *,
    companions: str | Path | None = None,
    tokens: dict[str, int] | None = None,
    save_model: bool = True,
) -> None:
    """Write a directory that `load_compressor` reads, and every other program as that of a plain model.

    Arguments:
        companions: a directory whose tokenizer is copied.
        tokens: the ids of marks, as for `save_pretrained`.
        save_model: False leaves the model that lies there as it is.
    """
    directory = Path(directory)
    if save_model:
        save_pretrained(compressor.model, directory, companions=companions, tokens=tokens)
    with atomic_file(directory / WEIGHTS) as file:
        file.write(save({TABLE: compressor.summary_embedding_ND.detach().float().cpu().contiguous()}))
    write_json(
        directory / SETTINGS,
        {"format": _FORMAT, "model": model_fingerprint(compressor), **compressor.config.model_dump(mode="json")},
    )


class CompressorPlace(Model):
    """The model of a compressor: of a run that trained a base too, the stage that learned to compress is meant."""

    @classmethod
    def _preferred(cls, several: list[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
        return [each for each in several if _settings_of(each[1]).exists()] or super()._preferred(several)


def _settings_of(found: Model) -> Path:
    """Where a model says that it compresses, if it does."""
    if found.form == "checkpoint" and (beside := found.path.parent / SETTINGS).exists():
        return beside
    return (found.source if found.form != "gguf" else found.path.parent) / SETTINGS


@reads("the directory of a compressor")
def load_compressor(
    place: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> AutoCompressor:
    """Read a compressor, in evaluation mode.

    Arguments:
        place: its directory, the stage that trained or trains it, a checkpoint of that, or a run with one.
        dtype: of the model's weights, by default fp32; the summary tokens are in fp32 at least.

    Raises:
        UserError: there is none, or its model is another one than it was trained with.
        LmlabError: a file is damaged.
    """
    found = CompressorPlace.find(place)
    directory = _settings_of(found).parent
    if found.form == "checkpoint" and directory == found.path.parent:
        return _from_checkpoint(found, device, dtype)
    if not (directory / SETTINGS).exists():
        raise UserError(
            f"'{place}' holds a model, but no compressor ({SETTINGS} is missing).",
            "Train one: lmlab compress train; or convert the reference's: lmlab compress convert",
        )
    settings = read_mapping(directory / SETTINGS)
    if settings.pop("format", None) != _FORMAT:
        raise UserError(f"'{directory / SETTINGS}' is not the file of a compressor of lmlab.")
    told = settings.pop("model", None)
    config = validate(CompressorConfig, settings, f"'{directory / SETTINGS}'")
    compressor = AutoCompressor(found.load(device, dtype), config)
    table = read_table(directory / WEIGHTS, config.summary_length, compressor.model.config.d_model)
    with torch.no_grad():
        compressor.summary_embedding_ND.copy_(table)
    if told != model_fingerprint(compressor):
        raise UserError(
            f"The model in '{directory}' is another one than its summary tokens were trained with.",
            "Copy the whole directory again.",
        )
    return compressor.eval()


def _from_checkpoint(found: Model, device: torch.device | str, dtype: torch.dtype | None) -> AutoCompressor:
    """The compressor of a training that is not done."""
    place = found.path.parent / SETTINGS
    note = validate(CheckpointNote, read_mapping(place), f"'{place}'")
    if note.lora is None:
        model = Transformer(note.shape)
    else:
        model = Model.find((place.parent / note.base).resolve()).load()
        add_lora(model, note.lora)
    compressor = AutoCompressor(model, note.compressor)
    load_checkpoint(found.path, compressor)
    if note.lora is not None:
        remove_lora(model, merge=True)
    model.to(device=device, dtype=dtype or torch.float32)
    return compressor.to(device=device).eval()


def read_table(path: Path, rows: int, width: int) -> torch.Tensor:
    """The summary tokens of a file.

    Raises:
        UserError: it has others than the settings say.
        LmlabError: it is missing, damaged, or holds what is no number.
    """
    if not path.is_file():
        raise LmlabError(f"'{path}' is missing.", "Copy the compressor again.")
    try:
        with safe_open(path, "pt") as file:
            if TABLE not in file.keys():  # noqa: SIM118 (not a mapping)
                raise UserError(f"'{path}' holds no {TABLE}.")
            table = file.get_tensor(TABLE)
    except SafetensorError as error:
        raise LmlabError(f"'{path}' is damaged ({error}).", "Copy the compressor again.") from None
    if tuple(table.shape) != (rows, width):
        raise UserError(f"'{path}' holds summary tokens of shape {list(table.shape)}, not {[rows, width]}.")
    if not bool(torch.isfinite(table).all()):
        raise LmlabError(f"'{path}' holds summary tokens that are not finite.", "Train or copy the compressor again.")
    return table
