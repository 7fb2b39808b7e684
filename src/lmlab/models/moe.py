"""Mixture-of-experts feed-forward network with a token-choice router that drops nothing (Muennighoff et al. 2024, section 2).

Shapes: B batch, T tokens, M = B T, D model width, E experts, k experts for each token, F inner width of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.gemm import linear
from lmlab.models.config import ModelConfig
from lmlab.models.dtypes import compute_dtype, sum_dtype
from lmlab.models.feed_forward import gated_product
from lmlab.models.linear import Linear


@dataclass(frozen=True)
class RouterOutput:
    """What a router decided.

    Attributes:
        logits_BTE: in fp32.
        weights_BTk: of the chosen experts, in descending order.
        indices_BTk: the chosen experts.
    """

    logits_BTE: Tensor
    weights_BTk: Tensor
    indices_BTk: Tensor


class MoE(nn.Module):
    """A router and E gated experts, whose matrices are stacked: gate and up [E, F, D], down [E, D, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        moe = config.moe
        assert moe is not None
        self.config, self.activation = moe, config.activation
        experts, inner = moe.num_experts, moe.expert_hidden_size
        self.router = Linear(config.d_model, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, inner, config.d_model))
        self.up = nn.Parameter(torch.empty(experts, inner, config.d_model))
        self.down = nn.Parameter(torch.empty(experts, config.d_model, inner))
        for matrix in (self.gate, self.up, self.down):
            nn.init.normal_(matrix, std=config.init_std)

    def route(self, x_BTD: Tensor) -> RouterOutput:
        """Softmax over all experts in fp32 at least, then the k most probable."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            logits = F.linear(x_BTD.to(sum_dtype(x_BTD)), self.router.weight.to(sum_dtype(x_BTD)))
            weights, indices = logits.softmax(-1).topk(self.config.top_k, -1)
        if self.config.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return RouterOutput(logits, weights, indices)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, RouterOutput]:
        """Map [B, T, D] to [B, T, D]; every chosen (token, expert) pair is computed."""
        routed = self.route(x_BTD)
        x_MD = x_BTD.flatten(0, 1)
        order = routed.indices_BTk.flatten().argsort(stable=True)
        tokens = order // self.config.top_k
        counts = torch.bincount(routed.indices_BTk.flatten(), minlength=self.config.num_experts).tolist()
        dtype = compute_dtype(x_BTD)
        parts = []
        for expert, inputs in enumerate(x_MD[tokens].to(dtype).split(counts)):
            if len(inputs):
                gate, up = linear(inputs, self.gate[expert].to(dtype)), linear(inputs, self.up[expert].to(dtype))
                parts.append(gated_product(gate, up, self.down[expert], self.activation))
        weighted = torch.cat(parts) * routed.weights_BTk.flatten()[order, None].to(dtype)
        out = torch.zeros_like(x_MD, dtype=dtype).index_add(0, tokens, weighted)
        return out.view(x_BTD.shape), routed
