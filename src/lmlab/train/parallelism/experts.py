"""Experts spread over processes: tokens travel to the process that holds their expert, and back (Lepikhin et al. 2021,
section 3.3).

Shapes: M tokens and P pairs of this process, Q pairs that it computes, D model width, E experts, R processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from lmlab.errors import UserError
from lmlab.models import Transformer
from lmlab.models.dtypes import compute_dtype, sum_dtype
from lmlab.models.moe.experts import Experts
from lmlab.models.moe.router import Pairs


class Exchange:
    """What computes `Experts` whose matrices are spread over the processes of a group: process r holds the r-th part of
    them.
    """

    def __init__(self, group: Any) -> None:
        self.group = group

    def __call__(self, experts: Experts, x_MD: Tensor, pairs: Pairs) -> Tensor:
        """For each token of this process the weighted sum over its pairs, [M, D]."""
        x_MD = x_MD.to(compute_dtype(x_MD))
        processes = dist.get_world_size(self.group)
        sent_RE = pairs.counts_E.view(processes, -1).contiguous()
        received_RE = torch.empty_like(sent_RE)
        dist.all_to_all_single(received_RE, sent_RE, group=self.group)
        sent, received = sent_RE.sum(1).tolist(), received_RE.sum(1).tolist()
        x_QD: Tensor = _AllToAll.apply(x_MD.index_select(0, pairs.tokens_P), sent, received, self.group)
        y_QD = experts.run(x_QD, _by_own_expert(received_RE))
        y_PD: Tensor = _AllToAll.apply(y_QD, received, sent, self.group)
        wide = sum_dtype(y_PD)
        weighted_PD = y_PD.to(wide) * pairs.weights_P[:, None].to(wide)
        return torch.zeros_like(x_MD, dtype=wide).index_add(0, pairs.tokens_P, weighted_PD).to(x_MD.dtype)


def spread_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Give each process of a mesh its part of every layer's experts, in place.

    Raises:
        UserError: the model has none, they cannot be shared evenly, or they serve several layers.
    """
    moe = model.config.moe if isinstance(model, Transformer) else None
    if not isinstance(model, Transformer) or moe is None or not model.mixtures:
        raise UserError("parallel.expert_parallel: the model has no experts to spread.", "Set it to 1.")
    if moe.num_experts % mesh.size():
        raise UserError(
            f"parallel.expert_parallel {mesh.size()} does not divide the {moe.num_experts} experts.",
            "Choose a divisor.",
        )
    if moe.share_across_layers:
        raise UserError("parallel.expert_parallel: experts that serve all layers cannot be spread.", "Set it to 1.")
    exchange = Exchange(mesh.get_group())
    for mixture in model.mixtures:
        for name, parameter in list(mixture.experts.named_parameters()):
            spread = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            owner, _, leaf = name.rpartition(".")  # adapters stand one module deeper
            module = mixture.experts.get_submodule(owner)
            setattr(module, leaf, nn.Parameter(spread, requires_grad=parameter.requires_grad))
        mixture.experts.spread = exchange


def _by_own_expert(received_RE: Tensor) -> Pairs:
    """Rows that came ordered by process and then by expert as pairs in the order of experts, each row once with weight
    1.
    """
    processes, experts = received_RE.shape
    owners = torch.arange(experts, device=received_RE.device).repeat(processes)
    experts_Q = torch.repeat_interleave(owners, received_RE.flatten())
    order_Q = experts_Q.argsort(stable=True)
    places_Q, starts_Q = torch.empty_like(order_Q), torch.arange(len(order_Q), device=order_Q.device)
    places_Q[order_Q] = starts_Q
    weights_Q = torch.ones(len(order_Q), device=order_Q.device)
    return Pairs(order_Q, weights_Q, received_RE.sum(0), places_Q, starts_Q)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.splits, ctx.group = (sent, received), group  # type: ignore[attr-defined]
        return _exchange(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        sent, received = ctx.splits  # type: ignore[attr-defined]
        return _exchange(grad_outputs[0], received, sent, ctx.group), None, None, None  # type: ignore[attr-defined]


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    out = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out
