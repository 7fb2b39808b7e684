"""The Bradley-Terry loss on soft labels, over all criteria at once (QuRating, equation 2).

Shapes: G groups, K texts of a group, P pairs, C criteria.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.judging import MISSING

_SLACK = 1e-9  # rounding must not decide at the boundary
_COLDEST = 1e-30  # below it fp32 divides by zero; labels are 0, 1 or 0.5 long before


def kept_labels(labels: Tensor, confidence: float = 0.5) -> Tensor:
    """Which labels are learned from: not missing, and |2y - 1| >= confidence, the boundary included."""
    distance = (labels.double() - 0.5).abs()
    return (labels != MISSING) & (distance >= confidence / 2 - _SLACK)


def pair_loss(
    difference_PC: Tensor, labels_PC: Tensor, confidence: float = 0.5, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sum of the terms of kept labels, and their number.

    Arguments:
        difference_PC: score of the second text less that of the first.
        labels_PC: P(the second is better), -100 where missing.
        confidence: m; labels nearer to 0.5 than m / 2 are left out.
        temperature: of labels: sigmoid(logit(y) / T); 0 and 1 stay.
    """
    kept_PC = kept_labels(labels_PC, confidence)
    wide_PC = difference_PC if difference_PC.dtype == torch.float64 else difference_PC.float()
    target_PC = labels_PC.to(wide_PC.dtype)
    if temperature != 1:
        target_PC = torch.sigmoid(torch.logit(target_PC.clamp(0, 1)) / max(temperature, _COLDEST))
    terms_PC = F.binary_cross_entropy_with_logits(wide_PC, torch.where(kept_PC, target_PC, 0.5), reduction="none")
    return torch.where(kept_PC, terms_PC, 0.0).sum(), kept_PC.sum()


def bt_loss(scores: Tensor, labels: Tensor, confidence: float = 0.5, temperature: float = 1.0) -> Tensor:
    """The mean term over all kept (i, j, criterion); a zero with a gradient of zero where none is kept.

    Arguments:
        scores: [..., K, C].
        labels: [..., K, K, C], P(j is better than i) at [i, j], -100 where missing and on the diagonal.
        confidence, temperature: as in `pair_loss`.
    """
    difference = scores.unsqueeze(-3) - scores.unsqueeze(-2)  # [..., i, j, C] = score of j less that of i
    total, count = pair_loss(difference, labels, confidence, temperature)
    return total / count.clamp(min=1)
