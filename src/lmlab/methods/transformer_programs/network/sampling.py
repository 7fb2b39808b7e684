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
- `entmax`: the alpha-entmax of w / t (Peters et al. 2019), without noise: between softmax (1) and sparsemax (2);
- `sparsemax`: the 2-entmax of w / t (Martins and Astudillo 2016): one-hot once the highest leads by t;
- `argmax`: the arg max of w; what a program computes.
"""

NOISY = ("gumbel_soft", "gumbel_hard", "decoupled", "reinmax")
HARD = ("gumbel_hard", "decoupled", "reinmax", "hard")
"""Those whose forward pass is that of a program."""
QUIET = ("softmax", "entmax", "sparsemax")
"""Those that weigh all categories, and draw nothing."""
_TINY, _BELOW_ONE = 1e-20, 1 - 2**-24  # their logarithms are finite in fp32, and the second is the last before 1
_SOFT = 1.01  # alpha below which entmax is the softmax: Newton's method would need ever more iterations
_ITERATIONS = 8  # enough for the last digit of float32


class Noise:
    """Gumbel noise that depends on a seed and a step alone, whatever other seeds are computed beside it.

    Arguments:
        seeds: one for each place of the first axis.
    """

    def __init__(self, seeds: Sequence[int], step: int, device: torch.device) -> None:
        # a prime beyond any number of steps: no two share their noise
        self.generators = [torch.Generator(device).manual_seed((seed * 1_000_003 + step) % 2**63) for seed in seeds]

    def of(self, places: Sequence[int]) -> Noise:
        """The noise of some seeds, by their places."""
        some = Noise((), 0, torch.device("cpu"))
        some.generators = [self.generators[place] for place in places]
        return some

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
        alpha: of `entmax`, from 1 to 2.
    """

    kind: Sampling
    tau: float
    noise: Noise | None = None
    gradient_tau: float | None = None
    frozen: int = 0
    alpha: float = 1.5

    def for_layer(self, layer: int) -> Sampler:
        """The sampler of a layer."""
        return replace(self, kind="argmax") if layer < self.frozen else self

    def __call__(self, logits: Tensor) -> Tensor:
        """Weights over the last axis."""
        kind, tau = self.kind, self.tau
        if kind == "argmax":
            return one_hot(logits)
        if kind == "entmax":
            return entmax(logits / tau, self.alpha)
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


class _Entmax(torch.autograd.Function):
    """alpha-entmax for 1 < alpha < 2 by Newton's method: the sum of ((alpha - 1) w - t)^(1 / (alpha - 1)) falls with t
    and is convex, so that from where it is at least 1, t rises to the solution and never passes it.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, alpha: float) -> Tensor:  # type: ignore[no-untyped-def]
        power = 1 / (alpha - 1)
        x = (alpha - 1) * (logits - logits.amax(-1, keepdim=True))
        threshold = torch.full_like(x[..., :1], -1.0)  # here the highest alone has weight 1
        for _ in range(_ITERATIONS):
            left = (x - threshold).clamp(min=0)
            slope = left ** (power - 1)
            threshold = threshold + ((slope * left).sum(-1, keepdim=True) - 1) / (power * slope.sum(-1, keepdim=True))
        weights = (x - threshold).clamp(min=0) ** power
        weights = weights / weights.sum(-1, keepdim=True)
        ctx.save_for_backward(weights)
        ctx.alpha = alpha
        return weights

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (weights,) = ctx.saved_tensors
        curve = torch.where(weights > 0, weights.clamp(min=_TINY) ** (2 - ctx.alpha), 0.0)
        inner = gradient * curve
        return inner - (inner.sum(-1, keepdim=True) / curve.sum(-1, keepdim=True)) * curve, None


def entmax(logits: Tensor, alpha: float) -> Tensor:
    """alpha-entmax over the last axis: softmax at 1, sparsemax at 2."""
    if alpha <= _SOFT:
        return torch.softmax(logits, -1)
    if alpha >= 2:
        return sparsemax(logits)
    if alpha == 1.5:
        return entmax15(logits)
    result: Tensor = _Entmax.apply(logits, alpha)
    return result
