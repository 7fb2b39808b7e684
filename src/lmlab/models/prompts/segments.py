"""One segment of a long text: read after the vectors that stand for what came before, and told in vectors itself.

What AutoCompressors (Chevalier et al. 2023, section 3), recurrent memory (Bulatov et al. 2022) and gist tokens (Mu et
al. 2023) have in common: tokens of no vocabulary at the end of a segment, whose final hidden states are soft prompts of
what follows.

Shapes: B batch, P vectors of the prompt, M tokens of the segment, N summary tokens, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.models.attention.cache import KVCache
from lmlab.models.config import ModelConfig
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.transformer import Transformer


class SegmentError(UserError):
    """Segments that do not fit the text, or the model's window."""


class Segment(NamedTuple):
    """What one pass over a segment gives.

    Attributes:
        token_hidden_BMD: final hidden states of the text, which `Transformer.logits_of` turns into logits.
        summary_BND: those of the summary tokens, to be used as embeddings.
        kv: the cache that was given, which now holds all of them.
    """

    token_hidden_BMD: Tensor
    summary_BND: Tensor
    kv: KVCache | None


def segment_forward(
    model: Transformer,
    soft_prompt: SoftPrompt | None,
    embeds_BTD: Tensor,
    mask_BT: Tensor | None = None,
    n_summary: int = 0,
    *,
    cache: KVCache | None = None,
) -> Segment:
    """One causal pass over [soft prompt; text; summary tokens] (Chevalier et al. 2023, section 3.1).

    With a learned table, soft prompt and summary tokens have no position: exactly nothing is added. With rotary
    positions, all are counted in order, as the soft prompt says.

    Arguments:
        soft_prompt: the vectors of what came before, if any.
        embeds_BTD: embeddings of the text (`Transformer.embed`), then those of the summary tokens, [B, M + N, D].
        mask_BT: False for padding, on either side; [B, M], or [B, M + N].
        n_summary: N.
        cache: keys and values of earlier tokens; the soft prompt must then be in it already, or it must be empty.

    Raises:
        SegmentError: prompt, text and summary tokens exceed the model's window.
    """
    rows, slots = embeds_BTD.shape[:2]
    text = slots - n_summary
    held = 0 if cache is None or not cache.length else int(cache.next_positions().max())
    check_window(model.config, 0 if soft_prompt is None else soft_prompt.positions_taken, text, n_summary, held)
    if mask_BT is not None and mask_BT.shape[1] == text and n_summary:
        mask_BT = torch.cat((mask_BT.bool(), mask_BT.new_ones(rows, n_summary, dtype=torch.bool)), 1)
    order_BT = _padding_first(model, mask_BT, text)
    if order_BT is not None and mask_BT is not None:
        embeds_BTD = torch.cat((_in_order(embeds_BTD[:, :text], order_BT), embeds_BTD[:, text:]), 1)
        mask_BT = torch.cat((mask_BT[:, :text].gather(1, order_BT), mask_BT[:, text:]), 1)
    position_ids_BT = None
    if model.config.positions == "learned":
        position_ids_BT = _text_positions(embeds_BTD, mask_BT, n_summary, cache)
    hidden_BTD = model(
        inputs_embeds_BTD=embeds_BTD,
        soft_prompt=soft_prompt,
        attention_mask_BT=mask_BT,
        position_ids_BT=position_ids_BT,
        cache=cache,
        logits="none",
    ).hidden_BTD
    summary_BND, hidden_BTD = hidden_BTD[:, text:], hidden_BTD[:, :text]
    if order_BT is not None:
        hidden_BTD = _in_order(hidden_BTD, order_BT.argsort(1))
    if model.config.logit_scale != 1:  # it belongs to the logits and not to the states
        summary_BND = summary_BND / model.config.logit_scale
    return Segment(hidden_BTD, summary_BND, cache)


def _padding_first(model: Transformer, mask_BT: Tensor | None, text: int) -> Tensor | None:
    """An order of each row's tokens with its padding first, [B, M]; None where that changes nothing.

    A sliding window counts slots. Padding between a row's text and its summary tokens would push the text out of their
    windows; before the text it is out of everybody's way.
    """
    if mask_BT is None or "sliding" not in model.config.attention_kinds:
        return None
    real_BT = mask_BT[:, :text].bool()
    if not (real_BT[:, :-1] & ~real_BT[:, 1:]).any():
        return None
    return real_BT.int().argsort(dim=1, stable=True)


def _in_order(x_BTD: Tensor, order_BT: Tensor) -> Tensor:
    return x_BTD.gather(1, order_BT[:, :, None].expand(-1, -1, x_BTD.shape[2]))


def check_window(shape: ModelConfig, before: int, text: int, n_summary: int, held: int = 0) -> None:
    """Refuse a segment that the model's positions do not reach.

    Arguments:
        before: positions that vectors before the text take.
        held: positions that were read before.

    Raises:
        SegmentError: they, its tokens and summary tokens exceed the window.
    """
    window = shape.max_seq_len
    if shape.positions == "learned" and held + text > window:
        raise SegmentError(
            f"A segment of {held + text} tokens exceeds the model's table of {window} positions.",
            "Cut the text into shorter segments.",
        )
    if shape.positions == "rotary" and held + before + text + n_summary > window:
        raise SegmentError(
            f"{held + before} vectors before the text, {text} tokens and {n_summary} summary tokens are"
            f" {held + before + text + n_summary} positions; the model's window has {window}.",
            "Cut the text into shorter segments, or compress fewer of them.",
        )


def _text_positions(embeds_BTD: Tensor, mask_BT: Tensor | None, n_summary: int, cache: KVCache | None) -> Tensor:
    """Positions of the text alone, counted over what is no padding; -1 for summary tokens, [B, T]."""
    rows, slots = embeds_BTD.shape[:2]
    text, device = slots - n_summary, embeds_BTD.device
    if mask_BT is None:
        places_BM = torch.arange(text, device=device).expand(rows, -1)
    else:
        places_BM = (mask_BT[:, :text].long().cumsum(1) - 1).clamp(min=0)
    if cache is not None and cache.length:
        places_BM = places_BM + cache.next_positions()
    return torch.cat((places_BM, torch.full((rows, n_summary), -1, device=device)), 1)
