"""Predicates of heads: which key a query looks for (Friedman et al. 2023, section 3.2).

The paper learns the partner of each query apart. A family is a rule with few numbers instead, of which a gate chooses
one; with sets, each pair of a query and a key is a choice of its own, so that a query may have several partners or
none. Whatever is chosen, its arg max is a list of pairs.

Shapes: S seeds, H heads, D values of a category.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmlab.methods.transformer_programs.network.sampling import Sampler
from lmlab.methods.transformer_programs.network.spec import NetworkSpec


class Predicates(nn.Module):
    """The predicates of a layer's heads, the categorical ones first."""

    def __init__(self, spec: NetworkSpec, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        heads, values = spec.cat_heads + spec.num_heads, spec.d_var
        self.cat_heads, self.families = spec.cat_heads, spec.predicates == "families"
        self.sets = spec.predicates == "sets"

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.stack([torch.randn(shape, generator=each) * std for each in generators]))

        self.table = normal(heads, values, values, std=values**-0.5)
        if self.families:
            self.gate = normal(heads, 6, std=6**-0.5)
            self.shift = normal(heads, 2 * values - 1, std=values**-0.5)
            self.mirror = normal(heads, 2 * values - 1, std=values**-0.5)
            self.constant = normal(heads, values, std=values**-0.5)

    def forward(self, sample: Sampler) -> Tensor:
        """(S, H, D queries, D keys): weights of the keys that each query looks for."""
        if self.sets:  # match or not, where equal logits are no match
            return sample(torch.stack([torch.zeros_like(self.table), self.table], -1))[..., 1]
        table = sample(self.table)
        if not self.families:
            return table
        values = table.shape[-1]
        place = torch.arange(values, device=table.device)
        difference, total = place[None, :] - place[:, None] + values - 1, place[None, :] + place[:, None]
        shift = sample(self.shift)[..., difference]
        mirror = sample(self.mirror)[..., total]
        constant = sample(self.constant)[..., None, :].expand_as(table)
        below = torch.ones(values, values, device=table.device).tril(-1).expand_as(table)
        allowed: Tensor = self.gate
        if self.cat_heads:  # a head that takes one place looks for one key
            orders = torch.zeros_like(self.gate, dtype=torch.bool)
            orders[:, : self.cat_heads, 4:] = True
            allowed = allowed.masked_fill(orders, -1e30)
        gate = sample(allowed)[..., None, None]
        kinds = (table, shift, mirror, constant, below, below.transpose(-1, -2))
        return sum((gate[:, :, number] * each for number, each in enumerate(kinds)), torch.zeros_like(table))
