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
_NO_CHOICE = {"w_in", "b_in", "w_out", "b_out", "bias", "numbers"}  # parameters that are numbers, not choices
_LARGEST = 1e10  # of a gradient's entries, so that the norm over all seeds is a number


class PackedNetworks(nn.Module):
    """Networks in training.

    Arguments:
        networks: whose weights are taken.

    Attributes:
        num_steps: steps of training so far; noise and temperature depend on it.
        dead: seeds whose loss was no number; they are trained no more.
        stopped: seeds that fell behind others; they stay as they are.
        frozen: of each seed, so many layers are fixed at their arg max.
        loss: of each seed, a moving mean.
        fingerprint, since, mark: of each seed, the choices of its first layer that is not frozen, the step since which
            they or the layers have been as they are, and its accuracy then.
    """

    num_steps: Tensor
    dead: Tensor
    stopped: Tensor
    frozen: Tensor
    loss: Tensor
    fingerprint: Tensor
    since: Tensor
    mark: Tensor

    def __init__(self, networks: ProgramTransformer) -> None:
        super().__init__()
        self.spec, self.seeds = networks.spec, networks.seeds
        # not registered: their weights are in the row alone
        self._networks = [networks]
        self._some: dict[tuple[tuple[int, ...], torch.device], ProgramTransformer] = {}
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
        self.register_buffer("stopped", torch.zeros(len(self.seeds), dtype=torch.bool))
        self.register_buffer("frozen", torch.zeros(len(self.seeds), dtype=torch.long))
        self.register_buffer("loss", torch.zeros(len(self.seeds)))
        self.register_buffer("fingerprint", torch.zeros(len(self.seeds), dtype=torch.long))
        self.register_buffer("since", torch.zeros(len(self.seeds), dtype=torch.long))
        self.register_buffer("mark", torch.zeros(len(self.seeds)))
        self._kept: Tensor | None = None

    @property
    def idle(self) -> Tensor:
        """(S,): seeds that are computed no more."""
        return self.dead | self.stopped

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parameters in rows (..., P), flat."""
        return rows.split(self._sizes, -1)[:-1:2]

    def forward(self, tokens: Tensor, sample: Sampler) -> Tensor:
        """Logits (S, B, N, C), or (S, B, C) of networks that pool; 0 for idle seeds."""
        rows = self.packed.split(1)
        found: dict[int, Tensor] = {}
        for places, frozen in self._groups(alone=tokens.device.type == "cpu"):
            own = replace(sample, noise=sample.noise and sample.noise.of(places), frozen=frozen)
            weights = torch.cat([rows[place] for place in places])
            logits = self._call(self._network_of(places, tokens.device), weights, tokens, own)
            found |= dict(zip(places, logits.split(1), strict=True))
        nothing = torch.zeros_like(next(iter(found.values())))
        return torch.cat([found.get(place, nothing) for place in range(len(self.seeds))])

    def _groups(self, alone: bool) -> list[tuple[tuple[int, ...], int]]:
        """Places of seeds that are computed together, and how many of their layers are frozen."""
        idle, frozen = self.idle.tolist(), self.frozen.tolist()
        active = [place for place in range(len(self.seeds)) if not idle[place]]
        if alone:
            return [((place,), frozen[place]) for place in active]
        counts = sorted({frozen[place] for place in active})
        return [(tuple(place for place in active if frozen[place] == count), count) for count in counts]

    def _network_of(self, places: tuple[int, ...], device: torch.device) -> ProgramTransformer:
        """A network that computes some of the seeds, by weights given with each call."""
        if (places, device) not in self._some:
            whole = self._networks[0]
            made = ProgramTransformer(whole.spec, [self.seeds[place] for place in places], whole.attention)
            self._some[places, device] = made.requires_grad_(False).to(device)
        return self._some[places, device]

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

    def keep(self) -> None:
        """Remember the weights that must not move, before a step of the optimizer, whose momentum moves all."""
        fixed = bool((self.stopped | (self.frozen > 0)).any())
        self._kept = self.packed.detach().clone() if fixed else None

    def restore(self) -> None:
        """Undo what the optimizer did to stopped seeds and frozen layers."""
        if self._kept is None:
            return
        fixed = self.stopped[:, None].expand_as(self.packed).clone()
        for name, part in zip(self._shapes, self._parts(fixed), strict=True):
            layer = _layer_of(name)
            if layer is not None:
                part |= (self.frozen > layer)[:, None]
        with torch.no_grad():
            self.packed.copy_(torch.where(fixed, self._kept, self.packed))

    def choices(self, layer: int) -> list[Tensor]:
        """The choices (S, K) of each parameter of a layer that says what is read or looked for."""
        named = zip(self._shapes.items(), self._parts(self.packed.detach()), strict=True)
        found = []
        for (name, shape), part in named:
            if _layer_of(name) == layer and name.rpartition(".")[2] not in _NO_CHOICE:
                # in sets, each pair of a query and a key is a choice of its own
                pairs = self.spec.predicates == "sets" and name.endswith("predicates.table")
                found.append((part > 0).long() if pairs else part.view(-1, *shape).argmax(-1).flatten(1))
        return found

    def bury(self, seeds: Tensor) -> None:
        """Stop training some seeds (S,): their weights become 0, whose loss is a number that nothing depends on."""
        self.dead |= seeds
        with torch.no_grad():
            self.packed.masked_fill_(seeds[:, None], 0.0)

    def resume_stopped(self) -> int | None:
        """Train on, from where it stopped, the stopped seed with the lowest loss; its place, None if there is none."""
        kept = (self.stopped & ~self.dead).nonzero().flatten().tolist()
        if not kept:
            return None
        best = min(kept, key=lambda place: float(self.loss[place]))
        self.stopped[best] = False
        return best


def _layer_of(name: str) -> int | None:
    """The layer whose freezing fixes a parameter; what makes the inputs goes with the first, the classifier never."""
    first, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if first == "blocks" else 0 if first in ("embedding", "numbers") else None


def _guarded(gradient: Tensor) -> Tensor:
    """A gradient (S, P) without what is no number, which stays within its seed: it gets none in that step."""
    finite = gradient.isfinite().all(1, keepdim=True)
    return torch.where(finite, gradient, 0.0).clamp(-_LARGEST, _LARGEST)
