"""The feed-forward network of a layer: dense, gated (SwiGLU and relatives, Shazeer 2020) or plain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from lmlab.hardware import ways
from lmlab.hardware.gemm import as_precise_as, linear, mm, outer
from lmlab.models.config import ModelConfig
from lmlab.models.layers.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, section 2
    "relu": F.relu,
}


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)) if gated, else down(activation(up(x))); the inner width is `d_ff` unless
    another is given.

    Attributes:
        tile: so many tokens are mapped at a time, and computed again in the backward pass, so that no more inner
            numbers than theirs are ever kept (ALST, Bekman et al. 2025); 0 for all at once.
    """

    def __init__(self, config: ModelConfig, inner: int | None = None) -> None:
        super().__init__()
        self.activation, self.tile = config.activation, 0
        inner = inner or config.d_ff
        self.gate = Linear(config.d_model, inner, bias=config.ffn_bias) if config.gated else None
        self.up = Linear(config.d_model, inner, bias=config.ffn_bias)
        self.down = Linear(inner, config.d_model, bias=config.ffn_bias)

    def hidden(self, x_BTD: Tensor) -> Tensor:
        """What `down` reads: [B, T, D] to [B, T, d_ff]."""
        up = self.up(x_BTD)
        if self.gate is None:
            return ACTIVATIONS[self.activation](up)
        return gate_product(self.gate(x_BTD), up, self.activation)

    def straight(self, x_BTD: Tensor) -> Tensor:
        """The same numbers as `forward`, with gradients as if the activation were a product with a constant, and each
        factor of a gated product had half of it (RelP, Jafari et al. 2025).
        """
        up = self.up(x_BTD)
        if self.gate is None:
            return self.down(_straight_activation(up, self.activation))
        product = _straight_activation(self.gate(x_BTD), self.activation) * up
        return self.down((product + product.detach()) / 2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D], token by token."""
        if self.tile and torch.is_grad_enabled() and x_BTD.shape[:-1].numel() > self.tile:
            out_MD: Tensor = _Tiled.apply(self._map, self.tile, x_BTD.flatten(0, -2), *self.parameters())
            return out_MD.view(x_BTD.shape)
        return self._map(x_BTD)

    def _map(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None or type(self.down) is not Linear or self.down.bias is not None:
            return self.down(self.hidden(x_BTD))
        return gated_product(self.gate(x_BTD), self.up(x_BTD), self.down.weight, self.activation)


class _Tiled(torch.autograd.Function):
    """Rows through a function of them, so many at a time. The backward pass computes each tile again and has its
    gradients at once, so that of inner numbers there are never more than a tile's.

    The parameters are arguments so that they get gradients; the function reads them by itself, in the same order.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], tile: int, x_MD: Tensor, *own: Tensor) -> Tensor:
        ctx.run, ctx.tile, ctx.own = run, tile, own
        kind = x_MD.device.type
        ctx.cast = {"enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}
        ctx.save_for_backward(x_MD)
        return torch.cat([run(each) for each in x_MD.split(tile)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (x_MD,) = ctx.saved_tensors
        own, (_, _, needs_x, *needed) = ctx.own, ctx.needs_input_grad
        asked = [each for each, needs in zip(own, needed, strict=True) if needs]
        sums = [torch.zeros_like(each) for each in asked]
        grad_MD = torch.empty_like(x_MD)
        parts = zip(x_MD.split(ctx.tile), grad_outputs[0].split(ctx.tile), grad_MD.split(ctx.tile), strict=True)
        for part, grad, place in parts:
            part = part.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(x_MD.device.type, **ctx.cast):
                out = ctx.run(part)
            found = torch.autograd.grad(out, [part, *asked], grad)
            place.copy_(found[0])
            for total, each in zip(sums, found[1:], strict=True):
                total += each
        given = iter(sums)
        return None, None, grad_MD if needs_x else None, *(next(given) if needs else None for needs in needed)


def _straight_activation(x: Tensor, activation: str) -> Tensor:
    # x times activation(x) / x, where the quotient is a constant; every activation is 0 at 0
    quotient = ACTIVATIONS[activation](x.detach()) / x.detach().masked_fill(x.detach() == 0, 1.0)
    return x * quotient


def gate_product(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up."""
    return ACTIVATIONS[activation](gate) * up


def gated_product(gate: Tensor, up: Tensor, down_DF: Tensor, activation: str) -> Tensor:
    """(activation(gate) * up) @ down.T; with SiLU, what is in the brackets is computed again in the backward pass and
    not kept for it, unless keeping is clearly faster on this machine (`lmlab.hardware.ways`).

    Arguments:
        gate, up: [..., F].

    Returns:
        [..., D].
    """
    down_DF = down_DF.to(gate.dtype)
    if activation != "silu" or not torch.is_grad_enabled() or torch.compiler.is_compiling() or _keeps(gate):
        return linear(gate_product(gate, up, activation), down_DF)
    product: Tensor = _GatedProduct.apply(gate.flatten(0, -2), up.flatten(0, -2), down_DF)
    return product.view(*gate.shape[:-1], -1)


def _keeps(gate: Tensor) -> bool:
    return gate.device.type == "cpu" and ways.way(f"gate {ways.PRECISIONS[gate.dtype]}") == "kept"


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate_MF: Tensor, up_MF: Tensor, down_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_MF, up_MF, down_DF)
        return mm(F.silu(gate_MF).mul_(up_MF), down_DF.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_MD,) = grad_outputs
        gate_MF, up_MF, down_DF = ctx.saved_tensors  # type: ignore[attr-defined]
        activated_MF = F.silu(gate_MF)
        needs_down = ctx.needs_input_grad[2]  # type: ignore[attr-defined]
        grad_down = outer(grad_MD, activated_MF * up_MF) if needs_down else None
        with as_precise_as(grad_MD):
            grad_MF = mm(grad_MD, down_DF)
        grad_gate = torch.ops.aten.silu_backward(grad_MF * up_MF, gate_MF)
        return grad_gate, activated_MF.mul_(grad_MF), grad_down
