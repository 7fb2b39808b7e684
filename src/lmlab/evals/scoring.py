"""Log-likelihoods of tokens, batched by length under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmlab.hardware import select_dtype
from lmlab.models import IGNORE, Transformer, token_log_likelihoods
from lmlab.progress import progress

_TOKENS_A_BATCH = 8192


@dataclass(frozen=True)
class Window:
    """Tokens of which the last `num_scored` are to be predicted from those before them (at least one must be before)."""

    ids: Sequence[int]
    num_scored: int


@torch.no_grad()
def log_likelihoods(model: Transformer, windows: Sequence[Window], precision: str = "auto", label: str = "score") -> list[float]:
    """The summed natural-log probability of each window's scored tokens.

    Windows of similar length share a batch; padding stands on the right, where causal attention never looks, so the result does not depend on
    what else is in the batch beyond rounding.
    """
    device = model.embedding.weight.device
    dtype = select_dtype(precision, device)
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    results = [0.0] * len(windows)
    was_training = model.training
    model.eval()
    with progress(label, len(windows), "windows") as advance:
        for batch in _batches(order, windows):
            longest = len(windows[batch[0]].ids) - 1
            inputs = torch.zeros(len(batch), longest, dtype=torch.long)
            labels = torch.full((len(batch), longest), IGNORE)
            for row, index in enumerate(batch):
                ids = torch.tensor(windows[index].ids)
                inputs[row, : len(ids) - 1] = ids[:-1]
                scored = windows[index].num_scored
                labels[row, len(ids) - 1 - scored : len(ids) - 1] = ids[len(ids) - scored :]
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                hidden = model(inputs.to(device), logits="none").hidden_BTD
                sums = token_log_likelihoods(hidden, model.head_weight_VD, labels.to(device)).cpu().double().sum(1).tolist()
            for index, value in zip(batch, sums, strict=True):
                results[index] = value
            advance(len(batch))
    model.train(was_training)
    return results


def _batches(order: Sequence[int], windows: Sequence[Window]) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * len(windows[batches[-1][0]].ids) <= _TOKENS_A_BATCH:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
