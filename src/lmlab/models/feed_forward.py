"""The feed-forward network of a layer: dense, gated (SwiGLU and relatives, Shazeer 2020) or plain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from lmlab.models.config import ModelConfig
from lmlab.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)) if gated, else down(activation(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = Linear(config.d_model, config.d_ff, bias=config.ffn_bias) if config.gated else None
        self.up = Linear(config.d_model, config.d_ff, bias=config.ffn_bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.ffn_bias)

    def hidden(self, x_BTD: Tensor) -> Tensor:
        """What `down` reads: [B, T, D] to [B, T, d_ff]."""
        up = self.up(x_BTD)
        if self.gate is None:
            return ACTIVATIONS[self.activation](up)
        return gate_product(self.gate(x_BTD), up, self.activation)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D], token by token."""
        return self.down(self.hidden(x_BTD))


def gate_product(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up; with SiLU, only `gate` and `up` are kept for the backward pass."""
    if activation == "silu" and torch.is_grad_enabled():
        product: Tensor = _SwiGLU.apply(gate, up)
        return product
    return ACTIVATIONS[activation](gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors  # type: ignore[attr-defined]
        (grad,) = grad_outputs
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, F.silu(gate).mul_(grad)
