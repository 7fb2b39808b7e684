"""Which tokens need what stands far before them: their probability with all of a text, and with its last tokens alone.

The difference of the two logarithms is the long-short difference of Fang et al. 2024 ("What is Wrong with Perplexity
for Long-context Language Modeling?", section 3), from which LongPPL and LongCE are made.

Shapes: B rows, T tokens, W windows, L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmlab.models.loss import IGNORE
from lmlab.models.transformer import Transformer

_TOKENS_AT_ONCE = 8192  # of all windows: more take memory for logits, fewer start more passes


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
    begin_ids: Sequence[int] = (),
) -> Tensor:
    """The same where each token sees between `context` and `context + slide` tokens of its own document, [B, T],
    without gradients. The labels of the first `context` places, which have all of the text, give 0.

    Arguments:
        context: tokens that every token sees at least, as far as there are so many.
        slide: tokens that one window tells; larger is faster and blurs the border.
        begin_ids: tokens that stand before every window: a text that lacks the begin mark is strange to models that
            have always seen one, and what they lose by that is no gain of a longer context.
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
    if begin_ids:
        marks_WM = ids_WL.new_tensor(list(begin_ids)).expand(len(ids_WL), -1)
        # where a window begins as a text does, another mark is a document of its own, which nothing sees
        marked_W1 = (ids_WL[:, : len(begin_ids)] == marks_WM).all(1, keepdim=True)
        documents_WL = torch.where(documents_WL >= 0, documents_WL + 1, documents_WL)
        owners_WM = torch.where(marked_W1, 0, documents_WL[:, :1]).expand_as(marks_WM)
        ids_WL = torch.cat((marks_WM, ids_WL), 1)
        labels_WL = torch.cat((torch.full_like(marks_WM, IGNORE), labels_WL), 1)
        documents_WL = torch.cat((owners_WM, documents_WL), 1)
    size, before = size + len(begin_ids), context + len(begin_ids)
    parts = [
        label_log_probs(model, *each)[:, before:]
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
    begin_ids: Sequence[int] = (),
) -> Tensor:
    """How much the logarithm of each label's probability gains from what stands farther back, [B, T]; 0 where nothing
    does.

    Arguments:
        all_BT: the logarithms with all of the text, where they are known already.
        begin_ids: what stands before every window, as in `near_log_probs`.
    """
    near_BT = near_log_probs(
        model, input_ids_BT, labels_BT, document_ids_BT, context=context, slide=slide, begin_ids=begin_ids
    )
    if all_BT is None:
        all_BT = label_log_probs(model, input_ids_BT, labels_BT, document_ids_BT)
    gain_BT = all_BT - near_BT
    gain_BT[:, :context] = 0
    return gain_BT
