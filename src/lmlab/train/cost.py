"""What a training needs of each process, on paper: memory, arithmetic and communication, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from lmlab.distributed import World
from lmlab.models import LoRAConfig, ModelConfig, MoEConfig, Transformer, add_lora
from lmlab.models.lora.adapt import quantizable, thin_pairs
from lmlab.models.lora.layers import LowRank
from lmlab.models.lora.quantized import quantized_bytes
from lmlab.train.config import TrainerConfig
from lmlab.train.optimization.optimizer import is_block_matrix
from lmlab.train.parallelism.sequence import heads_repeated, way_of

_FP32 = 4  # bytes a number
_SAME_INPUT = {"key": "query", "value": "query", "up": "gate"}  # layers that read one tensor


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
        sequence_bytes: received in a step to bring parts of texts together for attention.
        flops: arithmetic of a step.
        trained: parameters that are trained, over all processes.
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
    trained: int
    sequence_bytes: int = 0

    @property
    def memory(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations

    @property
    def traffic(self) -> int:
        """Bytes received in a step."""
        return self.gather_bytes + self.reduce_bytes + self.sequence_bytes


@dataclass(frozen=True)
class _Adapters:
    """What adapters add to a model.

    Attributes:
        parameters, active: all that is trained, and what of it one token uses.
        beside: what comes to the model's own parameters.
        matrices: what of it Muon trains.
        kept: numbers that each token leaves for the backward pass: low-rank products, and inputs of frozen layers that
            are kept for the adapters alone. Negative where less is kept than by a training of all weights.
        stacks: numbers of the experts' matrices that are formed anew in each forward pass.
        quantized: bytes that quantizing frozen weights saves.
        whole: numbers of the largest of these, which one after the other are whole for a product.
    """

    parameters: int
    active: int
    beside: int
    matrices: int
    kept: int
    stacks: int
    quantized: int
    whole: int


def flops_per_token(model: ModelConfig, seq_len: int, lora: LoRAConfig | None = None) -> float:
    """Arithmetic of training on one token: forward and backward pass. Frozen weights get no gradient, which saves a
    third of their products.
    """
    whole = model.flops_per_token(seq_len)
    return whole if lora is None else whole - 2 * model.active_matrices + 6 * _adapters(model, lora).active


def estimate(
    model: ModelConfig,
    seq_len: int,
    config: TrainerConfig,
    world: World,
    dtype: torch.dtype,
    lora: LoRAConfig | None = None,
) -> Estimate:
    """Estimate one training step of a process.

    The factors are those of ring algorithms: to gather n bytes among s processes each receives n (s - 1) / s, to sum
    them for everyone twice that.

    Arguments:
        lora: adapters that are trained in place of the model's weights.
    """
    added = None if lora is None else _adapters(model, lora)
    replicas, shards = config.parallel.layout(world)
    parameters, width = model.num_parameters() + (added.beside if added else 0), dtype.itemsize
    trained = added.parameters if added else parameters
    # Muon keeps one moment of a matrix where the others keep two
    by_muon = added.matrices if added else _block_matrices(model)
    moments = 2 * trained - (by_muon if config.optimizer.name == "muon" else 0)
    readers = config.parallel.data_place(world)[1]
    rows = min(config.rows_at_once, max(1, config.batch_size // readers))
    micro_batches = max(1, config.batch_size // readers // rows)
    own = -(-seq_len // config.parallel.sequence_parallel)  # tokens of a row that a process has
    exchanged = micro_batches * _sequence_bytes(model, rows * own, config, width)
    outside = 2 * model.vocab_size * model.d_model if not model.tie_embeddings else model.vocab_size * model.d_model
    block = max(0, parameters - outside) // model.num_layers
    gathered = 0 if world.size == 1 else width * (outside + 2 * block)
    received, summed = (count * (shards - 1) // shards for count in (parameters, trained))
    gather = width * micro_batches * (1 if config.parallel.gather_once else 2) * received
    scatter = _FP32 * micro_batches * summed
    between_copies = _FP32 * 2 * trained // shards * (replicas - 1) // replicas
    return Estimate(
        weights=_FP32 * parameters // shards - (added.quantized - _FP32 * added.whole if added else 0),
        gradients=_FP32 * trained // shards,
        optimizer=_FP32 * moments // shards,
        gathered=gathered,
        activations=_activations(model, rows * own, config, width, added),
        gather_bytes=gather,
        reduce_bytes=scatter + between_copies,
        network_bytes=_over_network(world, shards, gather + scatter, between_copies)
        + (exchanged if config.parallel.sequence_parallel > world.local_size else 0),
        sequence_bytes=exchanged,
        flops=flops_per_token(model, seq_len, lora) * config.batch_size * seq_len / world.size,
        trained=trained,
    )


def _sequence_bytes(model: ModelConfig, tokens: int, config: TrainerConfig, width: int) -> int:
    """What a process receives for the attention of so many tokens of its own, forward and backward.

    Raises:
        UserError: the model's heads do not suit the number of processes.
    """
    size = config.parallel.sequence_parallel
    if size == 1:
        return 0
    way = way_of(model, size, config.parallel.sequence_attention)
    layers, again = model.num_layers, config.recompute_blocks
    passes = 2 * layers + (len(range(0, layers, again)) if again else 0)  # what is computed again is exchanged again
    if way == "allgather_kv":
        heads = 2 * model.num_kv_heads * (size - 1)
    else:
        kv_heads = model.num_kv_heads * heads_repeated(model.num_kv_heads, size)
        heads = 2 * (model.num_heads + kv_heads) * (size - 1) // size
    return width * tokens * heads * model.head_dim * passes


def _over_network(world: World, shards: int, within_copy: int, between_copies: int) -> int:
    """A ring through all processes of a machine enters it once; rings of one process a machine each enter it by
    themselves.
    """
    if world.nodes == 1:
        return 0
    spread = within_copy // world.local_size if shards > world.local_size else 0
    return spread + between_copies // max(1, world.local_size // shards)


def _expert_width(moe: MoEConfig) -> int:
    """Inner numbers that a token leaves in a mixture of experts."""
    return moe.top_k * moe.expert_hidden_size + moe.num_shared_experts * moe.expert_hidden_size


def _activations(
    model: ModelConfig, tokens: int, config: TrainerConfig, width: int, added: _Adapters | None = None
) -> int:
    """Inputs of products, queries, keys, values and gates of each block; of a block that is computed again only its
    input, and of tiles of feed-forward networks one at a time.
    """
    attention = 8 * model.d_model + 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    inner = [
        model.d_ff if kind == "dense" or model.moe is None else _expert_width(model.moe) for kind in model.ffn_kinds
    ]
    tiled = config.tile_mlp and model.moe is None
    tile = width * 4 * model.d_ff * min(tokens, config.tile_mlp) if tiled else 0
    kept = attention + (0 if tiled else 4 * sum(inner) // len(inner))
    again = len(range(0, model.num_layers, config.recompute_blocks)) if config.recompute_blocks else 0
    whole = model.num_layers - again + (1 if again else 0)
    if added is None:
        return width * tokens * (whole * kept + again * model.d_model) + tile
    share = whole / model.num_layers
    per_token = max(0, whole * kept + round(share * added.kept)) + again * model.d_model
    return width * tokens * per_token + tile + round(share * added.stacks) * _FP32


@lru_cache(maxsize=8)
def _block_matrices(model: ModelConfig) -> int:
    """How many parameters Muon trains."""
    with torch.device("meta"):
        network = Transformer(model)
    return sum(each.numel() for name, each in network.named_parameters() if is_block_matrix(name, each))


@lru_cache(maxsize=8)
def _adapters(model: ModelConfig, lora: LoRAConfig) -> _Adapters:
    """Counted on a network without memory."""
    with torch.device("meta"):
        network = Transformer(model)
    add_lora(network, lora.model_copy(update={"quantize": None}))
    parameters = active = matrices = kept = stacks = 0
    inputs_kept: set[tuple[str, str]] = set()
    for name, pair in thin_pairs(network).items():
        size = pair.lora_a.numel() + pair.lora_b.numel()
        parameters += size
        matrices += size if is_block_matrix(f"{name}.lora_a", pair.lora_a) else 0
        if isinstance(pair, LowRank):
            assert model.moe is not None
            active += size * model.moe.top_k // model.moe.num_experts
            stacks += pair.lora_a.shape[0] * pair.lora_a.shape[-1] * pair.lora_b.shape[-2]
            continue
        active += size
        kept += pair.rank
        if name.startswith("blocks."):
            block, _, leaf = name.rpartition(".")
            inputs_kept.add((block, _SAME_INPUT.get(leaf, leaf)))
            # dropout copies its input, and keeps a mask of one byte a number
            kept += round(pair.lora_a.shape[-1] * 1.5) if pair.dropout else 0
    for number in range(model.num_layers):
        attention, ffn = f"blocks.{number}.attention", f"blocks.{number}.ffn"
        for place, inputs in (
            ((attention, "query"), model.d_model),
            ((attention, "output"), model.num_heads * model.head_dim),
            *(
                (((ffn, "gate"), model.d_model), ((ffn, "down"), model.d_ff))
                if model.ffn_kinds[number] == "dense"
                else ()
            ),
        ):
            kept -= 0 if place in inputs_kept else inputs
    fully = sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    )
    saved = largest = 0
    for name in quantizable(network, lora) if lora.quantize else ():
        layer = network.get_submodule(name)
        assert lora.quantize is not None and isinstance(layer, nn.Linear)
        numbers = layer.in_features * layer.out_features
        saved += _FP32 * numbers - quantized_bytes(layer.out_features, layer.in_features, lora.quantize)
        largest = max(largest, numbers)
    return _Adapters(parameters + fully, active + fully, parameters, matrices, kept, stacks, saved, largest)
