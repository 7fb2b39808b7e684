"""Low-rank adapters on named projections (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.models.linear import Linear


class LoRALinear(Linear):
    """A linear layer, frozen, plus a trainable product of two thin matrices: W x + scale B A x.

    Arguments:
        base: the layer whose weight and bias this one takes over.
        rank: r.
        alpha: the scale is alpha / r.
        dropout: probability of dropping an input of A while training.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = alpha / rank, dropout
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a.to(x.dtype))
        return super().forward(x) + F.linear(low, self.lora_b.to(low.dtype)) * self.scale

    def full_weight(self) -> Tensor:
        """W + scale B A, [out_features, in_features]."""
        return self.weight + (self.lora_b @ self.lora_a).to(self.weight.dtype) * self.scale


def full_weight(linear: nn.Linear) -> Tensor:
    """The matrix that a layer applies, its adapter included."""
    return linear.full_weight() if isinstance(linear, LoRALinear) else linear.weight
