"""A network made ready to be trained: moved to its device, spread over the processes, filled, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lmlab.distributed import World
from lmlab.errors import UserError
from lmlab.models.layers.feed_forward import FeedForward
from lmlab.models.layers.linear import has_dropout
from lmlab.train.config import TrainerConfig
from lmlab.train.parallelism.parallel import parallelize


def prepare(
    model: nn.Module,
    config: TrainerConfig,
    world: World,
    device: torch.device,
    dtype: torch.dtype,
    materialize: Callable[[Any], Any] | None = None,
) -> nn.Module:
    """Do what the settings ask of a network before its first step.

    Arguments:
        dtype: of computation, in which processes exchange weights too.
        materialize: fills the weights of a model that was built on the meta device, once each process has its share of
            the memory.

    Raises:
        UserError: the network cannot recompute its blocks or has none to tile, or cannot be spread as the settings say.
    """
    if config.recompute_blocks:
        if not hasattr(model, "recompute_blocks"):
            raise UserError(f"recompute_blocks: {type(model).__name__} cannot recompute its blocks.", "Set it to 0.")
        # by name, as modules type their attributes as tensors
        setattr(model, "recompute_blocks", config.recompute_blocks)  # noqa: B010
    if config.tile_mlp:
        networks = [module for module in model.modules() if isinstance(module, FeedForward)]
        if not networks:
            raise UserError(f"tile_mlp: {type(model).__name__} has no dense feed-forward network.", "Set it to 0.")
        if any(map(has_dropout, networks)):
            raise UserError("tile_mlp goes without lora.dropout, which would not drop the same twice.", "Set one to 0.")
        for network in networks:
            network.tile = config.tile_mlp
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if not on_meta:
        model = model.to(device)
    if world.size > 1:
        parallelize(model, config.parallel, world, device, dtype)
    if on_meta:  # after the spreading, so that no process ever holds the whole model
        assert materialize is not None, "a model on the meta device needs materialize"
        model = model.to_empty(device=device)
        materialize(model)
    if config.compile:
        compile_network(model)
    return model


def compile_network(model: nn.Module) -> None:
    """Have `torch.compile` translate a network's blocks, which are alike and so are translated once for all; a network
    without blocks as a whole.
    """
    # a graph that was compiled for another network of this process has given wrong gradients
    torch.compiler.reset()
    for module in getattr(model, "blocks", [model]):
        module.compile()
