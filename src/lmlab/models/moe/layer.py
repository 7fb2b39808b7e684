"""Mixture-of-experts feed-forward network (Muennighoff et al. 2024, section 2): a router, its experts, and shared ones
if there are any.

Shapes: B batch, T tokens, M = B T, D model width, E experts, k experts for each token.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from lmlab.errors import LmlabError
from lmlab.hardware.gemm import linear
from lmlab.models.config import ModelConfig
from lmlab.models.dtypes import sum_dtype
from lmlab.models.layers.feed_forward import FeedForward
from lmlab.models.layers.linear import Linear
from lmlab.models.moe.experts import Experts
from lmlab.models.moe.router import (
    Pairs,
    RouterOutput,
    choose_experts,
    choose_tokens,
    pairs_apart,
    pairs_of_experts,
    pairs_of_tokens,
)


class MoE(nn.Module):
    """y = sum over the chosen experts i of p_i expert_i(x), with p the softmax over all experts.

    Arguments:
        layer: number of the layer, for messages.
        experts: those of another layer that serve this one too.

    Attributes:
        bias_E: added to the scores for the choice alone; None unless `bias_update_rate` is set.
    """

    def __init__(self, config: ModelConfig, layer: int = 0, experts: Experts | None = None) -> None:
        super().__init__()
        _stay_out_of_graphs()
        moe = config.moe
        assert moe is not None
        self.config, self.layer = moe, layer
        self.router = Linear(config.d_model, moe.num_experts, bias=False)
        self.experts = experts or Experts(
            moe.num_experts, config.d_model, moe.expert_hidden_size, config.activation, moe.experts_backend
        )
        self.shared = FeedForward(config, moe.shared_hidden_size) if moe.num_shared_experts else None
        self.bias_E: Tensor | None
        self.register_buffer("bias_E", torch.zeros(moe.num_experts) if moe.bias_update_rate is not None else None)

    def route(self, x_BTD: Tensor) -> tuple[RouterOutput, Pairs]:
        """Logits and softmax in fp32 at least, and who computes what.

        Raises:
            LmlabError: on a CPU, logits that are not finite; elsewhere looking would hold up the device.
        """
        with torch.autocast(x_BTD.device.type, enabled=False):
            logits_BTE = linear(x_BTD.to(sum_dtype(x_BTD)), self.router.weight.to(sum_dtype(x_BTD)))
            if logits_BTE.device.type == "cpu" and not bool(logits_BTE.isfinite().all()):
                raise LmlabError(
                    f"The logits of the router of layer {self.layer} are not finite.",
                    "Lower the learning rate, or use precision fp32.",
                )
            probabilities_BTE = logits_BTE.softmax(-1)
            if self.config.router == "expert_choice":
                over_batch = self.config.expert_choice_over == "batch"
                probabilities = probabilities_BTE.flatten(0, 1)[None] if over_batch else probabilities_BTE
                weights, indices = choose_tokens(probabilities, self.config)
                pairs = pairs_of_experts(weights, indices, probabilities.shape[1])
            else:
                weights, indices = choose_experts(probabilities_BTE, self.config, self.bias_E)
                pairs = pairs_of_tokens(weights.flatten(0, 1), indices.flatten(0, 1), self.config)
        return RouterOutput(logits_BTE, weights, indices, pairs.counts_E), pairs

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, RouterOutput]:
        """Map [B, T, D] to [B, T, D], and say what the router decided."""
        routed, pairs = self.route(x_BTD)
        out_BTD = self.experts(x_BTD.flatten(0, 1), pairs).view(x_BTD.shape)
        if self.shared is not None:
            shared_BTD, k = self.shared(x_BTD), self.config.top_k
            add = self.config.shared_expert_combine == "add"
            out_BTD = out_BTD + shared_BTD if add else (k * out_BTD + shared_BTD) / (k + 1)
        return out_BTD, routed

    def expert_outputs(self, x_BTD: Tensor) -> Tensor:
        """What each expert adds to the output, [B, T, E, D], zeros where it is not chosen; shared experts together come
        last as one more.
        """
        _, pairs = self.route(x_BTD)
        tokens, count, k = x_BTD.shape[0] * x_BTD.shape[1], self.config.num_experts, self.config.top_k
        apart_MD = self.experts(x_BTD.flatten(0, 1).repeat_interleave(count, 0), pairs_apart(pairs, tokens))
        out_BTED = apart_MD.view(*x_BTD.shape[:2], count, -1)
        if self.shared is None:
            return out_BTED
        shared_BT1D, add = self.shared(x_BTD)[:, :, None], self.config.shared_expert_combine == "add"
        return torch.cat((out_BTED, shared_BT1D) if add else (out_BTED * (k / (k + 1)), shared_BT1D / (k + 1)), 2)

    @torch.no_grad()
    def update_bias(self, counts_E: Tensor) -> None:
        """Move the biases of experts with fewer tokens than the mean up, and of those with more down, by
        `bias_update_rate`.
        """
        assert self.bias_E is not None and self.config.bias_update_rate is not None
        self.bias_E += self.config.bias_update_rate * torch.sign(counts_E.mean(dtype=torch.float64) - counts_E).to(
            self.bias_E
        )


@cache
def _stay_out_of_graphs() -> None:
    """How many rows an expert has is known only when it runs, so that no compiled graph holds it. A decorator would
    import PyTorch's compiler wherever any model is read.
    """
    MoE.forward = torch.compiler.disable(MoE.forward)  # type: ignore[method-assign]
