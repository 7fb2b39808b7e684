"""Normalisation layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.models.config import ModelConfig


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich 2019) that keeps its input's type, so that the fused kernels apply."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The configuration's normalisation over the last dimension of size `width`."""
    if config.norm == "rmsnorm":
        return RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias)
