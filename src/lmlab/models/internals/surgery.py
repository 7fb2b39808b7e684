"""Parts of a block by themselves, for methods that feed each part another input or take its outputs apart, as circuits
do.

Together they give what `Block.forward` gives: the residual stream plus `write_attention(block, heads(block, x, ...))`,
plus `feed_forward` of that (or, where sub-layers stand side by side, of the stream itself), where norms stand before
each sub-layer, on its way out, or in both places.

With `straight` the numbers are the same, but gradients pass through norms with their scale held fast, through attention
with its pattern held fast, and through feed-forward networks by `FeedForward.straight`.

Shapes: B batch, T tokens, D model width, N query heads, K key-value heads, H width of a head, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from lmlab.models.attention.attention import AttentionContext
from lmlab.models.block import Block
from lmlab.models.internals.parts import part
from lmlab.models.internals.taps import Taps
from lmlab.models.layers.feed_forward import FeedForward
from lmlab.models.layers.norm import frozen_norm, norm_factor
from lmlab.models.lora.adapt import full_weight
from lmlab.models.moe.layer import MoE
from lmlab.models.moe.router import RouterOutput


@part
def heads(
    block: Block,
    query: Tensor,
    context: AttentionContext,
    key: Tensor | None = None,
    value: Tensor | None = None,
    straight: bool = False,
) -> Tensor:
    """What each head gathers, [B, T, N, H], when it reads these in place of one residual stream.

    Arguments:
        query: [B, T, D] for all heads, or [B, T, N, D] with an input for each.
        key, value: [B, T, D], or [B, T, K, D] with an input for each key-value head; by default `query` for all three.
    """

    if straight:
        context = replace(context, taps=_frozen_pattern(block))

    def read(x: Tensor | None) -> Tensor | None:
        return None if x is None else _read(block, block.attention_norm, x, straight)

    read_query = _read(block, block.attention_norm, query, straight)
    return block.attention.heads(read_query, context, read(key), read(value))


def _read(block: Block, norm: nn.Module, x: Tensor, straight: bool) -> Tensor:
    """What a sub-layer reads, `Block.read`."""
    return frozen_norm(norm, x) if straight and block.norm_position in ("pre", "both") else block.read(norm, x)


def _norm_on_the_way_out(block: Block, norm: nn.Module, out_norm: nn.Module | None) -> nn.Module | None:
    """Through which norm a sub-layer's output goes before it is added, if through any."""
    return norm if out_norm is None and block.norm_position == "reordered" else out_norm


def _add(block: Block, norm: nn.Module, out_norm: nn.Module | None, x: Tensor, straight: bool) -> Tensor:
    """What a sub-layer adds, `Block.written`."""
    own = _norm_on_the_way_out(block, norm, out_norm)
    if not straight or own is None:
        return block.written(x, norm, out_norm)
    return frozen_norm(own, x) * block.multiplier


def _frozen_pattern(block: Block) -> Taps:
    taps = Taps({f"blocks.{block.layer}.attention.pattern": lambda pattern: pattern.detach()})
    taps.bind(block.layer + 1)
    return taps


@part
def merge_heads(block: Block, heads_BTNH: Tensor) -> Tensor:
    """The attention's output, [B, T, D], before a norm on the way out."""
    out_BTD: Tensor = block.attention.output(heads_BTNH.flatten(2))
    return out_BTD


@part
def write_attention(block: Block, heads_BTNH: Tensor, straight: bool = False) -> Tensor:
    """What the attention adds to the residual stream, [B, T, D]."""
    out_BTD: Tensor = block.attention.output(heads_BTNH.flatten(2))
    return _add(block, block.attention_norm, block.attention_out_norm, out_BTD, straight)


@part
def write_heads(block: Block, heads_BTNH: Tensor, bias: bool = False) -> Tensor:
    """What each head adds to the residual stream, [B, T, N, D]; with a norm on the way out, up to that norm's scale,
    which all heads share.

    Arguments:
        bias: give each head an equal share of the output matrix's bias.
    """
    out_BTND = block.attention.head_outputs(heads_BTNH)
    norm = _norm_on_the_way_out(block, block.attention_norm, block.attention_out_norm)
    if norm is not None:
        # of the norm only its weight acts on each head alone; the scale depends on their sum
        out_BTND = out_BTND * norm_factor(norm).to(out_BTND.dtype)
    elif bias and block.attention.output.bias is not None:
        out_BTND = out_BTND + block.attention.output.bias / out_BTND.shape[2]
    return out_BTND if block.multiplier == 1 else out_BTND * block.multiplier


@part
def feed_forward(
    block: Block, x_BTD: Tensor, context: AttentionContext, straight: bool = False
) -> tuple[Tensor, RouterOutput | None]:
    """What the feed-forward network adds to the residual stream when it reads x, [B, T, D], and what a router
    decided.
    """
    read_BTD = _read(block, block.norm_of_ffn, x_BTD, straight)
    if straight:
        assert isinstance(block.ffn, FeedForward)
        written_BTD, routed = block.ffn.straight(read_BTD), None
    else:
        written_BTD, routed = block.feed_forward(read_BTD, context)
    return _add(block, block.norm_of_ffn, block.ffn_out_norm, written_BTD, straight), routed


@part
def expert_outputs(block: Block, x_BTD: Tensor) -> Tensor:
    """What each expert of a mixture adds to the residual stream when it reads x, [B, T, E, D]."""
    # a norm on the way out acts on the sum of the experts, which has no shares
    assert isinstance(block.ffn, MoE) and block.norm_position == "pre"
    out_BTED = block.ffn.expert_outputs(block.read(block.norm_of_ffn, x_BTD))
    return out_BTED if block.multiplier == 1 else out_BTED * block.multiplier


@dataclass(frozen=True)
class HeadMaps:
    """A head as matrices that act on rows from the right: what it matches and what it moves.

    Attributes:
        query_DH, key_DH, value_DH: from what the layer reads to the head's query, key and value.
        query_H, key_H, value_H: their biases.
        output_HD: from what the head gathered to what it writes.
    """

    query_DH: Tensor
    key_DH: Tensor
    value_DH: Tensor
    query_H: Tensor
    key_H: Tensor
    value_H: Tensor
    output_HD: Tensor


def head_maps(block: Block) -> list[HeadMaps]:
    """The heads of a layer, each by itself; scores are a query times a key, over the root of the head's width, as the
    query's map already has it. What norms or rotations of queries and keys do is no part of them.
    """
    attention = block.attention
    width, shared = attention.head_dim, attention.num_heads // attention.num_kv_heads
    scale = (attention.query_scale or 1.0) / width**0.5

    def parts(linear: nn.Linear, number: int) -> tuple[Tensor, Tensor]:
        rows = slice(number * width, (number + 1) * width)
        weight = full_weight(linear).detach()[rows].T
        bias = weight.new_zeros(width) if linear.bias is None else linear.bias.detach()[rows]
        return weight, bias

    output_DNH = full_weight(attention.output).detach().unflatten(1, (attention.num_heads, width))
    found = []
    for head in range(attention.num_heads):
        (query, query_bias), (key, key_bias), (value, value_bias) = (
            parts(attention.query, head),
            parts(attention.key, head // shared),
            parts(attention.value, head // shared),
        )
        maps = HeadMaps(query * scale, key, value, query_bias * scale, key_bias, value_bias, output_DNH[:, head].T)
        found.append(maps)
    return found
