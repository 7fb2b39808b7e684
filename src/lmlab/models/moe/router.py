"""Who computes what in a mixture of experts: tokens choose their experts, or experts choose their tokens.

Shapes: B batch, T tokens, M = B T, E experts, k experts for each token, C tokens for each expert, P pairs of a token
and an expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.models.moe.config import MoEConfig


@dataclass(frozen=True)
class RouterOutput:
    """What a router decided.

    Attributes:
        logits_BTE: in fp32 at least.
        weights, indices: where tokens choose, the factors and numbers of their experts, [B, T, k], the most probable
            first; where experts choose, the factors and places of their tokens, [B, E, C], or [1, E, C] where they
            choose from the whole batch.
        tokens_per_expert_E: how many pairs each expert computed.
    """

    logits_BTE: Tensor
    weights: Tensor
    indices: Tensor
    tokens_per_expert_E: Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of a token and an expert, in the order of experts.

    Attributes:
        tokens_P: number of each pair's token.
        weights_P: factor of the expert's output, with gradients.
        counts_E: pairs of each expert.
        places_P: places of the pairs in the order of tokens: those of token m are `places_P[starts_M[m] : starts_M[m +
            1]]`.
        starts_M: where those of each token start.
    """

    tokens_P: Tensor
    weights_P: Tensor
    counts_E: Tensor
    places_P: Tensor
    starts_M: Tensor


def count(numbers: Tensor, size: int) -> Tensor:
    """How often each number below `size` comes, [size]."""
    if numbers.device.type == "cpu":
        return torch.bincount(numbers, minlength=size)
    # a GPU would have to tell the largest number before `bincount` could make room for its result
    return torch.zeros(size, dtype=torch.long, device=numbers.device).scatter_add_(0, numbers, torch.ones_like(numbers))


def choose_experts(probabilities: Tensor, config: MoEConfig, bias_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k experts with the highest scores for each token, in descending order, equal ones by number.

    Arguments:
        probabilities: [..., E].
        bias_E: added to the scores for the choice alone.

    Returns:
        weights and indices, [..., k].
    """
    with torch.no_grad():
        indices = _stable_top_k(probabilities if bias_E is None else probabilities + bias_E, config.top_k)
    weights = probabilities.gather(-1, indices)
    if config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, indices


def pairs_of_tokens(weights_Mk: Tensor, indices_Mk: Tensor, config: MoEConfig) -> Pairs:
    """Every pair that tokens chose; with a capacity, for each expert the most probable ones up to it."""
    (tokens, k), chosen_P = indices_Mk.shape, indices_Mk.flatten()
    weights_P = weights_Mk.flatten()
    counts_E = count(chosen_P, config.num_experts)
    if config.capacity_factor is None:
        order_P = chosen_P.argsort(stable=True)
        places_P = torch.empty_like(order_P)
        places_P[order_P] = torch.arange(len(order_P), device=order_P.device)
        starts_M = torch.arange(0, tokens * k, k, device=order_P.device)
        return Pairs(
            order_P.div(k, rounding_mode="floor"), weights_P.index_select(0, order_P), counts_E, places_P, starts_M
        )
    capacity = math.ceil(config.capacity_factor * k * tokens / config.num_experts)
    order_P = weights_P.detach().argsort(descending=True, stable=True)
    order_P = order_P[chosen_P[order_P].argsort(stable=True)]
    # sorted by expert and, within one, by probability: the rank is the place after the first pair of the expert
    rank_P = torch.arange(len(order_P), device=order_P.device) - (counts_E.cumsum(0) - counts_E)[chosen_P[order_P]]
    order_P = order_P[rank_P < capacity]
    return _pairs(
        order_P.div(k, rounding_mode="floor"), weights_P.index_select(0, order_P), counts_E.clamp(max=capacity), tokens
    )


def pairs_apart(pairs: Pairs, tokens: int) -> Pairs:
    """The same pairs, each token taken E times, once for every expert: token m and expert e become token m E + e of
    `tokens` E.
    """
    experts = len(pairs.counts_E)
    experts_P = torch.repeat_interleave(torch.arange(experts, device=pairs.tokens_P.device), pairs.counts_E)
    return _pairs(pairs.tokens_P * experts + experts_P, pairs.weights_P, pairs.counts_E, tokens * experts)


def choose_tokens(probabilities_GTE: Tensor, config: MoEConfig) -> tuple[Tensor, Tensor]:
    """For each expert the k T / E most probable tokens of each group (Zhou et al. 2022, section 3.2).

    Returns:
        weights and places within the group, [G, E, C].
    """
    _, length, experts = probabilities_GTE.shape
    count = min(length, max(1, round(config.top_k * length / experts))) if length else 0
    scores_GET = probabilities_GTE.transpose(1, 2)
    with torch.no_grad():
        indices = scores_GET.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return scores_GET.gather(-1, indices), indices


def pairs_of_experts(weights_GEC: Tensor, indices_GEC: Tensor, length: int) -> Pairs:
    """The pairs that experts chose, from groups of `length` tokens."""
    groups, experts, count = indices_GEC.shape
    first_G = torch.arange(groups, device=indices_GEC.device) * length
    tokens_P = (indices_GEC + first_G[:, None, None]).transpose(0, 1).flatten()
    counts_E = torch.full((experts,), groups * count, device=indices_GEC.device)
    return _pairs(tokens_P, weights_GEC.transpose(0, 1).flatten(), counts_E, groups * length)


def _pairs(tokens_P: Tensor, weights_P: Tensor, counts_E: Tensor, tokens: int) -> Pairs:
    by_token = count(tokens_P, tokens)
    return Pairs(tokens_P, weights_P, counts_E, tokens_P.argsort(stable=True), by_token.cumsum(0) - by_token)


def _stable_top_k(scores: Tensor, k: int) -> Tensor:
    """The numbers of the k highest, equal ones in ascending order, which `topk` leaves open."""
    if scores.device.type == "cpu" and k < scores.shape[-1]:
        values, indices = scores.topk(k + 1, -1)  # a fifth of the time of a sort
        if not bool((values[..., :-1] == values[..., 1:]).any()):
            return indices[..., :k].contiguous()
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k].contiguous()
