"""Which tokens need what stands far before them: their probability with all of a text, and with its last tokens alone.

The difference of the two logarithms is the long-short difference of Fang et al. 2024 ("What is Wrong with Perplexity
for Long-context Language Modeling?", section 3), from which LongPPL and LongCE are made.

Shapes: B rows, T tokens, W windows, L tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.models.loss import IGNORE
from lmlab.models.transformer import Transformer

_TOKENS_AT_ONCE = 8192


def label_log_probs(
    model: Transformer, input_ids_BT: Tensor, labels_BT: Tensor, document_ids_BT: Tensor | None = None
) -> Tensor:
    """The natural-log probability of each label, [B, T], with gradients; ignored ones give 0."""
    hidden_BTD = model(input_ids_BT, document_ids_BT=document_ids_BT, logits="none").hidden_BTD
    return model.log_probs_of(hidden_BTD, labels_BT)


@torch.no_grad()
def near_log_probs(
    model: Transformer,
    input_ids_BT: Tensor,
    labels_BT: Tensor,
    document_ids_BT: Tensor | None = None,
    *,
    context: int,
    slide: int,
) -> Tensor:
    """The same where each token sees between `context` and `context + slide` tokens of its own document, [B, T],
    without gradients. The labels of the first `context` places, which have all of the text, give 0.

    Arguments:
        context: tokens that every token sees at least, as far as there are so many.
        slide: tokens that one window tells; larger is faster and blurs the border.
    """
    batch, length = input_ids_BT.shape
    found_BT = torch.zeros(batch, length, device=input_ids_BT.device)
    starts = range(context, length, slide)
    if not starts:
        return found_BT
    size = context + slide
    room = starts[-1] + slide - length
    documents_BT = torch.zeros_like(input_ids_BT) if document_ids_BT is None else document_ids_BT
    padded = [
        torch.nn.functional.pad(each, (0, room), value=fill)
        for each, fill in ((input_ids_BT, 0), (labels_BT, IGNORE), (documents_BT, -1))
    ]
    ids_WL, labels_WL, documents_WL = (
        torch.stack([each[:, start - context : start + slide] for start in starts], 1).flatten(0, 1) for each in padded
    )
    labels_WL = labels_WL.clone()
    labels_WL[:, :context] = IGNORE
    parts = [
        label_log_probs(model, *each)[:, context:]
        for each in zip(
            *(x.split(max(1, _TOKENS_AT_ONCE // size)) for x in (ids_WL, labels_WL, documents_WL)), strict=True
        )
    ]
    told_BT = torch.cat(parts).view(batch, len(starts) * slide)
    found_BT[:, context:] = told_BT[:, : length - context]
    return found_BT


@torch.no_grad()
def long_short_difference(
    model: Transformer,
    input_ids_BT: Tensor,
    labels_BT: Tensor,
    document_ids_BT: Tensor | None = None,
    *,
    context: int,
    slide: int,
    all_BT: Tensor | None = None,
) -> Tensor:
    """How much the logarithm of each label's probability gains from what stands farther back, [B, T]; 0 where nothing
    does.

    Arguments:
        all_BT: the logarithms with all of the text, where they are known already.
    """
    near_BT = near_log_probs(model, input_ids_BT, labels_BT, document_ids_BT, context=context, slide=slide)
    if all_BT is None:
        all_BT = label_log_probs(model, input_ids_BT, labels_BT, document_ids_BT)
    gain_BT = all_BT - near_BT
    gain_BT[:, :context] = 0
    return gain_BT
