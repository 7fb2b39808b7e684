"""The weights of many seeds as one tensor, a row a seed: what is trained.

Each seed is, to the last bit, what it is alone. Libraries for matrix products round by the whole batch of matrices, so
that on a processor the seeds are computed one by one, which costs it nothing; and an optimizer rounds the last entries
of a tensor otherwise than those before, so that each row, and each parameter in it, fills whole lines of memory.

Shapes: S seeds, P weights of a row, B sequences, N places, C labels.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from lmlab.methods.transformer_programs.network.model import ProgramTransformer
from lmlab.methods.transformer_programs.network.sampling import Sampler

_LINE = 16  # floats of a line of memory, which the widest instructions fill
_ROW = 1024  # a row is whole lines for each of up to 64 threads
_LARGEST = 1e10  # of a gradient's entries, so that the norm over all seeds is a number


class PackedNetworks(nn.Module):
    """Networks in training.

    Arguments:
        networks: whose weights are taken.

    Attributes:
        num_steps: steps of training so far; noise and temperature depend on it.
        dead: seeds whose loss was no number; they are trained no more.
    """

    num_steps: Tensor
    dead: Tensor

    def __init__(self, networks: ProgramTransformer) -> None:
        super().__init__()
        self.spec, self.seeds = networks.spec, networks.seeds
        # not registered: their weights are in the row alone
        self._networks = [networks]
        self._alone = [
            ProgramTransformer(networks.spec, [seed], networks.attention).requires_grad_(False)
            for seed in networks.seeds
        ]
        self._shapes = {name: tuple(each.shape[1:]) for name, each in networks.named_parameters()}
        self._sizes: list[int] = []  # of each parameter and, after it, of what fills its last line
        for shape in self._shapes.values():
            size = prod(shape)
            self._sizes += [size, -size % _LINE]
        self._sizes.append(-sum(self._sizes) % _ROW)
        rows = torch.zeros(len(self.seeds), sum(self._sizes))
        for part, each in zip(self._parts(rows), networks.parameters(), strict=True):
            part.copy_(each.detach().flatten(1))
        self.packed = nn.Parameter(rows)
        self.packed.register_hook(_guarded)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("dead", torch.zeros(len(self.seeds), dtype=torch.bool))

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parameters in rows (..., P), flat."""
        return rows.split(self._sizes, -1)[:-1:2]

    def forward(self, tokens: Tensor, sample: Sampler) -> Tensor:
        """Logits (S, B, N, C), or (S, B, C) of networks that pool."""
        if tokens.device.type != "cpu":
            return self._call(self._networks[0].to(tokens.device), self.packed, tokens, sample)
        logits = []
        for place, row in enumerate(self.packed.unbind(0)):
            own = replace(sample, noise=sample.noise and sample.noise.of(place))
            logits.append(self._call(self._alone[place], row[None], tokens, own))
        return torch.cat(logits)

    def _call(self, network: ProgramTransformer, rows: Tensor, tokens: Tensor, sample: Sampler) -> Tensor:
        named = zip(self._shapes.items(), self._parts(rows), strict=True)
        weights = {name: part.view(len(rows), *shape) for (name, shape), part in named}
        result: Tensor = torch.func.functional_call(network, weights, (tokens, sample))
        return result

    def networks(self) -> ProgramTransformer:
        """The networks with the weights as they are now."""
        networks = self._networks[0].to(self.packed.device)
        with torch.no_grad():
            for part, parameter in zip(self._parts(self.packed.detach()), networks.parameters(), strict=True):
                parameter.copy_(part.view_as(parameter))
        return networks

    def bury(self, seeds: Tensor) -> None:
        """Stop training some seeds (S,): their weights become 0, whose loss is a number that nothing depends on."""
        self.dead |= seeds
        with torch.no_grad():
            self.packed.masked_fill_(seeds[:, None], 0.0)


def _guarded(gradient: Tensor) -> Tensor:
    """A gradient (S, P) without what is no number, which stays within its seed: it gets none in that step."""
    finite = gradient.isfinite().all(1, keepdim=True)
    return torch.where(finite, gradient, 0.0).clamp(-_LARGEST, _LARGEST)
