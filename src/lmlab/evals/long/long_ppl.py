"""LongPPL: the perplexity of the tokens that need what stands far before them (Fang et al. 2024).

Key tokens are found by one model, such as the untouched base, and kept as JSON, so that others are measured on the
same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmlab.errors import UserError
from lmlab.evals.long.config import LongPPLConfig
from lmlab.models import Transformer, label_log_probs, long_short_difference
from lmlab.progress import progress


@dataclass(frozen=True)
class LongPPL:
    """What was found.

    Attributes:
        perplexity: of all tokens after the short context.
        long_perplexity: of the key tokens; None where there are none.
        keys, tokens: how many there are of each.
    """

    perplexity: float
    long_perplexity: float | None
    keys: int
    tokens: int


def key_tokens(
    model: Transformer, texts: Sequence[Sequence[int]], config: LongPPLConfig, begin_ids: Sequence[int] = ()
) -> list[list[int]]:
    """The places of the key tokens of each text of token ids.

    Arguments:
        begin_ids: what the tokenizer puts before every text; it stands before the windows too.
    """
    found = []
    with progress("key tokens", len(texts), "texts") as advance:
        for ids in texts:
            inputs, labels = _row(model, ids)
            log_probs = _log_probs(model, inputs, labels)
            gain = long_short_difference(
                model,
                inputs,
                labels,
                context=config.context,
                slide=config.slide,
                all_BT=log_probs,
                begin_ids=begin_ids,
            )
            keys = (gain > config.least_gain) & (log_probs > config.least_log_prob)
            keys[:, : config.context] = False
            found.append((keys[0].nonzero().flatten() + 1).tolist())  # the label of place n is the token n + 1
            advance()
    return found


def long_perplexity(
    model: Transformer, texts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], config: LongPPLConfig
) -> LongPPL:
    """The perplexities of a model on texts whose key tokens are known.

    Raises:
        UserError: the keys are not those of these texts, or no text is longer than the short context.
    """
    if len(keys) != len(texts) or any(
        key and not 0 < min(key) <= max(key) < len(ids) for key, ids in zip(keys, texts, strict=False)
    ):
        raise UserError("The key tokens are not those of these texts.", "Find them anew, on the same texts.")
    total, count, key_total, key_count = 0.0, 0, 0.0, 0
    with progress("perplexity", len(texts), "texts") as advance:
        for ids, places in zip(texts, keys, strict=True):
            log_probs = _log_probs(model, *_row(model, ids))[0].double()
            total -= float(log_probs[config.context :].sum())
            count += max(0, len(ids) - 1 - config.context)
            key_total -= float(log_probs[[place - 1 for place in places]].sum()) if places else 0.0
            key_count += len(places)
            advance()
    if not count:
        raise UserError(
            f"No text is longer than the short context of {config.context} tokens.", "Give longer texts, or lower it."
        )
    long = math.exp(key_total / key_count) if key_count else None
    return LongPPL(math.exp(total / count), long, key_count, count)


@torch.no_grad()
def _log_probs(model: Transformer, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return label_log_probs(model, inputs, labels)


def _row(model: Transformer, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    device = model.embedding.weight.device
    whole = torch.tensor([list(ids)], device=device)
    return whole[:, :-1], whole[:, 1:]
