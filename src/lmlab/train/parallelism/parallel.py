"""Spreading a model over processes with FSDP2. Models know nothing of it.

One mechanism serves three layouts of the processes as replicas x shards: `data` is N x 1 (every process holds the whole
model), `fsdp` is 1 x N (every process holds a share), `hybrid` is replicas of groups that share, one group a machine by
default (Zhao et al. 2023, section 3.2.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lmlab.distributed import World, sum_over_all
from lmlab.errors import UserError
from lmlab.models import Transformer
from lmlab.models.internals.parts import give_runner
from lmlab.train.config import ParallelConfig
from lmlab.train.parallelism.experts import spread_experts


def parallelize(
    model: nn.Module, config: ParallelConfig, world: World, device: torch.device, dtype: torch.dtype
) -> None:
    """Spread a model's parameters over all processes, in place: each block is gathered and freed on its own.

    Gradients are summed over the processes, not averaged: what they are a mean of is the trainer's to say.

    Arguments:
        dtype: in which weights are gathered and used; gradients are summed in fp32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    if dtype == torch.float32:
        policy = MixedPrecisionPolicy()
    settings: dict[str, Any] = {"mp_policy": policy, "reshard_after_forward": not config.gather_once}
    if config.expert_parallel > 1:
        mesh = _spread_experts(model, config.expert_parallel, world, device, settings)
    else:
        mesh = init_device_mesh(device.type, config.layout(world), mesh_dim_names=("replicate", "shard"))
        mesh = mesh["shard"] if mesh.size(0) == 1 else mesh
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, **settings)
        _gather_for_parts(block)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    _gather_for_parts(model)
    for module in model.modules():
        if isinstance(module, Transformer):
            module.router_accounts.sum_counts = sum_over_all
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _gather_for_parts(module: nn.Module) -> None:
    """Gather the weights of a module for its parts that are called by themselves, too."""
    register_fsdp_forward_method(module, give_runner(module))


def _spread_experts(
    model: nn.Module, parts: int, world: World, device: torch.device, settings: dict[str, Any]
) -> DeviceMesh:
    """Spread experts over groups of `parts` processes, and share each part among the groups; return the mesh of all
    processes.
    """
    if world.size % parts:
        raise UserError(
            f"parallel.expert_parallel {parts} does not divide the {world.size} processes.", "Choose a divisor."
        )
    mesh = init_device_mesh(device.type, (world.size // parts, parts), mesh_dim_names=("groups", "experts"))
    spread_experts(model, mesh["experts"])
    assert isinstance(model, Transformer)
    for mixture in model.mixtures:
        fully_shard(mixture.experts, mesh=mesh["groups"], **settings)
    return mesh["groups", "experts"]._flatten("all")


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Limit the norm of all gradients together, which may be spread in different ways; return what it was, on the
    device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    by_mesh: dict[DeviceMesh | None, list[Tensor]] = {}
    for gradient in gradients:
        by_mesh.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(gradient)
    norms = [nn.utils.get_total_norm(each) for each in by_mesh.values()]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    factor = (largest / (total + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    torch._foreach_mul_([each.to_local() if isinstance(each, DTensor) else each for each in gradients], factor)
    return total


def synchronize_gradients(model: nn.Module, config: ParallelConfig, last: bool) -> None:
    """Say whether the next backward pass sums its gradients over the processes, or leaves that to the last micro-batch.

    Where the parameters are shared out, each micro-batch sums, as whole gradients would not fit.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or config.kind != "data")


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: the entries of its outermost list of modules."""
    level = [model]
    while level:
        children = [child for module in level for child in module.children()]
        if found := next((child for child in children if isinstance(child, nn.ModuleList)), None):
            return list(found)
        level = children
    return []
