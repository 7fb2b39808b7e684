"""Spreading a model over processes with FSDP2. Models know nothing of it.

One mechanism serves three layouts of the processes as replicas x shards: `data` is N x 1 (every process holds the whole model), `fsdp` is 1 x N
(every process holds a share), `hybrid` is replicas of groups that share, one group a machine by default (Zhao et al. 2023, section 3.2.2).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lmlab.config import Config
from lmlab.distributed import World, sum_over_all
from lmlab.errors import UserError
from lmlab.models import Transformer


class ParallelConfig(Config):
    """How several processes share one training; with one process it has no effect.

    Attributes:
        kind: `data`, `fsdp` or `hybrid`.
        shard_size: processes that share one copy in `hybrid`; by default those of a machine.
        gather_once: keep a block's weights after the forward pass until its backward pass, in place of gathering them twice.
    """

    kind: Literal["data", "fsdp", "hybrid"] = "fsdp"
    shard_size: PositiveInt | None = None
    gather_once: bool = False

    @model_validator(mode="after")
    def _check(self) -> ParallelConfig:
        if self.shard_size is not None and self.kind != "hybrid":
            raise ValueError(f"shard_size belongs to the kind hybrid, not to {self.kind}.")
        return self

    def layout(self, world: World) -> tuple[int, int]:
        """Replicas, and the processes that share each.

        Raises:
            UserError: the processes cannot be laid out so.
        """
        match self.kind:
            case "data":
                return world.size, 1
            case "fsdp":
                return 1, world.size
        shard = self.shard_size or world.local_size
        if world.size % shard:
            raise UserError(f"parallel.shard_size {shard} does not divide the {world.size} processes.", "Choose a divisor.")
        return world.size // shard, shard


def parallelize(model: nn.Module, config: ParallelConfig, world: World, device: torch.device, dtype: torch.dtype) -> None:
    """Spread a model's parameters over all processes, in place: each block is gathered and freed on its own.

    Gradients are summed over the processes, not averaged: what they are a mean of is the trainer's to say.

    Arguments:
        dtype: in which weights are gathered and used; gradients are summed in fp32.
    """
    replicas, shards = config.layout(world)
    mesh: DeviceMesh = init_device_mesh(device.type, (replicas, shards), mesh_dim_names=("replicate", "shard"))
    if replicas == 1:
        mesh = mesh["shard"]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    if dtype == torch.float32:
        policy = MixedPrecisionPolicy()
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not config.gather_once)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    if isinstance(model, Transformer):
        model.router_accounts.sum_counts = sum_over_all
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def synchronize_gradients(model: nn.Module, config: ParallelConfig, last: bool) -> None:
    """Say whether the next backward pass sums its gradients over the processes, or leaves that to the last micro-batch.

    Where the parameters are shared out, each micro-batch sums, as whole gradients would not fit.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or config.kind != "data")


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: the entries of its lists of modules, outermost first."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            return list(child)
    return []
