"""Gates of a circuit's edges and writers.

Shapes: B examples, E edges, W writers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmlab.models.internals.gates import Lagrangian, probability_open, sample, sample_window


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

    def draw(self, batch: int) -> tuple[Tensor, ...]:
        """The uniform numbers of so many examples from which masks follow, for edges and for writers, [B, E] and
        [B, W].
        """
        parts = [each for each in (self.edges, self.nodes) if each is not None]
        return tuple(torch.rand(batch, len(each), device=each.device) for each in parts)

    def forward(self, batch: int, drawn: tuple[Tensor, ...] | None = None) -> Tensor:
        """The masks of so many examples, [B, E].

        Arguments:
            drawn: of `draw`; by default they are drawn here.
        """
        numbers = list(self.draw(batch) if drawn is None else drawn)
        z_BE: Tensor | None = None
        if self.edges is not None:
            z_BE = (sample_window if self.uniform else sample)(self.edges, numbers.pop(0))
        if self.nodes is not None:
            z_BW = sample(self.nodes, numbers.pop(0))
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
