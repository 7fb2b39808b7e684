"""The experts of a mixture: gated networks with stacked matrices, computed for pairs of a token and an expert.

Four ways give the same within rounding. `grouped_mm` is one call of PyTorch for all experts, `batched` one product of
stacked matrices, for which all experts get as many rows, `loop` goes through the experts within one node of the graph,
and `reference` computes every expert for every token. A factor on an expert's
output is applied inside it, before its last product, where rows are shorter.

Shapes: M tokens, D model width, E experts, F inner width of an expert, P pairs in the order of experts, n pairs of one
expert.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from lmlab.hardware import ways
from lmlab.models.dtypes import compute_dtype
from lmlab.models.layers.feed_forward import ACTIVATIONS
from lmlab.models.moe.router import Pairs

Backend = Literal["auto", "grouped_mm", "batched", "loop", "reference"]

_ROWS, _MANY_ROWS = 16, 256  # `_fill_up`: units of 16 rows, and of 64 where there are more than 256
_MOST_FILLED = 1.3  # times the rows that there are: with more, products of stacked matrices are no faster than others
_CACHED_NUMBERS = 2**17  # half a MiB in fp32

_ACTIVATION_GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "silu": torch.ops.aten.silu_backward.grad_input,
    "gelu": torch.ops.aten.gelu_backward.grad_input,
    "gelu_tanh": partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh"),
    "relu": lambda grad, x, grad_input: torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad_input),
}


class Experts(nn.Module):
    """E gated experts: down_e (activation(gate_e x) * (up_e x)).

    Attributes:
        gate_up: the matrices of gates and, below them, of ups, [E, 2F, D].
        down: [E, D, F].
        spread: what takes the place of `run` where experts are spread over processes.
    """

    def __init__(self, num_experts: int, d_model: int, inner: int, activation: str, backend: Backend) -> None:
        super().__init__()
        self.activation, self.backend = activation, backend
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * inner, d_model))
        self.down = nn.Parameter(torch.empty(num_experts, d_model, inner))
        self.spread: Callable[[Experts, Tensor, Pairs], Tensor] | None = None

    def forward(self, x_MD: Tensor, pairs: Pairs) -> Tensor:
        """For each token the weighted sum over its pairs, [M, D]."""
        return self.run(x_MD, pairs) if self.spread is None else self.spread(self, x_MD, pairs)

    def run(self, x_MD: Tensor, pairs: Pairs) -> Tensor:
        """The same by the experts whose matrices this process holds."""
        gate_up, down = (getattr(each, "to_local", lambda each=each: each)() for each in (self.gate_up, self.down))
        return run_experts(x_MD.to(compute_dtype(x_MD)), pairs, gate_up, down, self.activation, self.backend)


def run_experts(
    x_MD: Tensor,
    pairs: Pairs,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    activation: str = "silu",
    backend: Backend = "auto",
) -> Tensor:
    """The weighted sum of each token's experts, in the type of x; tokens without a pair get zeros.

    Arguments:
        gate_up_EGD: [E, 2F, D], gates first.
        down_EDF: [E, D, F].
        backend: `auto` is the loop where `grouped_mm` cannot serve (fp64, rows that are no multiples of 16 bytes), and
            on a CPU whichever is faster there (`lmlab.hardware.ways`). Where loads are uneven `batched` is
            `grouped_mm`.
    """
    chosen = _choose(backend, x_MD, down_EDF, pairs)
    if chosen == "reference":
        return _reference(x_MD, pairs, gate_up_EGD, down_EDF, activation)
    even = chosen == "batched"
    if even or (x_MD.device.type == "cpu" and x_MD.itemsize == 2):
        pairs = _fill_up(pairs, even)
    if x_MD.device.type != "cpu" and chosen == "grouped_mm":  # cast once, not again in the backward pass
        gate_up_EGD, down_EDF = gate_up_EGD.to(x_MD.dtype), down_EDF.to(x_MD.dtype)
    given = x_MD, pairs.weights_P, gate_up_EGD, down_EDF, pairs, activation
    out: Tensor = _Loop.apply(*given) if chosen == "loop" else _Grouped.apply(*given, even)
    return out


def _choose(backend: Backend, x_MD: Tensor, down_EDF: Tensor, pairs: Pairs) -> str:
    if backend in ("loop", "reference"):
        return backend
    width, inner = down_EDF.shape[1:]
    # what the kernels of `grouped_mm` ask of their rows: an alignment of 16 bytes, and no fp64
    fits = x_MD.dtype != torch.float64 and (width * x_MD.itemsize) % 16 == 0 and (inner * x_MD.itemsize) % 16 == 0
    if backend == "grouped_mm" and not fits:
        _tell_of_the_loop(x_MD.dtype, width, inner)
    if backend == "auto":
        measured = fits and x_MD.device.type == "cpu"
        faster = ways.way(f"experts {ways.PRECISIONS[x_MD.dtype]}") if measured else "grouped_mm"
        backend = faster  # type: ignore[assignment]
    if backend == "batched" and len(x_MD) and _are_nearly_even(pairs.counts_E):
        return backend
    return "grouped_mm" if fits and len(x_MD) and backend != "loop" else "loop"


@lru_cache
def _tell_of_the_loop(dtype: torch.dtype, width: int, inner: int) -> None:
    name = str(dtype).removeprefix("torch.")
    logging.getLogger(__name__).warning(
        "grouped_mm cannot compute experts of widths %d and %d in %s; the loop does.", width, inner, name
    )


def _reference(x_MD: Tensor, pairs: Pairs, gate_up_EGD: Tensor, down_EDF: Tensor, activation: str) -> Tensor:
    dtype = x_MD.dtype
    gate, up = torch.einsum("md,egd->meg", x_MD, gate_up_EGD.to(dtype)).chunk(2, -1)
    outputs_MED = torch.einsum("mef,edf->med", ACTIVATIONS[activation](gate) * up, down_EDF.to(dtype))
    experts_P = torch.repeat_interleave(pairs.counts_E)
    weights_ME = pairs.weights_P.new_zeros(len(x_MD), len(down_EDF)).index_put(
        (pairs.tokens_P, experts_P), pairs.weights_P, accumulate=True
    )
    return torch.einsum("me,med->md", weights_ME, outputs_MED.to(weights_ME.dtype)).to(dtype)


class _Loop(torch.autograd.Function):
    """Keeps its input and what the gates and ups gave; the rest is computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_MD: Tensor, weights_P: Tensor, gate_up: Tensor, down: Tensor, pairs: Pairs, activation: str
    ) -> Tensor:
        counts = tuple(pairs.counts_E.tolist())
        y_PD, hidden = x_MD.new_empty(len(pairs.tokens_P), x_MD.shape[1]), []
        for e, tokens, w, y in _by_expert(counts, pairs.tokens_P, weights_P, y_PD):
            h = torch.mm(x_MD.index_select(0, tokens), gate_up[e].to(x_MD.dtype).t())
            torch.mm(_gate(h, w, activation), down[e].to(x_MD.dtype).t(), out=y)
            hidden.append(h)
        ctx.save_for_backward(x_MD, weights_P, gate_up, down, *hidden)
        ctx.pairs, ctx.activation, ctx.counts = pairs, activation, counts  # type: ignore[attr-defined]
        return _sum_by_token(y_PD, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, weights_P, gate_up, down, *hidden = ctx.saved_tensors  # type: ignore[attr-defined]
        pairs, activation, counts = ctx.pairs, ctx.activation, ctx.counts  # type: ignore[attr-defined]
        grad_gate_up, grad_down = _room_for_gradient(gate_up, counts), _room_for_gradient(down, counts)
        grad_weights_P, grad_x_PD = torch.empty_like(weights_P), x_MD.new_empty(len(pairs.tokens_P), x_MD.shape[1])
        parts = _by_expert(counts, pairs.tokens_P, weights_P, grad_weights_P, grad_x_PD)
        for (e, tokens, w, grad_w, grad_x), h in zip(parts, hidden, strict=True):
            grad = grad_outputs[0].index_select(0, tokens)
            a, grad_h = _gate_backward(h, w, torch.mm(grad, down[e].to(grad.dtype)), grad_w, activation)
            _outer(grad, a, grad_down[e])
            _outer(grad_h, x_MD.index_select(0, tokens), grad_gate_up[e])
            torch.mm(grad_h, gate_up[e].to(grad.dtype), out=grad_x)
        return _sum_by_token(grad_x_PD, pairs), grad_weights_P, grad_gate_up, grad_down, None, None


class _Grouped(torch.autograd.Function):
    """The same with one product for all experts: of groups of rows, or of stacked matrices where all have as many."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_MD: Tensor,
        weights_P: Tensor,
        gate_up: Tensor,
        down: Tensor,
        pairs: Pairs,
        activation: str,
        even: bool,
    ) -> Tensor:
        ends_E = None if even else pairs.counts_E.cumsum(0).int()
        h = _by_group(x_MD.index_select(0, pairs.tokens_P), gate_up.to(x_MD.dtype).transpose(1, 2), ends_E)
        y_PD = _by_group(_gate(h, weights_P, activation), down.to(x_MD.dtype).transpose(1, 2), ends_E)
        ctx.save_for_backward(x_MD, weights_P, gate_up, down, h, ends_E)  # type: ignore[arg-type]
        ctx.pairs, ctx.activation = pairs, activation  # type: ignore[attr-defined]
        return _sum_by_token(y_PD, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, weights_P, gate_up, down, h, ends_E = ctx.saved_tensors  # type: ignore[attr-defined]
        pairs, activation = ctx.pairs, ctx.activation  # type: ignore[attr-defined]
        grad = grad_outputs[0].index_select(0, pairs.tokens_P)
        grad_weights_P = torch.empty_like(weights_P)
        a, grad_h = _gate_backward(
            h, weights_P, _by_group(grad, down.to(grad.dtype), ends_E), grad_weights_P, activation
        )
        grad_down = _outer_by_group(grad, a, ends_E, len(down)).to(down.dtype)
        x_PD = x_MD.index_select(0, pairs.tokens_P)
        grad_gate_up = _outer_by_group(grad_h, x_PD, ends_E, len(down)).to(gate_up.dtype)
        grad_x_PD = _by_group(grad_h, gate_up.to(grad.dtype), ends_E)
        return _sum_by_token(grad_x_PD, pairs), grad_weights_P, grad_gate_up, grad_down, None, None, None


def _by_group(x_PI: Tensor, matrices_EIJ: Tensor, ends_E: Tensor | None) -> Tensor:
    """Each group of rows times its matrix, [P, J]; groups of equal size where no ends are given."""
    if ends_E is None:
        return torch.bmm(x_PI.view(len(matrices_EIJ), -1, x_PI.shape[1]), matrices_EIJ).flatten(0, 1)
    return F.grouped_mm(x_PI, matrices_EIJ, offs=ends_E)


def _outer_by_group(left_PI: Tensor, right_PJ: Tensor, ends_E: Tensor | None, groups: int) -> Tensor:
    """left.T @ right of each group of rows, [E, I, J]."""
    if ends_E is None:
        left, right = (x.view(groups, -1, x.shape[1]) for x in (left_PI, right_PJ))
        return torch.bmm(left.transpose(1, 2), right)
    return F.grouped_mm(left_PI.t(), right_PJ, offs=ends_E)


def _are_nearly_even(counts_E: Tensor) -> bool:
    """Whether all experts can get as many rows as the busiest at little cost."""
    rows, busiest = int(counts_E.sum()), int(counts_E.max())
    return len(counts_E) * _filled(busiest) <= _MOST_FILLED * rows


def _filled(rows: int) -> int:
    unit = 4 * _ROWS if rows > _MANY_ROWS else _ROWS
    return -(-rows // unit) * unit


def _fill_up(pairs: Pairs, even: bool) -> Pairs:
    """The same with each expert's rows filled up, to a multiple of 16 or of 64, by pairs of weight 0 that no token
    sums.

    oneDNN, which computes half precision on CPUs, translates a product anew for each number of rows. Where loads change
    from batch to batch that can take as long as the products; few different numbers cost less.

    Arguments:
        even: give all experts as many rows.
    """
    if even:
        counts_E = torch.full_like(pairs.counts_E, _filled(int(pairs.counts_E.max())))
    else:
        unit_E = torch.where(pairs.counts_E > _MANY_ROWS, 4 * _ROWS, _ROWS)
        counts_E = (pairs.counts_E + unit_E - 1).div(unit_E, rounding_mode="floor") * unit_E
    added_E = counts_E - pairs.counts_E
    places_P = torch.arange(len(pairs.tokens_P), device=pairs.tokens_P.device)
    rows_P = places_P + torch.repeat_interleave(added_E.cumsum(0) - added_E, pairs.counts_E)
    total = int(counts_E.sum())
    tokens_P = pairs.tokens_P.new_zeros(total).index_copy_(0, rows_P, pairs.tokens_P)
    weights_P = pairs.weights_P.new_zeros(total).index_copy(0, rows_P, pairs.weights_P)
    return Pairs(tokens_P, weights_P, counts_E, rows_P[pairs.places_P], pairs.starts_M)


def _gate(h_P2F: Tensor, weights_P: Tensor, activation: str) -> Tensor:
    """weight * activation(gate) * up, [P, F]."""
    inner = h_P2F.shape[1] // 2
    a_PF, weights_P1 = h_P2F.new_empty(len(h_P2F), inner), weights_P[:, None].to(h_P2F.dtype)
    for rows in _blocks(h_P2F):
        torch.mul(ACTIVATIONS[activation](h_P2F[rows, :inner]), h_P2F[rows, inner:], out=a_PF[rows]).mul_(
            weights_P1[rows]
        )
    return a_PF


def _gate_backward(
    h_P2F: Tensor, weights_P: Tensor, grad_PF: Tensor, grad_weights_P: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """What `_gate` gave, again, and the gradient of its input, [P, 2F].

    Arguments:
        grad_PF: the gradient of what `_gate` gave; it is overwritten.
        grad_weights_P: receives the gradient of the weights.
    """
    inner = h_P2F.shape[1] // 2
    a_PF, grad_h_P2F, weights_P1 = (
        torch.empty_like(grad_PF),
        torch.empty_like(h_P2F),
        weights_P[:, None].to(h_P2F.dtype),
    )
    for rows in _blocks(h_P2F):
        gate, up, a, grad, w = h_P2F[rows, :inner], h_P2F[rows, inner:], a_PF[rows], grad_PF[rows], weights_P1[rows]
        activated = ACTIVATIONS[activation](gate)
        torch.mul(activated, up, out=a)
        grad_weights_P[rows] = (grad * a).sum(-1, dtype=grad_weights_P.dtype)
        a.mul_(w)
        grad.mul_(w)
        torch.mul(grad, activated, out=grad_h_P2F[rows, inner:])
        _ACTIVATION_GRADIENTS[activation](grad.mul_(up), gate, grad_input=grad_h_P2F[rows, :inner])
    return a_PF, grad_h_P2F


def _blocks(x_PF: Tensor) -> Iterator[slice]:
    """Rows that are worked on together: on a CPU so few that all operations on them find them in its cache."""
    rows = max(1, _CACHED_NUMBERS // x_PF.shape[1]) if x_PF.device.type == "cpu" else max(1, len(x_PF))
    return (slice(start, start + rows) for start in range(0, len(x_PF), rows))


def _by_expert(counts: tuple[int, ...], *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """The experts that have pairs, each with its rows of the tensors."""
    for e, (count, *parts) in enumerate(zip(counts, *(each.split(counts) for each in tensors), strict=True)):
        if count:
            yield e, *parts


def _room_for_gradient(stacked: Tensor, counts: tuple[int, ...]) -> Tensor:
    """A gradient that each used expert will fill, 0 for the others: FSDP waits for ever for a gradient that does not
    come.
    """
    gradient: Tensor = torch.empty_like(stacked, memory_format=torch.contiguous_format)
    for e, count in enumerate(counts):
        if not count:
            gradient[e].zero_()
    return gradient


def _outer(left_nI: Tensor, right_nJ: Tensor, out_IJ: Tensor) -> None:
    """left.T @ right."""
    if out_IJ.dtype == left_nI.dtype:
        torch.mm(left_nI.t(), right_nJ, out=out_IJ)
    else:
        out_IJ.copy_(torch.mm(left_nI.t(), right_nJ))


def _sum_by_token(y_PD: Tensor, pairs: Pairs) -> Tensor:
    """[P, D] to [M, D]: sums of bags, in fp32 at least, and in one order on every device."""
    if not len(y_PD):
        return y_PD.new_zeros(len(pairs.starts_M), y_PD.shape[1])
    summed: tuple[Any, ...] = torch.embedding_bag(y_PD, pairs.places_P, pairs.starts_M, mode=0)
    out: Tensor = summed[0]
    return out
