"""GGUF files, read through `transformers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlab.errors import LmlabError, missing_extra, reads
from lmlab.models.formats.families.family import Settings


@reads("a GGUF file")
def read_gguf(file: Path) -> tuple[Settings, dict[str, Tensor]]:
    """The configuration and the de-quantized fp32 tensors of a GGUF file, by their Hugging Face names.

    Raises:
        UserError: `transformers`, `gguf` or `accelerate` is not installed.
        LmlabError: `transformers` cannot read it.
    """
    _require_gguf()
    from transformers import AutoModelForCausalLM

    with _reading(file):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
    return _settings(model.config), dict(model.state_dict())


@reads("a GGUF file")
def read_gguf_settings(file: Path) -> Settings:
    """The configuration of a GGUF file alone.

    Raises:
        UserError, LmlabError: as `read_gguf`.
    """
    _require_gguf()
    from transformers import AutoConfig

    with _reading(file):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    return _settings(config)


def _settings(config: Any) -> Settings:
    found: Settings = config.to_dict()
    found.pop("quantization_config", None)  # the tensors are de-quantized
    return found


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Quietly; what `transformers` cannot read is told in a sentence."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with _no_bars():
            yield
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise LmlabError(f"'{file}' cannot be read: {str(error).splitlines()[0]}.") from None


def convert_tokenizer(file: Path, directory: Path) -> Settings:
    """Write the tokenizer of a GGUF file as a Hugging Face one; return its special token ids."""
    _require_gguf()
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    tokenizer.save_pretrained(directory)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {key: value for key, value in ids.items() if value is not None}


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars of `tqdm` that `transformers` draws for tensors, which its own switch leaves on."""
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    bars = getattr(reader, "tqdm", None)
    try:
        if bars is not None:
            reader.tqdm = lambda items, **_: items
        yield
    finally:
        if bars is not None:
            reader.tqdm = bars


def _require_gguf() -> None:
    for module in ("transformers", "gguf", "accelerate"):
        try:
            __import__(module)
        except ImportError:
            raise missing_extra(module, "Reading GGUF files", "gguf") from None
