"""The lookup in a table that also serves as output matrix, with one gradient tensor for both uses.

A vocabulary is large and a batch reads few of its rows. Left to itself, the table would receive two dense gradients:
the head's, and one of zeros but for those rows. Here the lookup adds its rows to the head's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class SharedGradient:
    """What the head's backward pass leaves for that of the lookup, which always comes after it: every path from the
    loss to the table through the lookup leads through the hidden states that the head reads."""

    def __init__(self) -> None:
        self.of_head: Tensor | None = None

    def take(self) -> Tensor | None:
        """The head's gradient, once."""
        taken, self.of_head = self.of_head, None
        return taken


def embed_tied(input_ids_BT: Tensor, weight_VD: Tensor, shared: SharedGradient) -> Tensor:
    """Rows of the table, [B, T, D]; the gradient of the table includes the one that the head leaves in `shared`."""
    embedded: Tensor = _TiedEmbedding.apply(input_ids_BT, weight_VD, shared)
    return embedded


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, ids: Tensor, weight: Tensor, shared: SharedGradient) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.shared = shared  # type: ignore[attr-defined]
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        ids, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = ctx.shared.take()  # type: ignore[attr-defined]
        if gradient is None:
            gradient = torch.zeros_like(weight)
        return None, gradient.index_add_(0, ids.flatten(), grad_outputs[0].flatten(0, -2).to(gradient.dtype)), None
