"""What a compressor is given and refuses: models that cannot compress, texts that are none, vectors of another width.

Shapes: B batch, T tokens, P vectors, D model width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.methods.autocompressor.config import CompressorConfig
from lmlab.models import ModelConfig, SoftPrompt


def require_compressible(shape: ModelConfig, config: CompressorConfig) -> None:
    """Refuse a model that cannot write summaries, or not with these settings.

    Raises:
        UserError: it is no causal language model, its experts look ahead, or its positions are others.
    """
    if not shape.causal or not shape.lm_head or shape.num_labels is not None:
        raise UserError("A compressor needs a causal language model, and this is none.")
    if shape.moe is not None and shape.moe.router == "expert_choice":
        raise UserError(
            "A model with router expert_choice cannot compress: what its experts do with a token depends on those"
            " after it."
        )
    if config.rope_positions == "text_only" and shape.positions != "rotary":
        raise UserError(
            f"rope_positions text_only is for rotary positions, and the model has {shape.positions} ones.",
            "Leave it out.",
        )


def require_texts(given_BT: Tensor, vocabulary: int, is_ids: bool, **beside: Tensor | None) -> None:
    """Refuse what is no batch of texts of the model's tokens.

    Raises:
        UserError: other ids, or a mask or labels of another shape.
    """
    if given_BT.dim() != 2 or not len(given_BT):
        raise UserError(f"Texts are [B, T] with at least one row, not {list(given_BT.shape)}.")
    if is_ids and (given_BT.is_floating_point() or given_BT.dtype == torch.bool):
        raise UserError(f"Texts are token ids, and these are {given_BT.dtype}.")
    if is_ids and given_BT.numel() and not 0 <= int(given_BT.min()) <= int(given_BT.max()) < vocabulary:
        raise UserError(f"The text has token ids beyond the model's vocabulary of {vocabulary}.")
    for name, each in beside.items():
        if each is not None and each.shape != given_BT.shape:
            raise UserError(f"{name} has the shape {list(each.shape)}, and the text {list(given_BT.shape)}.")
        if each is not None and name != "attention_mask" and each.numel() and int(each.max()) >= vocabulary:
            raise UserError(f"{name} has token ids beyond the model's vocabulary of {vocabulary}.")


def fitting_vectors(given: SummaryVectors | SoftPrompt | Tensor | None, none: SummaryVectors) -> SummaryVectors:
    """What was given as a soft prompt, in the rows of `none`, which is what stands where nothing was given.

    Raises:
        UserError: it has another width or number of rows than `none`, or is not finite.
    """
    if given is None:
        return none
    rows, _, width = none.vectors_BPD.shape
    valid_BP = None
    if isinstance(given, SummaryVectors):
        vectors_BPD, valid_BP, found = given.vectors_BPD, given.valid_BP, given
    else:
        if isinstance(given, SoftPrompt):
            if given.text_P is not None:
                raise UserError(
                    "The soft prompt holds plain tokens beside its vectors, which a compressor does not read.",
                    "Give it vectors alone, and the tokens as text.",
                )
            vectors_BPD, valid_BP = given.vectors_BPD, given.valid_BP
        else:
            vectors_BPD = given[None] if given.dim() < 3 else given
        vectors_BPD = vectors_BPD[None] if vectors_BPD.dim() < 3 else vectors_BPD
        segment_of_P = torch.zeros(vectors_BPD.shape[1], dtype=torch.long, device=none.vectors_BPD.device)
        found = replace(none, vectors_BPD=vectors_BPD, segment_of_P=segment_of_P, valid_BP=valid_BP)
    if valid_BP is not None and valid_BP.shape[1:] != vectors_BPD.shape[1:2]:
        raise UserError(f"The soft prompt's mask is {list(valid_BP.shape)}, and its vectors differ.")
    if vectors_BPD.dim() != 3 or vectors_BPD.shape[2] != width or len(vectors_BPD) not in (1, rows):
        raise UserError(
            f"A soft prompt for {rows} texts of a model of width {width} is [1 or {rows}, P, {width}], not"
            f" {list(vectors_BPD.shape)}."
        )
    if not vectors_BPD.is_floating_point() or not bool(torch.isfinite(vectors_BPD.detach()).all()):
        raise UserError("The soft prompt holds what is no finite number.", "Make it again.")
    valid_BP = None if valid_BP is None else valid_BP.expand(rows, -1)
    tokens_B = found.tokens_B if len(found.tokens_B) == rows else found.tokens_B.expand(rows)
    return replace(found, vectors_BPD=vectors_BPD.expand(rows, -1, -1), valid_BP=valid_BP, tokens_B=tokens_B)
