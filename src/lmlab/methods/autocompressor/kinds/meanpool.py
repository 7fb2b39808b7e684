"""Mean pooling (BenchPress, 2025): means over runs of hidden states stand for them, without a new parameter.

Shapes: B texts, T tokens of a text, M slots, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.methods.autocompressor.kinds.base import register
from lmlab.methods.autocompressor.kinds.trained import TrainedVectors, groups_of
from lmlab.models import Memory


@register("meanpool")
class MeanPool(TrainedVectors):
    """An encoder pass in which all tokens see each other; vector j is the mean of hidden states j r to (j + 1) r."""

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        hidden_BTD = self.model(logits="none", **self.read_both_ways(input_ids_BT=ids_BT)).hidden_BTD
        return self.vectors(means_of(hidden_BTD, ratio))


def means_of(hidden_BTD: Tensor, ratio: float) -> Tensor:
    """Means over runs of `ratio` tokens, [B, M, D]."""
    groups_T = groups_of(hidden_BTD.shape[1], ratio, hidden_BTD.device)
    weight_MT = torch.nn.functional.one_hot(groups_T).T.to(hidden_BTD.dtype)
    return (weight_MT / weight_MT.sum(1, keepdim=True)) @ hidden_BTD
