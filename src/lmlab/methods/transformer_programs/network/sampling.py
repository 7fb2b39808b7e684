"""The function that turns logits of a discrete choice into weights (Friedman et al. 2023, section 3.2), and the noise
it needs.

Shapes: S seeds; logits have the seeds first and the choices last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["gumbel_soft", "gumbel_hard", "softmax", "argmax", "hard", "entmax"]
"""How weights are made of logits w at the temperature t, with Gumbel noise g:

- `gumbel_soft`: softmax((w + g) / t), as in the paper;
- `gumbel_hard`: its arg max forward, its gradient backward (straight-through);
- `softmax`: softmax(w / t), without noise;
- `hard`: the arg max of w forward, the gradient of softmax(w / t) backward;
- `entmax`: the 1.5-entmax of w / t (Peters et al. 2019), sparse and without noise;
- `argmax`: the arg max of w; what a program computes.
"""

NOISY = ("gumbel_soft", "gumbel_hard")
_TINY, _BELOW_ONE = 1e-20, 1 - 2**-24


class Noise:
    """Gumbel noise that depends on a seed and a step alone, whatever other seeds are computed beside it.

    Arguments:
        seeds: one for each place of the first axis.
    """

    def __init__(self, seeds: Sequence[int], step: int, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed((seed * 1_000_003 + step) % 2**63) for seed in seeds]

    def of(self, place: int) -> Noise:
        """The noise of one seed, by its place."""
        alone = Noise((), 0, torch.device("cpu"))
        alone.generators = [self.generators[place]]
        return alone

    def gumbel(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Noise of a shape whose first axis is the seeds."""
        drawn = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
        for part, generator in zip(drawn, self.generators, strict=True):
            part.uniform_(generator=generator)
        # -log(u) is an exponential sample; 0 and 1 would give infinite noise
        return drawn.clamp_(_TINY, _BELOW_ONE).log_().neg_().log_().neg_()


@dataclass(frozen=True)
class Sampler:
    """How all discrete choices of one forward pass are made."""

    kind: Sampling
    tau: float
    noise: Noise | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Weights over the last axis."""
        kind, tau = self.kind, self.tau
        if kind == "argmax":
            return one_hot(logits)
        if kind in NOISY:
            assert self.noise is not None, "noise must be given"
            logits = logits + self.noise.gumbel(logits.shape, logits)
        if kind == "entmax":
            return entmax15(logits / tau)
        soft = torch.softmax(logits / tau, -1)
        if kind in ("hard", "gumbel_hard"):
            return one_hot(logits) - soft.detach() + soft
        return soft


def one_hot(logits: Tensor) -> Tensor:
    """1 at the highest of the last axis, the first of equals."""
    return torch.zeros_like(logits).scatter_(-1, logits.detach().argmax(-1, keepdim=True), 1.0)


class _Entmax15(torch.autograd.Function):
    """alpha-entmax for alpha = 1.5, solved exactly by sorting (Peters et al. 2019, algorithm 2)."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        x = (logits - logits.amax(-1, keepdim=True)) / 2
        ordered = x.sort(-1, descending=True).values
        rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        mean = ordered.cumsum(-1) / rank
        spread = (ordered**2).cumsum(-1) / rank - mean**2
        threshold = mean - ((1 / rank - spread).clamp(min=0)).sqrt()
        count = (threshold <= ordered).sum(-1, keepdim=True)
        weights = (x - threshold.gather(-1, count - 1)).clamp(min=0) ** 2
        weights = weights / weights.sum(-1, keepdim=True)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (weights,) = ctx.saved_tensors
        root = weights.sqrt()
        inner = gradient * root
        return inner - (inner.sum(-1, keepdim=True) / root.sum(-1, keepdim=True)) * root


def entmax15(logits: Tensor) -> Tensor:
    """1.5-entmax over the last axis."""
    result: Tensor = _Entmax15.apply(logits)
    return result
