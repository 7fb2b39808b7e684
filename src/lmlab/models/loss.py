"""Cross-entropy from hidden states, a block of tokens at a time, so that the logits of a whole batch never exist at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

IGNORE = -100
_BLOCK_LOGITS = 2**20  # 4 MiB in fp32: stays in a CPU's cache, and large enough to keep a GPU busy


@dataclass(frozen=True)
class TokenLoss:
    """Negative log-likelihood in nats, summed over the `count` labels that are not ignored."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Nats a token."""
        return self.sum / self.count.clamp(min=1)


def fused_cross_entropy(hidden: Tensor, weight_VD: Tensor, labels: Tensor, block_size: int | None = None) -> TokenLoss:
    """Cross-entropy of `labels` under softmax(hidden @ weight.T), gradients included, without the full logits.

    The gradients are computed with the loss, block by block, so a backward pass costs only a scaling.

    Arguments:
        hidden: final hidden states, [..., D].
        weight_VD: the output matrix, [V, D].
        labels: target ids, [...]; -100 is ignored.
        block_size: tokens a block; by default as many as give 1 Mi logits.
    """
    weight = _compute_weight(hidden, weight_VD)
    flat_labels = labels.reshape(-1)
    block = block_size or max(1, _BLOCK_LOGITS // weight_VD.shape[0])
    total = _FusedCrossEntropy.apply(hidden.reshape(-1, hidden.shape[-1]), weight, flat_labels, block)
    return TokenLoss(total, (flat_labels != IGNORE).sum())


def token_log_likelihoods(hidden: Tensor, weight_VD: Tensor, labels: Tensor, block_size: int | None = None) -> Tensor:
    """Natural-log probabilities of each label, in fp32, shaped as `labels`; ignored labels give 0. For evaluation: no gradients."""
    weight = _compute_weight(hidden, weight_VD)
    block = block_size or max(1, _BLOCK_LOGITS // weight_VD.shape[0])
    with torch.no_grad():
        parts = [
            -F.cross_entropy((h @ weight.T).float(), y, ignore_index=IGNORE, reduction="none")
            for h, y in zip(hidden.reshape(-1, hidden.shape[-1]).split(block), labels.reshape(-1).split(block), strict=True)
        ]
    return torch.cat(parts).view(labels.shape)


def _compute_weight(hidden: Tensor, weight: Tensor) -> Tensor:
    return weight.to(hidden.dtype)


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, block: int) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        grad_hidden = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        total = hidden_TD.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden_TD.shape[0], block):
            h, y = hidden_TD[start : start + block], labels_T[start : start + block]
            keep = y != IGNORE
            target = y.clamp(min=0)[:, None]
            logits = (h @ weight_VD.T).float()
            top = logits.amax(-1, keepdim=True)
            target_logit = logits.gather(1, target)
            exponentials = logits.sub_(top).exp_()
            z = exponentials.sum(-1, keepdim=True)
            total += ((z.log() + top - target_logit).squeeze(1) * keep).sum()
            if needs_hidden or needs_weight:
                grad_logits = exponentials.mul_(keep[:, None] / z)
                grad_logits.scatter_add_(1, target, -keep[:, None].float())
                grad_logits = grad_logits.to(h.dtype)
                if grad_hidden is not None:
                    grad_hidden[start : start + block] = grad_logits @ weight_VD
                if grad_weight is not None:
                    grad_weight += (grad_logits.T @ h).float()
        grad_weight = None if grad_weight is None else grad_weight.to(weight_VD.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)  # type: ignore[arg-type]
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype),
            None,
            None,
        )
