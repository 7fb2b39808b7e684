"""Adapters in stages that train: their settings, the network with them, and what is written of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from lmlab.data import Tokenizer
from lmlab.distributed import world
from lmlab.files import write_json
from lmlab.models import LoRAConfig, ModelConfig, Transformer, add_lora, remove_lora, save_lora, save_pretrained
from lmlab.runs import ADAPTERS, Model
from lmlab.train import load_weights, whole_tensors

# What other libraries call it.
_QUANTIZED = ("quantize", "quantization", "quantization_config", "load_in_4bit", "load_in_8bit")


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
                raise ValueError(
                    f"{name}: the weights beside adapters are not quantized, as checkpoints, shares of several"
                    " processes and merging need them whole; leave it out, and lower trainer.micro_batch_size to save"
                    " memory."
                )
        return data

    @property
    def plain(self) -> LoRAConfig:
        """The adapters alone."""
        return LoRAConfig.model_validate({name: getattr(self, name) for name in LoRAConfig.model_fields})


def adapted(start: Model, config: ModelConfig, lora: Adapters, seed: int) -> Transformer:
    """The network of `start` with new adapters beside its frozen weights."""
    model = start.load()
    add_lora(model, lora, seed)
    return model


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
