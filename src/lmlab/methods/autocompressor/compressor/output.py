"""What reading a text in segments gives.

Shapes: B batch, T tokens, V vocabulary, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.models import IGNORE, SoftPrompt, TokenLoss


@dataclass(frozen=True)
class SegmentLoss:
    """Cross-entropy of a segment, summed over its labels.

    Attributes:
        router: what the losses of routers add to the mean loss of a token; None without routers that learn.
        counts_LE: tokens that chose each expert, with it.
    """

    loss: TokenLoss
    tokens: int
    router: Tensor | None = None
    counts_LE: Tensor | None = None


@dataclass(frozen=True)
class CompressorOutput:
    """What a pass over a text in segments gives.

    Attributes:
        summary: the vectors after its last segment: those of all segments that were summarized.
        logits_BTV: next-token logits, if asked for.
        loss: mean cross-entropy of the labels, if labels were given; 0 where there is none.
        segments: the losses of the segments.
    """

    summary: SummaryVectors
    logits_BTV: Tensor | None = None
    loss: Tensor | None = None
    segments: list[SegmentLoss] = field(default_factory=list)

    @property
    def soft_prompt(self) -> SoftPrompt:
        """The vectors as the model takes them before a text."""
        return self.summary.soft_prompt


def next_tokens(labels: Tensor) -> Tensor:
    """Labels at the places that predict them, from labels at their own places; nothing follows the last."""
    return torch.cat((labels[:, 1:], labels.new_full((len(labels), 1), IGNORE)), 1)
