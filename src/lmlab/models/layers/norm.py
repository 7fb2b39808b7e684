"""Normalization layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from lmlab.models.config import ModelConfig
from lmlab.models.dtypes import sum_dtype

_SMALLEST_DIVISOR = 1e-3  # of a weight by which an output is divided again: `_RMSNorm` says why


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich 2019) that keeps its input's type; the mean itself is computed in fp32 at
    least.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return _rms_norm(x, self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """The same, times 1 + weight (Gemma); the product too is computed in fp32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        wide = sum_dtype(x)
        return _rms_norm(x.to(wide), 1 + self.weight.to(wide), self.eps).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    if not torch.is_grad_enabled():
        normalized, _ = _normalize(x, eps)
        return normalized.mul_(weight.to(x.dtype))
    out: Tensor = _RMSNorm.apply(x, weight, eps)
    return out


def norm_factor(norm: nn.Module) -> Tensor:
    """What a norm multiplies what it has normalized by."""
    assert isinstance(norm.weight, Tensor)
    return 1 + norm.weight if isinstance(norm, OffsetRMSNorm) else norm.weight


def frozen_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm gives, with gradients as if its scale were a constant: those of a linear map."""
    if isinstance(norm, nn.Identity):
        return x
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    wide = x.to(sum_dtype(x))
    if isinstance(norm, nn.LayerNorm):
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * (wide.detach().square().mean(-1, keepdim=True) + (norm.eps or 0.0)).rsqrt()
    if norm.weight is not None:
        wide = wide * norm_factor(norm).to(wide.dtype)
    bias = getattr(norm, "bias", None)
    return (wide if bias is None else wide + bias.to(wide.dtype)).to(x.dtype)


def linear_norm(norm: nn.Module, width: int, scale: float) -> tuple[Tensor, Tensor]:
    """A norm whose scale is a constant, as a matrix that acts on rows from the right, [D, D], and what is added, [D].

    Arguments:
        scale: in place of one over the root of the mean square (of the variance, for LayerNorm).
    """
    matrix = torch.eye(width)
    if isinstance(norm, nn.Identity):
        return matrix, torch.zeros(width)
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    if isinstance(norm, nn.LayerNorm):
        matrix = matrix - 1 / width
    if norm.weight is not None:
        matrix = matrix * norm_factor(norm).detach().float()
    bias = getattr(norm, "bias", None)
    return matrix * scale, torch.zeros(width) if bias is None else bias.detach().float()


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The configuration's normalization over the last dimension of size `width`."""
    if config.norm == "rmsnorm":
        return (OffsetRMSNorm if config.norm_offset else RMSNorm)(width, eps=config.norm_eps)
    if config.norm == "none":
        return nn.Identity()
    return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=config.norm_weight, bias=config.norm_bias)


def _normalize(x: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    """x over the root of its mean square, in the type of x, and the factor."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=sum_dtype(x))
    scale = norm.square_().div_(x.shape[-1]).add_(eps or 0.0).rsqrt_()
    return (x * scale).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    """On CPUs PyTorch has no fused kernel: this makes fewer passes over the data than its composite, and keeps less for
    the backward pass.

    What is kept is the output, which the layer that reads it keeps too; over the weight it is the normalized input
    again. Only where a weight is so small that the division would lose digits, the normalized input is kept itself.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
        normalized, scale = _normalize(x, eps)
        out = normalized * weight.to(x.dtype)
        ctx.invertible = bool(weight.detach().abs().amin() > _SMALLEST_DIVISOR)  # type: ignore[attr-defined]
        ctx.save_for_backward(out if ctx.invertible else normalized, weight, scale)  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        kept, weight, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        normalized = kept / weight.to(kept.dtype) if ctx.invertible else kept  # type: ignore[attr-defined]
        product = grad * normalized
        grad_weight = product.flatten(0, -2).sum(0, dtype=weight.dtype)
        # with n = x / r and g the gradient of the output: dx = (g w - n mean(g w n)) / r; `shared` is minus that mean
        shared = (product @ weight.to(grad.dtype)).div_(-grad.shape[-1])
        grad_x = (grad * weight.to(grad.dtype)).addcmul_(normalized, shared[..., None]).mul_(scale.to(grad.dtype))
        return grad_x, grad_weight, None
