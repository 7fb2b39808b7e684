"""The keys and values of a text, as they stand in every layer.

Shapes: L layers, B rows, K key-value heads, T tokens, H width of a head, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmlab.models.internals.taps import Recorder
from lmlab.models.memory.rows import EMPTY, KVRows
from lmlab.models.transformer import Transformer


def read_rows(
    model: Transformer,
    input_ids_BT: Tensor | None = None,
    *,
    inputs_embeds_BTD: Tensor | None = None,
    attention_mask_BT: Tensor | None = None,
    **named: Any,
) -> KVRows:
    """The keys and values of each token, without a cache, so that gradients flow through them.

    Arguments:
        input_ids_BT, inputs_embeds_BTD: as in `Transformer.forward`.
        attention_mask_BT: False marks padding, whose slots are empty.
        named: what else `Transformer.forward` takes; with `visible_BTS` also positions.

    Returns:
        rows whose text goes on after the last token.
    """
    seen = Recorder("blocks.*.attention.key", "blocks.*.attention.value")
    explicit_BT = named.get("position_ids_BT")
    model(
        input_ids_BT,
        inputs_embeds_BTD=inputs_embeds_BTD,
        attention_mask_BT=attention_mask_BT,
        taps=seen,
        logits="none",
        **named,
    )
    layers = range(model.config.num_layers)
    keys, values = (
        torch.stack([seen[f"blocks.{layer}.attention.{name}"] for layer in layers]) for name in ("key", "value")
    )
    batch, heads, length = keys.shape[1:4]
    valid_BT = torch.ones(batch, length, dtype=torch.bool, device=keys.device)
    if attention_mask_BT is not None:
        valid_BT = attention_mask_BT.bool().to(keys.device)
    places_BT = (valid_BT.long().cumsum(1) - 1) if explicit_BT is None else explicit_BT.expand(batch, -1)
    places_BT = places_BT.masked_fill(~valid_BT, EMPTY)
    next_B = places_BT.amax(1) + 1
    positions = places_BT[None, :, None].expand(len(keys), -1, heads, -1)
    return KVRows(keys, values, positions, next_B)


def kernel_of(model: Transformer) -> str:
    """How a model computes attention now, to be recorded beside what was computed: kernels differ in rounding."""
    weight = model.embedding.weight
    kind = str(weight.dtype).removeprefix("torch.")
    return f"{model.attention_backend}, {weight.device.type}, {kind}, torch {torch.__version__}"
