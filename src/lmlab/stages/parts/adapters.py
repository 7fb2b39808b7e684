"""Adapters in stages that train: their settings, the network with them, and what is written of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from lmlab.config import part_of
from lmlab.data import Tokenizer
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.models import LoRAConfig, ModelConfig, Transformer, add_lora, remove_lora, save_lora, save_pretrained
from lmlab.models.lora.adapt import quantize_base
from lmlab.runs import ADAPTERS, Model
from lmlab.train import load_weights, whole_tensors

# What other libraries call it.
_QUANTIZED = ("quantization", "quantization_config", "load_in_4bit", "load_in_8bit")


class Adapters(LoRAConfig):
    """Low-rank adapters that are trained in place of the weights of `start`."""

    merge: bool = Field(
        default=True,
        description="write the model with the adapters folded in as model/ too, beside adapters/ as the peft library"
        " reads it; later stages need it",
    )

    @model_validator(mode="before")
    @classmethod
    def _whole_base(cls, data: Any) -> Any:
        for name in _QUANTIZED if isinstance(data, dict) else ():
            if name in data:
                raise ValueError(f"{name}: weights beside adapters are quantized by the key quantize: nf4 or int8.")
        return data

    @property
    def plain(self) -> LoRAConfig:
        """The adapters alone."""
        return part_of(LoRAConfig, self)


def adapted(start: Model, config: ModelConfig, lora: Adapters, seed: int) -> Transformer:
    """The network of `start` with new adapters beside its frozen weights.

    Raises:
        UserError: its weights are to be quantized, and several processes share the work.
    """
    model = frozen_base(start, lora)
    add_lora(model, lora, seed)
    return model


def frozen_base(start: Model, lora: Adapters | None) -> Transformer:
    """The network of `start` as it is beside adapters before they have learned anything: with quantized weights where
    that is asked for.
    """
    model = start.load()
    if lora is not None and lora.quantize is not None:
        refuse_shares(lora)
        quantize_base(model, lora)
    return model


def refuse_shares(lora: LoRAConfig | None) -> None:
    """Refuse quantized weights among several processes.

    Raises:
        UserError: they are asked for.
    """
    if lora is not None and lora.quantize is not None and world().size > 1:
        raise UserError(
            f"lora.quantize: {lora.quantize}: quantized weights are not shared out among processes.",
            "Train in one process, or leave quantize out.",
        )


def note_adapters(start: Model, lora: Adapters, directory: Path) -> None:
    """Write beside a stage's checkpoints, which hold adapters alone, what they belong to."""
    base, place = start.path.resolve(), (directory / "checkpoints").resolve()
    inside = base.is_relative_to(directory.resolve().parent)  # within the run, which may be moved as a whole
    write_json(
        place / ADAPTERS,
        {"base": os.path.relpath(base, place) if inside else str(base), "lora": lora.plain.model_dump(mode="json")},
    )


def export_adapters(
    model: nn.Module, start: Model, lora: Adapters, seed: int, tokenizer: Tokenizer, directory: Path
) -> None:
    """Write `adapters/`, and if asked `model/`, as one process sees them."""
    trained = whole_tensors(model)
    if not world().is_main:
        return
    copy = adapted(start, start.config, lora, seed)
    load_weights(copy, trained, str(directory))
    save_lora(copy, directory / "adapters", base=str(start.path))
    if lora.merge:
        remove_lora(copy, merge=True)
        tokens = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        save_pretrained(copy, directory / "model", tokens=tokens)


def check_adapters(lora: Adapters | None, start: str | None, start_optimizer: bool = False) -> None:
    """Refuse what does not go with adapters.

    Raises:
        ValueError: there is nothing that they could stand beside, or an optimizer's state is asked for.
    """
    if lora is not None and start is None:
        raise ValueError("lora trains beside the weights of a model; name it with 'start'.")
    if lora is not None and start_optimizer:
        raise ValueError("start_optimizer goes with all weights; leave it out beside lora.")
