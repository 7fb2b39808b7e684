"""A whole model with its weights as it is best to read and write texts with on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.hardware.gemm import bytes_in_order, keep_in_order
from lmlab.hardware.memory import memory_bytes
from lmlab.hardware.threads import beat
from lmlab.hardware.ways import way
from lmlab.models.block import Block
from lmlab.models.generation.steps.pages import into_large_pages
from lmlab.models.layers.feed_forward import FeedForward
from lmlab.models.layers.joined import joint, lay_together
from lmlab.models.layers.linear import Linear
from lmlab.models.layers.packed import PackedLinear, Packing, can_be_packed
from lmlab.models.transformer import Transformer


@torch.no_grad()
def pack_weights(model: Transformer, kind: Packing) -> Transformer:
    """Keep the linear layers of the blocks, and the output matrix, in 8 or 4 bits (`PackedLinear`); return the model.

    What is not packed is in bf16: embeddings, norms, routers, stacked experts, layers whose inputs are no multiple of
    16 (int8) or 32 (int4). The output matrix has 8 bits in both cases, as files of 4 bits keep it too: errors there are
    errors of every probability. If it is also the input's table, that stays as it is, and one packed copy more is in
    memory.

    A packed model reads, scores and generates; it is neither trained nor saved.

    Raises:
        UserError: the model is not on a CPU, carries adapters, is packed already, holds a weight that is not finite, or
            has no layer that can be packed.
    """
    if model.embedding.weight.device.type != "cpu":
        raise UserError(f"precision {kind}: packed weights are for CPUs.", "Use bf16 on a GPU.")
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise UserError(f"precision {kind}: the model has adapters beside its weights.", "Fold them in first.")
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise UserError(f"precision {kind}: the weights are packed already.", "Read the model anew.")
    for name, parameter in model.named_parameters():  # kernels would spread them over rows, or hide them
        beat()  # some hundred short parallel regions: on a busy machine they took longer than the answer behind them
        if not bool(parameter.isfinite().all()):
            raise UserError(f"precision {kind}: {name} holds numbers that are not finite.")
    chosen = [
        (owner, name, layer)
        for block in model.blocks
        for owner in block.modules()
        for name, layer in owner.named_children()
        if can_be_packed(layer, kind)
    ]
    for owner, name, layer in chosen:
        assert isinstance(layer, nn.Linear)
        beat()
        setattr(owner, name, PackedLinear(layer, kind))
    if not chosen:
        raise UserError(
            f"precision {kind}: no layer of the model has a size that packed weights can have.",
            "Use bf16.",
        )
    head = model.head if model.head is not None else _with_weight(model.embedding.weight)
    if can_be_packed(head, "int8") and model.config.lm_head and model.score is None:
        model.head = PackedLinear(head, "int8")
    return model.to(torch.bfloat16).requires_grad_(False)


def lay_out(model: Transformer) -> Transformer:
    """Put matrices of a layer that read the same input one after the other in memory, and all weights into large pages
    where the system has them; return the model.

    A step of decoding on a CPU then makes one product of queries, keys and values, and one of gates and what they gate.
    The model computes the same as before, and may be trained, saved and moved; each matrix is a part of a larger one.

    Where a processor's products of few rows in bf16 are much faster with weights in an order of their own (`step bf16`
    of `lmlab doctor --tune`), such copies are kept beside the weights, if those of all models fill no more than a
    quarter of memory. Once a weight is written to, its copy is no longer used (`lmlab.hardware.gemm.keep_in_order`;
    writes through `.data` are not seen).
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        beat()
        lay_together((block.attention.query, block.attention.key, block.attention.value))
        if isinstance(block.ffn, FeedForward) and block.ffn.gate is not None:
            lay_together((block.ffn.gate, block.ffn.up))
    into_large_pages([*model.parameters(), *model.buffers()])
    if way("step bf16") == "ordered":
        _keep_in_order(model)
    return model


def _keep_in_order(model: Transformer) -> None:
    wanted = [
        (weight, sources)
        for weight, sources in _matrices_of_a_step(model)
        if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and type(weight) in (Tensor, nn.Parameter)
    ]
    room = memory_bytes()
    if room is not None and sum(weight.nbytes for weight, _ in wanted) + bytes_in_order() <= room // 4:
        for weight, sources in wanted:
            keep_in_order(weight, sources)


def _matrices_of_a_step(model: Transformer) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The matrices that a step of decoding multiplies by, those that lie together as one, and the parameters that each
    consists of.
    """
    for layer in range(model.config.num_layers):
        block = model.block(layer)
        groups: list[Sequence[nn.Module]] = [(block.attention.query, block.attention.key, block.attention.value)]
        groups.append((block.attention.output,))
        if isinstance(block.ffn, FeedForward):
            groups.append((block.ffn.up,) if block.ffn.gate is None else (block.ffn.gate, block.ffn.up))
            groups.append((block.ffn.down,))
        for group in groups:
            for parts in [group] if joint(group) is not None else [[each] for each in group]:
                together = joint(parts)
                if type(together) is Linear:
                    yield together.weight, [part.weight for part in parts if isinstance(part, Linear)]
    if model.config.lm_head and model.score is None and not isinstance(model.head, PackedLinear):
        yield model.head_weight_VD, [model.embedding.weight if model.head is None else model.head.weight]


def _with_weight(weight_NK: Tensor) -> Linear:
    """A linear layer that shares this weight."""
    with torch.device("meta"):
        layer = Linear(weight_NK.shape[1], weight_NK.shape[0], bias=False)
    layer.weight = nn.Parameter(weight_NK.detach(), requires_grad=False)
    return layer
