"""Checkpoints of the reference implementation, read and written: OPT and Llama, whole or as LoRA adapters.

A whole one is a Hugging Face directory whose `config.json` has `summary_length` and `accumulate_summary`, and whose
weights have `embed_summary.weight` beside the model's. An adapter of the `peft` library has the table among its
`modules_to_save`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.errors import LmlabError, UserError, reads
from lmlab.files import read_mapping, write_json
from lmlab.methods.autocompressor.compressor.files import (
    SETTINGS,
    TABLE,
    CompressorPlace,
    load_compressor,
    save_compressor,
)
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.config import CompressorConfig
from lmlab.models import from_pretrained_with, load_lora, read_settings, remove_lora, save_pretrained
from lmlab.models.formats.pickles import read_pickle
from lmlab.models.formats.settings import family_of
from lmlab.runs import Model

_ADAPTER = "adapter_config.json"
_CLASSES = {"opt": "OPTAutoCompressorModel", "llama": "LlamaAutoCompressorModel"}
_INDEX, _WEIGHTS, _EXTRA = "model.safetensors.index.json", "model.safetensors", "embed_summary.safetensors"
_PREFIX = "base_model.model."
_POSITIONS, _NO_POSITION = "model.decoder.embed_positions.weight", 1
"""The row of OPT's positions that the reference adds to vectors and summary tokens, in place of nothing."""


@reads("a checkpoint of the reference implementation")
def read_reference(
    source: str | Path,
    *,
    base: str | Path | None = None,
    accumulate: bool | None = None,
    allow_pickle: bool = False,
) -> AutoCompressor:
    """A compressor from a checkpoint of the reference implementation.

    Arguments:
        source: its directory; the class is told by `model_type`, not by the name of the directory.
        base: the model beside which adapters stand; by default what the adapters name, if that is a directory here.
        accumulate: of adapters, whose files do not say it.
        allow_pickle: also read `.bin` files, as plain weights only.

    Raises:
        UserError: it is no such checkpoint, lacks a setting, or its weights are a pickle.
        LmlabError: tensors are missing, unexpected or mis-shaped.
    """
    source = Path(source)
    if (source / _ADAPTER).exists():
        return _from_adapters(source, base, accumulate, allow_pickle)
    settings = read_settings(source)
    if "summary_length" not in settings:
        raise UserError(
            f"'{source / 'config.json'}' has no summary_length: it is no checkpoint of an AutoCompressor.",
            "A plain model becomes a compressor by training: lmlab compress train",
        )
    if not isinstance(settings.get("accumulate_summary"), bool):
        raise UserError(
            f"'{source / 'config.json'}' does not say whether summaries are accumulated (accumulate_summary).",
            'Add "accumulate_summary": true for an AutoCompressor, false for RMT.',
        )
    model, beside = from_pretrained_with(source, [TABLE], allow_pickle=allow_pickle)
    length = settings["summary_length"]
    if length and TABLE not in beside:
        raise LmlabError(f"'{source}' lacks {TABLE}, the table of its {length} summary tokens.")
    table = beside.get(TABLE, torch.zeros(0, model.config.d_model))
    if isinstance(length, bool) or not isinstance(length, int) or tuple(table.shape) != (length, model.config.d_model):
        raise LmlabError(
            f"{TABLE} has shape {list(table.shape)}, and its configuration asks for {[length, model.config.d_model]}."
        )
    config = CompressorConfig(summary_length=length, accumulate=settings["accumulate_summary"])
    return _with_table(AutoCompressor(model, config), table)


def _from_adapters(
    source: Path, base: str | Path | None, accumulate: bool | None, allow_pickle: bool
) -> AutoCompressor:
    settings = read_mapping(source / _ADAPTER)
    named = base or settings.get("base_model_name_or_path")
    if named is None or not Path(named).expanduser().exists():
        raise UserError(
            f"The adapters in '{source}' stand beside the model '{named}', which is not here.", "--base DIR"
        )
    if accumulate is None and (source / "config.json").exists():
        accumulate = read_mapping(source / "config.json").get("accumulate_summary")
    if not isinstance(accumulate, bool):
        raise UserError(
            f"The adapters in '{source}' do not say whether summaries are accumulated.",
            "Say --accumulate (AutoCompressor) or --replace (RMT).",
        )
    tensors = _adapter_tensors(source, allow_pickle)
    tables = [name for name in tensors if name.endswith((TABLE, "embed_summary.modules_to_save.default.weight"))]
    if len(tables) != 1:
        raise LmlabError(f"'{source}' holds {len(tables)} tables of summary tokens ({TABLE}) in place of one.")
    table = tensors.pop(tables[0]).float()
    compressor_model = Model.find(named).load(allow_pickle=allow_pickle)
    saved = [name for name in settings.get("modules_to_save") or () if name != "embed_summary"]
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / _ADAPTER, settings | {"modules_to_save": saved or None})
        save_file(tensors, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
        load_lora(compressor_model, folder)
    remove_lora(compressor_model, merge=True)
    if table.shape[1] != compressor_model.config.d_model:
        raise LmlabError(f"{TABLE} is {table.shape[1]} wide, and the model {compressor_model.config.d_model}.")
    return _with_table(
        AutoCompressor(compressor_model, CompressorConfig(summary_length=len(table), accumulate=accumulate)), table
    )


def _adapter_tensors(source: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if (source / "adapter_model.safetensors").exists():
        return dict(load_file(source / "adapter_model.safetensors"))
    if not (source / "adapter_model.bin").exists():
        raise UserError(f"'{source}' holds no adapter_model.safetensors.")
    if not allow_pickle:
        raise UserError(
            f"'{source}' holds its weights only as a pickle, which lmlab does not open unasked.", "--allow-pickle"
        )
    return read_pickle(source / "adapter_model.bin")


def _with_table(compressor: AutoCompressor, table: Tensor) -> AutoCompressor:
    if not bool(torch.isfinite(table).all()):
        raise LmlabError(f"{TABLE} holds what is no finite number.")
    with torch.no_grad():
        compressor.summary_embedding_ND.copy_(table)
    return compressor.eval()


def write_reference(compressor: AutoCompressor, directory: str | Path, *, companions: str | Path | None = None) -> None:
    """Write a compressor as the reference implementation reads it.

    Raises:
        UserError: it has what the reference has not: another family than OPT and Llama, or positions of its own.
    """
    directory = Path(directory)
    if compressor.config.rope_positions != "contiguous":
        raise UserError("The reference counts positions in order; rope_positions text_only cannot be written for it.")
    if compressor.config.vector_scale != 1:
        raise UserError(
            "The reference's vectors are final states as they are;"
            f" vector_scale {compressor.config.vector_scale:g} cannot be written for it."
        )
    of = family_of(compressor.model.config, compressor.model.read_as)
    if of is None or of.model_type not in _CLASSES:
        raise UserError(
            f"The reference has the families {' and '.join(_CLASSES)}, and the model is of"
            f" {'none' if of is None else f'the family {of.model_type}'}.",
            "Use it with lmlab.",
        )
    family = save_pretrained(compressor.model, directory, companions=companions)
    write_json(
        directory / "config.json",
        read_mapping(directory / "config.json")
        | {
            "architectures": [_CLASSES[family]],
            "summary_length": compressor.summary_length,
            "accumulate_summary": compressor.config.accumulate,
            "segment_gradient_checkpointing": False,
        },
    )
    table = compressor.summary_embedding_ND.detach().float().cpu().contiguous()
    if not (directory / _INDEX).exists():
        tensors = _without_position(_tensors(directory / _WEIGHTS))
        save_file({**tensors, TABLE: table}, directory / _WEIGHTS, metadata={"format": "pt"})
        return
    index = read_mapping(directory / _INDEX)
    if _POSITIONS in index["weight_map"]:
        shard = directory / index["weight_map"][_POSITIONS]
        save_file(_without_position(_tensors(shard)), shard, metadata={"format": "pt"})
    save_file({TABLE: table}, directory / _EXTRA, metadata={"format": "pt"})
    weights: Mapping[str, Any] = index["weight_map"] | {TABLE: _EXTRA}
    write_json(directory / _INDEX, index | {"weight_map": weights})


def _without_position(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OPT's own checkpoints have zeros in that row; a model that began elsewhere need not, and would read differently
    in the reference.
    """
    if _POSITIONS in tensors:
        tensors[_POSITIONS][_NO_POSITION] = 0
    return tensors


def write_reference_adapters(adapters: str | Path, compressor: AutoCompressor, directory: str | Path) -> None:
    """Write the adapters of a training with LoRA, and its summary tokens, as the reference implementation reads them.

    Arguments:
        adapters: `adapters/` of the training.
    """
    source, directory = Path(adapters), Path(directory)
    settings = read_mapping(source / _ADAPTER)
    table = compressor.summary_embedding_ND.detach().float().cpu().contiguous()
    directory.mkdir(parents=True, exist_ok=True)
    tensors = _adapter_tensors(source, False) | {_PREFIX + TABLE: table}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    saved = sorted({*(settings.get("modules_to_save") or ()), "embed_summary"})
    write_json(directory / _ADAPTER, settings | {"modules_to_save": saved})
    told = {"summary_length": len(table), "accumulate_summary": compressor.config.accumulate}
    write_json(directory / "config.json", told)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    base: str | Path | None = None,
    accumulate: bool | None = None,
    allow_pickle: bool = False,
) -> str:
    """Convert in the direction that the source asks for; a sentence that says what was written.

    Raises:
        UserError: the source is neither the reference's nor a compressor of lmlab, or the target exists.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"'{target}' is there already.", "Choose another folder.")
    theirs = (source / _ADAPTER).exists() or (
        (source / "config.json").exists() and "summary_length" in read_mapping(source / "config.json")
    )
    if theirs and not (source / SETTINGS).exists():
        compressor = read_reference(source, base=base, accumulate=accumulate, allow_pickle=allow_pickle)
        beside = next((place for place in (source, Path(base or source)) if (place / "tokenizer.json").exists()), None)
        save_compressor(compressor, target, companions=beside)
        return f"{compressor.summary_length} summary tokens and their model were written to '{target}'."
    compressor, found = load_compressor(source), CompressorPlace.find(source)
    adapters = found.path.parent / "adapters"
    if base is not None:
        if not (adapters / _ADAPTER).exists():
            raise UserError(f"There are no adapters beside '{found.path}' (--base).", "Leave --base out.")
        write_reference_adapters(adapters, compressor, target)
        return f"Adapters and {compressor.summary_length} summary tokens were written for the reference to '{target}'."
    write_reference(compressor, target, companions=found.path)
    return f"A checkpoint of the reference implementation was written to '{target}'."


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
