"""What a forward pass gives, and which positions its figures are read at.

Shapes: B batch, T tokens, N chosen positions, D model width, V vocabulary, C scalars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lmlab.models.loss import Targets, TokenLoss, TokenScores
from lmlab.models.moe.losses import RouterLosses
from lmlab.models.moe.router import RouterOutput


class Wanted(NamedTuple):
    """What is asked of the hidden states; as the arguments of `Transformer.forward`."""

    labels_BT: Tensor | None
    targets: Targets | None
    z_loss: float
    logits: Literal["all", "last", "none"] | None
    scores_at_BN: Tensor | None


@dataclass(frozen=True)
class TransformerOutput:
    """What a forward pass gives.

    Attributes:
        hidden_BTD: final hidden states, after the last norm.
        logits_BTV: next-token logits if asked for, [B, T, V], or [B, 1, V] for the last position only.
        loss: summed cross-entropy of the labels if labels were given.
        token_scores: of the targets if targets were given.
        scores_BC: the scalars at the last real token of each row, for a model with `num_labels`; [B, N, C] at chosen
            positions. In fp32.
        pooled_BD: what the pooler makes of each row's first real token, for a model with one.
        routers: what the router of each mixture-of-experts layer decided, in order.
        router_losses: their losses, while the model is trained (in training mode, with gradients).
    """

    hidden_BTD: Tensor
    logits_BTV: Tensor | None = None
    loss: TokenLoss | None = None
    token_scores: TokenScores | None = None
    scores_BC: Tensor | None = None
    pooled_BD: Tensor | None = None
    routers: tuple[RouterOutput, ...] = ()
    router_losses: RouterLosses | None = None


def at_last_real(hidden_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
    """The hidden state of each row's last real token, [B, D], with padding on either side."""
    if valid_BT is None:
        return hidden_BTD[:, -1]
    index = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
    last = (valid_BT * index).amax(1)
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last]


def at_first_real(hidden_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
    """The hidden state of each row's first real token, [B, D]."""
    if valid_BT is None:
        return hidden_BTD[:, 0]
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), valid_BT.int().argmax(1)]


def at_positions(hidden_BTD: Tensor, index_BN: Tensor) -> Tensor:
    """The hidden states at chosen positions, [B, N, D]."""
    return hidden_BTD.gather(1, index_BN[..., None].expand(-1, -1, hidden_BTD.shape[2]))
