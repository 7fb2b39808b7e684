"""Hard-concrete gates (Louizos et al. 2018) and the constraint on their number.

Shapes: B examples, E edges, W writers.
"""

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


class Gates(nn.Module):
    """A gate for every edge, and for every writer if asked for; an edge is open where both are.

    Arguments:
        log_alpha_E: where the gates of edges begin; None for gates of writers alone.
        edge_writers: the writer of each edge, [E].
        log_alpha_W: where the gates of writers begin; None for none.
        uniform: draw edges by `sample_window` in place of hard-concrete gates; theta stands for log-alpha.

    Attributes:
        num_steps: steps that were taken.
        begun: the sparsity at the start, from which targets rise.
    """

    edge_writers: Tensor
    num_steps: Tensor
    begun: Tensor

    def __init__(
        self, log_alpha_E: Tensor | None, edge_writers: Tensor, log_alpha_W: Tensor | None = None, uniform: bool = False
    ) -> None:
        super().__init__()
        self.uniform = uniform
        self.edges = None if log_alpha_E is None else nn.Parameter(log_alpha_E.float())
        self.nodes = None if log_alpha_W is None else nn.Parameter(log_alpha_W.float())
        self.edge_constraint, self.node_constraint = Lagrangian(), Lagrangian()
        self.register_buffer("edge_writers", edge_writers)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        with torch.no_grad():
            self.register_buffer("begun", 1 - self.open().mean())

    def forward(self, batch: int) -> Tensor:
        """Draw the masks of so many examples, [B, E]."""
        z_BE: Tensor | None = None
        if self.edges is not None:
            draw = sample_window if self.uniform else sample
            z_BE = draw(self.edges, torch.rand(batch, len(self.edges), device=self.edges.device))
        if self.nodes is not None:
            z_BW = sample(self.nodes, torch.rand(batch, len(self.nodes), device=self.nodes.device))
            spread_BE = z_BW[:, self.edge_writers]
            z_BE = spread_BE if z_BE is None else z_BE * spread_BE
        assert z_BE is not None
        return z_BE

    def open(self) -> Tensor:
        """The probability of each edge to be open, [E]."""
        found = None
        if self.edges is not None:
            found = torch.sigmoid(self.edges) if self.uniform else probability_open(self.edges)
        if self.nodes is not None:
            spread = probability_open(self.nodes)[self.edge_writers]
            found = spread if found is None else found * spread
        assert found is not None
        return found

    def scores(self) -> Tensor:
        """By what edges are ranked, [E]: their log-alpha, at most their writer's."""
        found = None if self.edges is None else self.edges.detach()
        if self.nodes is not None:
            spread = self.nodes.detach()[self.edge_writers]
            found = spread if found is None else torch.minimum(found, spread)
        assert found is not None
        return found
