"""Hard-concrete gates (Louizos et al. 2018) on parts of a pass, and the constraint on their number."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # as Louizos et al. 2018 stretch the concrete distribution
_EDGE = 1e-6  # logarithms of 0 and divisions by 0 are avoided; such draws are rare
_OPEN_AT = TEMPERATURE * math.log(-LOW / HIGH)


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates in [0, 1], from uniform numbers of the same (or a broadcast) shape; exact zeros and ones have a probability
    of their own.
    """
    u = uniform.clamp(_EDGE, 1 - _EDGE)
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def sample_window(theta: Tensor, uniform: Tensor) -> Tensor:
    """Gates in [0, 1] by uniform gradient sampling (Li and Janson 2024): with p = sigmoid(theta) and w = p (1 - p),
    (p - u) / w + 1/2, clamped; within the window the gradient for p is 1, beyond it 0.
    """
    p = torch.sigmoid(theta)
    width = (p * (1 - p)).detach().clamp(min=_EDGE)
    place = (p.detach() - uniform) / width + 0.5
    inside = (place > 0) & (place < 1)
    return place.clamp(0, 1) + inside * (p - p.detach())


def probability_open(log_alpha: Tensor) -> Tensor:
    """P(z > 0), the expected L0 norm of a gate."""
    return torch.sigmoid(log_alpha - _OPEN_AT)


class _Ascend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        return -grad_outputs[0]


class Lagrangian(nn.Module):
    """lambda_1 (s - t) + lambda_2 (s - t)^2 with multipliers that gradient descent raises where the constraint s = t is
    not met (they ascend).
    """

    def __init__(self) -> None:
        super().__init__()
        self.multipliers = nn.Parameter(torch.zeros(2))

    def forward(self, value: Tensor, target: float | Tensor) -> Tensor:
        """The penalty of a value whose target is `target`."""
        gap = value - target
        first, second = _Ascend.apply(self.multipliers)
        penalty: Tensor = first * gap + second * gap.square()
        return penalty
