"""Losses of routers: load balancing in the two conventions that are in use, and the z-loss.

Shapes: L layers, B batch, T tokens, E experts, k experts for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lmlab.models.moe.config import MoEConfig
from lmlab.models.moe.router import RouterOutput, count


@dataclass(frozen=True)
class RouterLosses:
    """The losses of one forward pass, means over tokens and layers.

    Attributes:
        total: what is to be added to the mean loss of the task: each loss by its coefficient.
        load_balancing, router_z: without coefficients; None where the model has none. The z-loss is divided by top_k if
            that is set.
        counts_LE: tokens of this pass, without padding, that chose each expert.
        num_tokens: tokens of this pass, without padding.
    """

    total: Tensor
    load_balancing: Tensor | None
    router_z: Tensor | None
    counts_LE: Tensor
    num_tokens: Tensor


class RouterAccounts:
    """Computes the losses of routers for one model, whose blocks have been passed, so that those that are computed
    twice count once.

    Attributes:
        sum_counts: adds up counts over the processes that share a batch; what spreads a model over processes sets it.
        counts_of_step: with a global batch, tokens of the step so far that chose each expert, and then all tokens, in
            one row.
    """

    def __init__(self, config: MoEConfig | None) -> None:
        self._config = config
        self.sum_counts: Callable[[Tensor], Tensor] = lambda counts: counts
        self.counts_of_step: Tensor | None = None

    def end_step(self) -> None:
        """Forget the step."""
        self.counts_of_step = None

    def losses(
        self, routers: Sequence[RouterOutput], mask_BT: Tensor | None, document_ids_BT: Tensor | None = None
    ) -> RouterLosses:
        """The losses of one forward pass.

        Arguments:
            mask_BT: False (or 0) leaves a token out.
            document_ids_BT: of packed rows; where loads are counted by sequence, each document is one.
        """
        moe = self._config
        assert moe is not None
        logits, indices = [each.logits_BTE for each in routers], [each.indices for each in routers]
        if moe.router == "token_choice":
            counts_LE, num_tokens = count_choices(indices, moe.num_experts, mask_BT)
        else:
            counts_LE = torch.stack([each.tokens_per_expert_E for each in routers]).double()
            num_tokens = counts_LE.new_tensor(float(logits[0].shape[:-1].numel()))
        total, balancing, z = logits[0].new_zeros(()), None, None
        if moe.load_balancing_loss is not None:
            granularity = moe.load_balancing_loss.granularity
            balancing = load_balancing_loss(
                logits,
                indices,
                convention=moe.load_balancing_loss.convention,
                by_sequence=granularity == "sequence",
                mask_BT=mask_BT,
                document_ids_BT=document_ids_BT,
                shares_LE=(
                    self._global_shares(counts_LE, num_tokens, moe.top_k) if granularity == "global_batch" else None
                ),
            )
            total = total + moe.load_balancing_loss.coef * balancing
        if moe.router_z_loss is not None:
            z = router_z_loss(logits, mask_BT=mask_BT) / (moe.top_k if moe.router_z_loss.divide_by_top_k else 1)
            total = total + moe.router_z_loss.coef * z
        return RouterLosses(total, balancing, z, counts_LE, num_tokens)

    def _global_shares(self, counts_LE: Tensor, num_tokens: Tensor, top_k: int) -> Tensor:
        counts = self.sum_counts(torch.cat((counts_LE.flatten(), num_tokens[None])))
        self.counts_of_step = counts if self.counts_of_step is None else self.counts_of_step + counts
        return self.counts_of_step[:-1].view_as(counts_LE) / (top_k * self.counts_of_step[-1].clamp(min=1))


def load_balancing_loss(
    logits: Sequence[Tensor],
    indices: Sequence[Tensor],
    *,
    convention: Literal["olmoe", "transformers"] = "olmoe",
    by_sequence: bool = False,
    mask_BT: Tensor | None = None,
    document_ids_BT: Tensor | None = None,
    shares_LE: Tensor | None = None,
) -> Tensor:
    """The load-balancing loss over layers.

    - `olmoe`: the mean over layers of E sum_i n_i / (k T) P_i, with n_i the tokens that chose expert i and P_i its mean
      probability (Muennighoff et al. 2024, eq. 3). 1 when loads are equal, at most E/k.
    - `transformers`: E sum_i f_i P_i, with f_i = n_i / T and P_i averaged over all layers first, as its
      `load_balancing_loss_func`. k when loads are equal.

    Arguments:
        logits, indices: of each layer, [B, T, E] and [B, T, k].
        by_sequence: compute it for each sequence, and take the mean.
        mask_BT: False (or 0) leaves a token out.
        document_ids_BT: of packed rows: each document of a row is a sequence of its own, as if it had a row to itself.
        shares_LE: n_i / (k T) over more tokens than these, to go with the P of these (`olmoe`).
    """
    num_experts, k = logits[0].shape[-1], indices[0].shape[-1]
    mask = None if mask_BT is None else mask_BT.to(logits[0].dtype)
    if by_sequence and document_ids_BT is not None:
        return _by_document(logits, indices, document_ids_BT, mask_BT)
    probabilities_LGE = torch.stack([_mean(each.softmax(-1), mask, by_sequence) for each in logits])
    if shares_LE is not None:
        shares_LGE = shares_LE[:, None].to(probabilities_LGE.dtype)
    else:
        shares_LGE = torch.stack([_mean(_choices(each, num_experts), mask, by_sequence) for each in indices]) / k
    if convention == "transformers":
        return num_experts * k * (shares_LGE.mean(0) * probabilities_LGE.mean(0)).sum()
    loss_G = num_experts * (shares_LGE * probabilities_LGE).sum(-1).mean(0)
    if not by_sequence or mask is None:
        return loss_G.mean()
    real_G = mask.any(1)
    return (loss_G * real_G).sum() / real_G.sum().clamp(min=1)


def _by_document(
    logits: Sequence[Tensor], indices: Sequence[Tensor], document_ids_BT: Tensor, mask_BT: Tensor | None
) -> Tensor:
    """The mean over documents of each one's loss in the convention `olmoe`; tokens without a document count nowhere."""
    num_experts, k = logits[0].shape[-1], indices[0].shape[-1]
    rows_B1 = torch.arange(len(document_ids_BT), device=document_ids_BT.device)[:, None]
    keys_BT = rows_B1 * (document_ids_BT.max() + 2) + document_ids_BT + 1
    numbers, groups_M = torch.unique(keys_BT, return_inverse=True)
    groups_M, real_M = groups_M.flatten(), (document_ids_BT >= 0).flatten()
    if mask_BT is not None:
        real_M = real_M & mask_BT.bool().flatten()
    weights_M = real_M.to(logits[0].dtype)
    sizes_G = weights_M.new_zeros(len(numbers)).index_add(0, groups_M, weights_M)

    def means(x_BTE: Tensor) -> Tensor:
        x_ME = x_BTE.flatten(0, 1) * weights_M[:, None]
        sums_GE = x_ME.new_zeros(len(numbers), num_experts).index_add(0, groups_M, x_ME)
        return sums_GE / sizes_G[:, None].clamp(min=1)

    loss_LG = torch.stack(
        [
            num_experts * (means(_choices(chosen, num_experts).to(logit.dtype)) / k * means(logit.softmax(-1))).sum(-1)
            for logit, chosen in zip(logits, indices, strict=True)
        ]
    )
    real_G = sizes_G > 0
    return (loss_LG.mean(0) * real_G).sum() / real_G.sum().clamp(min=1)


def router_z_loss(logits: Sequence[Tensor], *, mask_BT: Tensor | None = None) -> Tensor:
    """The mean over tokens and layers of the squared logarithm of the softmax's denominator (Zoph et al. 2022, eq. 5).

    Arguments:
        logits: of each layer, [B, T, E].
        mask_BT: False (or 0) leaves a token out.
    """
    mask = None if mask_BT is None else mask_BT.to(logits[0].dtype)
    return torch.stack([_mean(each.logsumexp(-1).square()[..., None], mask) for each in logits]).mean()


@torch.no_grad()
def count_choices(indices: Sequence[Tensor], num_experts: int, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How many tokens of each layer chose each expert, [L, E], and how many tokens there are, both in fp64 (fp32 on
    Apple's GPUs).
    """
    wide = torch.float32 if indices[0].device.type == "mps" else torch.float64
    if mask_BT is None:
        counts = [count(each.flatten(), num_experts) for each in indices]
        tokens = torch.full((), indices[0].shape[:-1].numel(), device=indices[0].device)
    else:
        weights = mask_BT.to(wide)[..., None].expand(indices[0].shape).flatten()
        counts = [weights.new_zeros(num_experts).index_add_(0, each.flatten(), weights) for each in indices]
        tokens = mask_BT.sum()
    return torch.stack(counts).to(wide), tokens.to(wide)


def _choices(indices_BTk: Tensor, num_experts: int) -> Tensor:
    """1 where a token chose an expert, else 0, [B, T, E]."""
    chosen = torch.zeros(*indices_BTk.shape[:-1], num_experts, device=indices_BTk.device)
    return chosen.scatter_(-1, indices_BTk, 1.0)


def _mean(x_BTE: Tensor, mask_BT: Tensor | None, by_sequence: bool = False) -> Tensor:
    """The mean over the tokens of each sequence, or of all, that are not left out, [groups, E]."""
    if not by_sequence:
        x_BTE = x_BTE.flatten(0, 1)[None]
        mask_BT = None if mask_BT is None else mask_BT.flatten()[None]
    if mask_BT is None:
        return x_BTE.sum(1) / max(1, x_BTE.shape[1])
    return torch.einsum("bte,bt->be", x_BTE, mask_BT) / mask_BT.sum(1, keepdim=True).clamp(min=1)
