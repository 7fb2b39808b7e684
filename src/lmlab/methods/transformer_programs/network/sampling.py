"""The function that turns logits of a discrete choice into weights (Friedman et al. 2023, section 3.2), and the noise
it needs.

Shapes: S seeds; logits have the seeds first and the choices last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Sampling = Literal[
    "gumbel_soft", "gumbel_hard", "decoupled", "reinmax", "softmax", "argmax", "hard", "entmax", "sparsemax"
]
"""How weights are made of logits w at the temperature t, with Gumbel noise g; u is the temperature of gradients:

- `gumbel_soft`: softmax((w + g) / t), as in the paper;
- `gumbel_hard`: its arg max forward, its gradient backward (straight-through);
- `decoupled`: the arg max of w / t + g forward, the gradient of softmax(w / u) backward (Shah et al. 2024, "Improving
  discrete optimization via decoupled straight-through Gumbel-softmax");
- `reinmax`: the arg max of w / t + g forward, a gradient of second order backward (Liu et al. 2023, "Bridging discrete
  and backpropagation");
- `softmax`: softmax(w / t), without noise;
- `hard`: the arg max of w forward, the gradient of softmax(w / u) backward;
- `entmax`: the 1.5-entmax of w / t (Peters et al. 2019), sparse and without noise;
- `sparsemax`: the 2-entmax of w / t (Martins and Astudillo 2016): one-hot once the highest leads by t;
- `argmax`: the arg max of w; what a program computes.
"""

NOISY = ("gumbel_soft", "gumbel_hard", "decoupled", "reinmax")
HARD = ("gumbel_hard", "decoupled", "reinmax", "hard")
"""Those whose forward pass is that of a program."""
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
    """How all discrete choices of one forward pass are made.

    Attributes:
        gradient_tau: of the gradients of `decoupled` and `hard`; by default `tau`.
        frozen: so many layers, and the inputs, are fixed at their arg max and learn no more.
    """

    kind: Sampling
    tau: float
    noise: Noise | None = None
    gradient_tau: float | None = None
    frozen: int = 0

    def for_layer(self, layer: int) -> Sampler:
        """The sampler of a layer."""
        return replace(self, kind="argmax") if layer < self.frozen else self

    def __call__(self, logits: Tensor) -> Tensor:
        """Weights over the last axis."""
        kind, tau = self.kind, self.tau
        if kind == "argmax":
            return one_hot(logits)
        if kind == "entmax":
            return entmax15(logits / tau)
        if kind == "sparsemax":
            return sparsemax(logits / tau)
        if kind in ("decoupled", "reinmax"):
            assert self.noise is not None, "noise must be given"
            drawn = one_hot(logits / tau + self.noise.gumbel(logits.shape, logits))
            if kind == "reinmax":
                return _reinmax(logits / tau, drawn)
            return straight_through(drawn, torch.softmax(logits / (self.gradient_tau or tau), -1))
        if kind == "hard":
            return straight_through(one_hot(logits), torch.softmax(logits / (self.gradient_tau or tau), -1))
        if kind in NOISY:
            assert self.noise is not None, "noise must be given"
            logits = logits + self.noise.gumbel(logits.shape, logits)
        soft = torch.softmax(logits / tau, -1)
        return straight_through(one_hot(logits), soft) if kind == "gumbel_hard" else soft


def one_hot(logits: Tensor) -> Tensor:
    """1 at the highest of the last axis, the first of equals."""
    return torch.zeros_like(logits).scatter_(-1, logits.detach().argmax(-1, keepdim=True), 1.0)


def straight_through(forward: Tensor, backward: Tensor) -> Tensor:
    """One tensor's values with another's gradient."""
    return forward + (backward - backward.detach())


def _reinmax(logits: Tensor, drawn: Tensor) -> Tensor:
    """Liu et al. 2023, algorithm 2: Heun's method in place of Euler's, of which straight-through is the first order."""
    p0 = torch.softmax(logits, -1)
    middle = ((drawn + p0) / 2).clamp(min=_TINY).log()
    p1 = torch.softmax((middle - logits).detach() + logits, -1)
    return straight_through(drawn, 2 * p1 - p0 / 2)


class _Sparsemax(torch.autograd.Function):
    """The nearest point of the simplex (Martins and Astudillo 2016, algorithm 1)."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        x = logits - logits.amax(-1, keepdim=True)
        ordered = x.sort(-1, descending=True).values
        rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        summed = ordered.cumsum(-1) - 1
        count = (rank * ordered > summed).sum(-1, keepdim=True)
        weights = (x - summed.gather(-1, count - 1) / count).clamp(min=0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (weights,) = ctx.saved_tensors
        support = (weights > 0).to(gradient.dtype)
        mean = (gradient * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
        return (gradient - mean) * support


def sparsemax(logits: Tensor) -> Tensor:
    """2-entmax over the last axis."""
    result: Tensor = _Sparsemax.apply(logits)
    return result


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
