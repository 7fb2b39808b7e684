"""Drawing the next token from logits.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_likely(
    logits_BV: Tensor, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Logits with -inf for every token that a filter rules out; the filters apply in this order.

    Arguments:
        top_k: the k most probable tokens stay.
        top_p: the fewest tokens that hold this probability stay (nucleus sampling, Holtzman et al. 2020).
        min_p: tokens with at least this share of the greatest probability stay (Nguyen et al. 2024).
    """
    logits = logits_BV
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    if min_p is not None:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
    return logits


def penalize(logits_V: Tensor, held_T: Tensor, penalty: float) -> None:
    """Make tokens that a text holds already less likely, in place (Keskar et al. 2019, section 4.1).

    Arguments:
        held_T: the ids of the text; one that comes several times counts once.
        penalty: positive logits are divided by it, and negative ones multiplied.
    """
    held_T = held_T.unique()
    values_T = logits_V[held_T]
    logits_V[held_T] = torch.where(values_T < 0, values_T * penalty, values_T / penalty)


def draw(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One id a row, [B], by inverting the cumulative distribution at a uniform number in [0, 1)."""
    cumulative = logits_BV.double().softmax(-1).cumsum(-1)
    target = uniforms_B.to(cumulative) * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
