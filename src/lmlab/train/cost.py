"""What a training needs of each process, on paper: memory, arithmetic and communication, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmlab.distributed import World
from lmlab.models import ModelConfig
from lmlab.train.config import TrainerConfig

_FP32 = 4


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process, and the traffic of one step.

    Attributes:
        weights, gradients, optimizer: its share of them, in fp32.
        gathered: whole weights of the blocks in use, in the compute type.
        activations: what a micro-batch keeps for the backward pass.
        gather_bytes: received in a step to put weights together.
        reduce_bytes: received in a step to sum gradients, within a group that shares a copy and between the copies.
        network_bytes: what of both comes over the network: its part of what the machine receives.
        flops: arithmetic of a step.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    gather_bytes: int
    reduce_bytes: int
    network_bytes: int
    flops: float

    @property
    def memory(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations

    @property
    def traffic(self) -> int:
        """Bytes received in a step."""
        return self.gather_bytes + self.reduce_bytes


def estimate(model: ModelConfig, seq_len: int, config: TrainerConfig, world: World, dtype: torch.dtype) -> Estimate:
    """Estimate one training step of a process.

    The factors are those of ring algorithms: to gather n bytes among s processes each receives n (s - 1) / s, to sum
    them for everyone twice that.
    """
    replicas, shards = config.parallel.layout(world)
    parameters, width = model.num_parameters(), dtype.itemsize
    moments = 2 * parameters - (model.num_parameters(embedding=False) if config.optimizer.name == "muon" else 0)
    rows = min(config.rows_at_once, max(1, config.batch_size // world.size))
    micro_batches = max(1, config.batch_size // world.size // rows)
    outside = 2 * model.vocab_size * model.d_model if not model.tie_embeddings else model.vocab_size * model.d_model
    block = max(0, parameters - outside) // model.num_layers
    gathered = 0 if world.size == 1 else width * (outside + 2 * block)
    received = parameters * (shards - 1) // shards
    gather = width * micro_batches * (1 if config.parallel.gather_once else 2) * received
    scatter = _FP32 * micro_batches * received
    between_copies = _FP32 * 2 * parameters // shards * (replicas - 1) // replicas
    return Estimate(
        weights=_FP32 * parameters // shards,
        gradients=_FP32 * parameters // shards,
        optimizer=_FP32 * moments // shards,
        gathered=gathered,
        activations=_activations(model, rows * seq_len, config.recompute_blocks, width),
        gather_bytes=gather,
        reduce_bytes=scatter + between_copies,
        network_bytes=_over_network(world, shards, gather + scatter, between_copies),
        flops=model.flops_per_token(seq_len) * config.batch_size * seq_len / world.size,
    )


def _over_network(world: World, shards: int, within_copy: int, between_copies: int) -> int:
    """A ring through all processes of a machine enters it once; rings of one process a machine each enter it by
    themselves.
    """
    if world.nodes == 1:
        return 0
    spread = within_copy // world.local_size if shards > world.local_size else 0
    return spread + between_copies // max(1, world.local_size // shards)


def _activations(model: ModelConfig, tokens: int, recompute_blocks: int, width: int) -> int:
    """Inputs of products, queries, keys, values and gates of each block; of a block that is computed again only its
    input.
    """
    kept = 8 * model.d_model + 2 * (model.num_heads + model.num_kv_heads) * model.head_dim + 4 * model.d_ff
    again = len(range(0, model.num_layers, recompute_blocks)) if recompute_blocks else 0
    whole = model.num_layers - again + (1 if again else 0)
    return width * tokens * (whole * kept + again * model.d_model)
