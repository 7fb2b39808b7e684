"""Any checkpoint that lmlab reads to a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lmlab.errors import LmlabError, UserError
from lmlab.models.formats.adapters.peft import load_lora
from lmlab.models.formats.hf import (
    NATIVE,
    compare_with_transformers,
    from_pretrained,
    read_settings,
    save_pretrained,
)
from lmlab.models.formats.settings import why_no_family
from lmlab.models.lora.adapt import remove_lora
from lmlab.models.transformer import Transformer

_TOLERANCE = 1e-4  # of the largest value: rounding in fp32 over the layers of a model stays below
_CHECKED_TOKENS = 32  # enough for positions and attention to matter, and quick on a CPU


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        model_type: a Hugging Face family, or "lmlab" when none has the model's features.
        difference: the largest difference to the logits of `transformers`, or of an encoder to its hidden states, if it
            was asked for.
        why_native: what keeps the model from a family, where it has none.
    """

    model_type: str
    parameters: int
    difference: float | None = None
    why_native: str | None = None


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    *,
    max_shard_bytes: int = 5 * 10**9,
    allow_pickle: bool = False,
    check: bool = False,
    adapter: str | Path | None = None,
    model: Transformer | None = None,
    gguf: str | None = None,
) -> Conversion:
    """Read a model and write it, with its tokenizer and generation settings, as a Hugging Face directory.

    Arguments:
        source: a Hugging Face directory, one in lmlab's own format, or a GGUF file.
        target: a directory that holds no model yet.
        dtype: of the weights; None keeps that of the source.
        max_shard_bytes: weights beyond this are cut into several files.
        allow_pickle: also read `pytorch_model.bin`, with `weights_only`.
        model: what is written, in place of the model in `source`, from which then only the tokenizer and the settings
            are taken.
        adapter: LoRA adapters to fold into the weights.
        gguf: write one GGUF file of this type (fp32, fp16, bf16, q8_0, or keep) in place of a directory.
        check: compare the logits of what was written (of an encoder: its hidden states) with those of `transformers`,
            in fp32.

    Raises:
        UserError: the target holds a model, or the source cannot be read.
        LmlabError: these differ by more than 1e-4.
    """
    source, target = Path(source), Path(target)
    adapter = None if adapter is None else Path(adapter)
    if (target / "config.json").exists() or (gguf is not None and target.exists()):
        raise UserError(f"'{target}' already holds a model.", "Name another one, or remove it.")
    if model is None:
        model = from_pretrained(source, dtype=dtype, allow_pickle=allow_pickle)
    if adapter is not None:
        load_lora(model, adapter, allow_pickle=allow_pickle)
        remove_lora(model, merge=True)
    if gguf is not None:
        return _convert_to_gguf(model, source, target, gguf)
    model_type = save_pretrained(model, target, dtype, companions=source, max_shard_bytes=max_shard_bytes)
    parameters = model.config.num_parameters()
    if not check:
        why = why_no_family(model.config) if model_type == NATIVE else None
        return Conversion(model_type, parameters, why_native=why)
    if model_type == NATIVE:
        raise UserError(
            f"'{target}' was written in lmlab's own format, which transformers does not read, so that there is nothing"
            " to compare with.",
            why_no_family(model.config),
        )
    if model.config.num_labels is not None:
        raise UserError(
            f"'{target}' was written, but the check compares next-token logits, which a model with a scalar head has"
            " not."
        )
    ids = torch.randint(
        0,
        model.config.vocab_size,
        (2, min(_CHECKED_TOKENS, model.config.max_seq_len)),
        generator=torch.Generator().manual_seed(0),
    )
    if (padding := read_settings(target).get("pad_token_id")) is not None:
        ids[ids == padding] = (padding + 1) % model.config.vocab_size  # RoBERTa takes it for padding wherever it stands
    with torch.no_grad():
        output = from_pretrained(target)(ids)
    hidden = output.logits_BTV is None
    ours = output.hidden_BTD if output.logits_BTV is None else output.logits_BTV
    difference = compare_with_transformers(target, ids, ours, hidden=hidden)
    if not difference <= _TOLERANCE * max(1.0, float(ours.abs().max())):
        what = "hidden states" if hidden else "logits"
        raise LmlabError(f"The {what} of '{target}' differ by {difference:.1e} in transformers.")
    return Conversion(model_type, parameters, difference)


def _convert_to_gguf(model: Transformer, source: Path, target: Path, dtype: str) -> Conversion:
    """One file with the tokenizer, where the source has one."""
    from lmlab.models.formats.gguf_write import write_gguf

    if dtype == "keep":
        kept = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        dtype = kept.get(model.embedding.weight.dtype, "fp32")
    described = source.is_dir() and (source / "config.json").exists()
    settings = read_settings(source) if described else {}
    tokenizer = source if source.is_dir() and (source / "tokenizer.json").exists() else None
    return Conversion(f"GGUF, {write_gguf(model, target, dtype, tokenizer, settings)}", model.config.num_parameters())
