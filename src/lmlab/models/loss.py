"""Cross-entropy from hidden states, a block of tokens at a time, so that the logits of a whole batch never exist at
once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lmlab.hardware.gemm import linear, mm
from lmlab.models.dtypes import sum_dtype
from lmlab.models.layers.soft_cap import cap
from lmlab.models.layers.tied_embedding import SharedGradient

IGNORE = -100  # as PyTorch and `transformers` mark a label that is not learned

_BLOCK_LOGITS = 2**20  # 4 MiB in fp32: stays in a CPU's cache
_SMALLEST_BLOCK = 512  # tokens: below, adding up the gradient of the matrix costs more than the products


@dataclass(frozen=True)
class TokenLoss:
    """Negative log-likelihood in nats, summed over the `count` labels that are not ignored.

    Attributes:
        sum: what is differentiated; it includes the z-loss.
        count: number of labels.
        z_loss: the part of `sum` that is z-loss; no gradient.
        tokens: the negative log-likelihood of each label, shaped as the labels, 0 where ignored; no gradient.
    """

    sum: Tensor
    count: Tensor
    z_loss: Tensor | float
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """Nats a token."""
        return self.sum / self.count.clamp(min=1)


def fused_cross_entropy(
    hidden: Tensor,
    weight_VD: Tensor,
    labels: Tensor,
    *,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    block_size: int | None = None,
    shared: SharedGradient | None = None,
    soft_cap: float | None = None,
    bias_V: Tensor | None = None,
) -> TokenLoss:
    """Cross-entropy of `labels` under softmax(hidden @ weight.T + bias), gradients included, without the full logits.

    The gradients are computed with the loss, block by block, so a backward pass costs only a scaling.

    Arguments:
        hidden: final hidden states, [..., D].
        weight_VD: the output matrix, [V, D]; its products are computed in the type of `hidden`.
        labels: target ids, [...]; -100 is ignored.
        z_loss: coefficient of the mean squared logarithm of the softmax's denominator (Chowdhery et al. 2022, section
            5).
        vocab_size: rows of the matrix that are tokens; those after it get no probability.
        block_size: tokens a block; by default about 1 Mi logits, and not so few that the sums of gradients cost more
            than the products.
        shared: leave the gradient of the matrix there, for the lookup that the matrix also serves (`tied_embedding`).
        soft_cap: c, where logits x become c tanh(x / c).
        bias_V: of the logits, for as many rows as the matrix has.
    """
    flat_labels = labels.reshape(-1)
    total, z_total, tokens = _FusedCrossEntropy.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight_VD,
        flat_labels,
        z_loss,
        vocab_size,
        block_size or _block_size(weight_VD),
        shared,
        soft_cap,
        bias_V,
    )
    return TokenLoss(total, (flat_labels != IGNORE).sum(), z_total, tokens.view(labels.shape))


@dataclass(frozen=True)
class Targets:
    """Tokens whose probability is wanted: after position `position_N` of row `row_N` stands `label_N`.

    A position may come several times.
    """

    row_N: Tensor
    position_N: Tensor
    label_N: Tensor


@dataclass(frozen=True)
class TokenScores:
    """Of each target, [N]: its natural-log probability in fp32, and whether it is the most probable token there."""

    log_probs_N: Tensor
    greedy_N: Tensor


@torch.no_grad()
def score_targets(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets: Targets,
    *,
    block_size: int | None = None,
    soft_cap: float | None = None,
    bias_V: Tensor | None = None,
) -> TokenScores:
    """Probabilities of chosen tokens after chosen positions, a block of them at a time; no gradients.

    Arguments:
        hidden_BTD: final hidden states.
        weight_VD: the output matrix without rows that only pad the vocabulary.
        soft_cap: c, where logits x become c tanh(x / c).
        bias_V: of the logits.
    """
    hidden_ND = hidden_BTD[targets.row_N, targets.position_N]
    weight = weight_VD.to(hidden_ND.dtype)
    log_probs, greedy = [], []
    block = block_size or _block_size(weight)
    for h, label in zip(hidden_ND.split(block), targets.label_N.split(block), strict=True):
        logits = cap(_biased(linear(h, weight), bias_V).to(sum_dtype(h)), soft_cap)
        found = logits.gather(1, label[:, None]).squeeze(1)
        log_probs.append(found - logits.logsumexp(-1))
        greedy.append(found >= logits.amax(-1))
    if not log_probs:
        empty = hidden_ND.new_zeros(0, dtype=sum_dtype(hidden_ND))
        return TokenScores(empty, empty.bool())
    return TokenScores(torch.cat(log_probs), torch.cat(greedy))


def token_log_probs(
    hidden: Tensor,
    weight_VD: Tensor,
    labels: Tensor,
    *,
    vocab_size: int | None = None,
    block_size: int | None = None,
    soft_cap: float | None = None,
    bias_V: Tensor | None = None,
) -> Tensor:
    """Natural-log probabilities of each label, shaped as `labels`, with gradients; ignored labels give 0.

    For losses that weigh tokens or rows in a way that depends on these probabilities.

    The backward pass computes the logits of each block again, so that those of a whole batch never exist at once.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    return _TokenLogProbs.apply(
        flat, weight_VD, labels.reshape(-1), vocab_size, block_size or _block_size(weight_VD), soft_cap, bias_V
    ).view(labels.shape)


def _biased(logits: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logits with their bias, in place."""
    return logits if bias_V is None else logits.add_(bias_V.to(logits.dtype))


def _block_size(weight_VD: Tensor) -> int:
    # fewer and larger products on a GPU, where each costs a launch
    smallest = _SMALLEST_BLOCK if weight_VD.device.type == "cpu" else 8 * _SMALLEST_BLOCK
    return max(smallest, _BLOCK_LOGITS // weight_VD.shape[0])


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        z_loss: float,
        vocab_size: int | None,
        block: int,
        shared: SharedGradient | None,
        soft_cap: float | None,
        bias_V: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        weight = weight_VD.to(hidden_TD.dtype)
        wide = sum_dtype(hidden_TD)
        grad_hidden = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_weight: Tensor | None = None
        needs_bias = bias_V is not None and bias_V.requires_grad
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if bias_V is not None and needs_bias else None
        total, z_total = hidden_TD.new_zeros((), dtype=wide), hidden_TD.new_zeros((), dtype=wide)
        tokens = hidden_TD.new_zeros(hidden_TD.shape[0], dtype=wide)
        for start in range(0, hidden_TD.shape[0], block):
            h, y = hidden_TD[start : start + block], labels_T[start : start + block]
            keep_T1 = (y != IGNORE)[:, None]
            target = y.clamp(min=0)[:, None]  # any token will do where none is learned: `keep` takes it out again
            logits = _biased(mm(h, weight.t()), bias_V)
            slopes = None
            if soft_cap is not None:
                logits = cap(logits.to(wide), soft_cap)
                slopes = 1 - (logits / soft_cap).square()  # of c tanh(x / c)
            if vocab_size is not None and vocab_size < logits.shape[1]:
                logits[:, vocab_size:] = float("-inf")
            with_gradient = needs_hidden or needs_weight or needs_bias
            compute = _loss_on_cpu if logits.device.type == "cpu" else _loss_on_gpu
            losses_T1, log_z_T1, grad_logits = compute(logits, target, keep_T1, z_loss, with_gradient)
            tokens[start : start + block] = losses_T1.squeeze(1)
            total += losses_T1.sum()
            if z_loss:
                z_total += (log_z_T1.square() * keep_T1).sum() * z_loss
            if slopes is not None:
                grad_logits = grad_logits.mul_(slopes)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=wide)
            grad_logits = grad_logits.to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + block] = mm(grad_logits, weight)
            if needs_weight:
                product = mm(grad_logits.t(), h)
                grad_weight = product.to(weight_VD.dtype) if grad_weight is None else grad_weight.add_(product)
        if grad_bias is not None and bias_V is not None:
            grad_bias = grad_bias.to(bias_V.dtype)
        ctx.gradients, ctx.shared = (grad_hidden, grad_weight, grad_bias), shared  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(z_total, tokens)
        return total + z_total, z_total, tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:  # type: ignore[attr-defined]
            raise RuntimeError("the gradients of a fused loss can be had once; compute the loss again")
        held = ctx.gradients  # type: ignore[attr-defined]
        grad_hidden, grad_weight, grad_bias = (None if each is None else each.mul_(grad_outputs[0]) for each in held)
        ctx.gradients = None  # type: ignore[attr-defined]
        if ctx.shared is not None:  # type: ignore[attr-defined]
            ctx.shared.of_head, grad_weight = grad_weight, None  # type: ignore[attr-defined]
        return grad_hidden, grad_weight, None, None, None, None, None, None, grad_bias


_Loss = tuple[Tensor, Tensor, Tensor]  # losses and log-denominators in fp32 at least, [T, 1], and d loss / d logits


def _loss_on_cpu(logits: Tensor, target: Tensor, keep_T1: Tensor, z_loss: float, with_gradient: bool) -> _Loss:
    """In place, so that a block of logits stays in the cache."""
    dtype, logits = logits.dtype, logits.to(sum_dtype(logits))
    top = logits.amax(-1, keepdim=True)
    target_logit = logits.gather(1, target)
    exponentials = logits.sub_(top).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    log_z = sums.log() + top
    if with_gradient:
        # d(lse - target)/dlogit = p - 1[target]; d(c lse^2)/dlogit = 2 c lse p
        exponentials.mul_(keep_T1 * (1 + 2 * z_loss * log_z) / sums if z_loss else keep_T1 / sums)
        exponentials.scatter_add_(1, target, -keep_T1.to(exponentials.dtype))
    return (log_z - target_logit) * keep_T1, log_z, exponentials.to(dtype)


def _loss_on_gpu(logits: Tensor, target: Tensor, keep_T1: Tensor, z_loss: float, with_gradient: bool) -> _Loss:
    """In as few passes over memory as there are kernels for: one gives log-probabilities in fp32 from logits of any
    type, and the next their exponentials in the type of the logits.
    """
    log_p = torch.log_softmax(logits, -1, dtype=sum_dtype(logits))
    log_p_target = log_p.gather(1, target)
    log_z = logits.gather(1, target) - log_p_target
    if with_gradient:
        factor = keep_T1 * (1 + 2 * z_loss * log_z) if z_loss else keep_T1.to(log_p.dtype)
        torch.exp(log_p, out=logits)
        logits.mul_(factor)
        # the difference in fp32, for p is near 1 where the model is sure
        logits.scatter_(1, target, (log_p_target.exp() * factor - keep_T1.to(log_p.dtype)).to(logits.dtype))
    return -log_p_target * keep_T1, log_z, logits


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        vocab_size: int | None,
        block: int,
        soft_cap: float | None,
        bias_V: Tensor | None,
    ) -> Tensor:
        bias_V = None if bias_V is None else bias_V[:vocab_size]
        weight = weight_VD[:vocab_size].to(hidden_TD.dtype)
        wide = sum_dtype(hidden_TD)
        log_z_T, log_probs_T = (hidden_TD.new_empty(len(labels_T), dtype=wide) for _ in range(2))
        for start in range(0, len(labels_T), block):
            part = slice(start, start + block)
            logits = cap(_biased(mm(hidden_TD[part], weight.t()), bias_V).to(wide), soft_cap)
            log_z_T[part] = logits.logsumexp(-1)
            log_probs_T[part] = logits.gather(1, labels_T[part].clamp(min=0)[:, None]).squeeze(1) - log_z_T[part]
        ctx.save_for_backward(hidden_TD, weight_VD, labels_T, log_z_T, *([] if bias_V is None else [bias_V]))
        ctx.vocab_size, ctx.block, ctx.soft_cap = vocab_size, block, soft_cap  # type: ignore[attr-defined]
        return log_probs_T.masked_fill_(labels_T == IGNORE, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, labels_T, log_z_T, *biases = ctx.saved_tensors  # type: ignore[attr-defined]
        bias_V = biases[0] if biases else None
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        grad_T = grad_outputs[0].masked_fill(labels_T == IGNORE, 0.0)
        weight = weight_VD[: ctx.vocab_size].to(hidden_TD.dtype)  # type: ignore[attr-defined]
        grad_hidden = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD) if needs_weight else None
        needs_bias = ctx.needs_input_grad[6]  # type: ignore[attr-defined]
        grad_bias = weight.new_zeros(weight_VD.shape[0], dtype=log_z_T.dtype) if needs_bias else None
        block, soft_cap = ctx.block, ctx.soft_cap  # type: ignore[attr-defined]
        for start in range(0, len(labels_T), block):
            part = slice(start, start + block)
            h, g = hidden_TD[part], grad_T[part, None]
            # d log p[target] / d logit = 1[target] - p
            logits = cap(_biased(mm(h, weight.t()), bias_V).to(log_z_T.dtype), soft_cap)
            slopes = None if soft_cap is None else 1 - (logits / soft_cap).square()
            grad_logits = logits.sub_(log_z_T[part, None]).exp_().mul_(-g)
            grad_logits = grad_logits.scatter_add_(1, labels_T[part].clamp(min=0)[:, None], g)
            grad_logits = grad_logits if slopes is None else grad_logits.mul_(slopes)
            if grad_bias is not None:
                grad_bias[: len(weight)] += grad_logits.sum(0)
            grad_logits = grad_logits.to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = mm(grad_logits, weight)
            if grad_weight is not None:
                grad_weight[: len(weight)] += mm(grad_logits.t(), h)
        return grad_hidden, grad_weight, None, None, None, None, grad_bias
