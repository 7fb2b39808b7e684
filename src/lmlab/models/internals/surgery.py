"""Parts of a block by themselves, for methods that feed each part another input or take its outputs apart, as circuits
do.

Together they give what `Block.forward` gives: the residual stream plus `write_attention(block, heads(block, x, ...))`,
plus `feed_forward` of that, where norms stand before or on the way out of each sub-layer.

Shapes: B batch, T tokens, D model width, N query heads, K key-value heads, H width of a head, E experts.
"""

from __future__ import annotations

from torch import Tensor

from lmlab.models.attention.attention import AttentionContext
from lmlab.models.block import Block
from lmlab.models.internals.parts import part
from lmlab.models.layers.norm import norm_factor
from lmlab.models.moe.layer import MoE
from lmlab.models.moe.router import RouterOutput


@part
def heads(
    block: Block, query: Tensor, context: AttentionContext, key: Tensor | None = None, value: Tensor | None = None
) -> Tensor:
    """What each head gathers, [B, T, N, H], when it reads these in place of one residual stream.

    Arguments:
        query: [B, T, D] for all heads, or [B, T, N, D] with an input for each.
        key, value: [B, T, D], or [B, T, K, D] with an input for each key-value head; by default `query` for all three.
    """

    def read(x: Tensor | None) -> Tensor | None:
        return None if x is None else block.norm_if("pre", block.attention_norm, x)

    return block.attention.heads(block.norm_if("pre", block.attention_norm, query), context, read(key), read(value))


@part
def merge_heads(block: Block, heads_BTNH: Tensor) -> Tensor:
    """The attention's output, [B, T, D], before a norm on the way out."""
    out_BTD: Tensor = block.attention.output(heads_BTNH.flatten(2))
    return out_BTD


@part
def write_attention(block: Block, heads_BTNH: Tensor) -> Tensor:
    """What the attention adds to the residual stream, [B, T, D]."""
    out_BTD: Tensor = block.attention.output(heads_BTNH.flatten(2))
    return block.norm_if("reordered", block.attention_norm, out_BTD)


@part
def write_heads(block: Block, heads_BTNH: Tensor, bias: bool = False) -> Tensor:
    """What each head adds to the residual stream, [B, T, N, D]; with a norm on the way out, up to that norm's scale,
    which all heads share.

    Arguments:
        bias: give each head an equal share of the output matrix's bias.
    """
    out_BTND = block.attention.head_outputs(heads_BTNH)
    if block.norm_position == "reordered":
        # of the norm only its weight acts on each head alone; the scale depends on their sum
        return out_BTND * norm_factor(block.attention_norm).to(out_BTND.dtype)
    if bias and block.attention.output.bias is not None:
        return out_BTND + block.attention.output.bias / out_BTND.shape[2]
    return out_BTND


@part
def feed_forward(block: Block, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, RouterOutput | None]:
    """What the feed-forward network adds to the residual stream when it reads x, [B, T, D], and what a router
    decided.
    """
    written_BTD, routed = block.feed_forward(block.norm_if("pre", block.norm_of_ffn, x_BTD), context)
    return block.norm_if("reordered", block.norm_of_ffn, written_BTD), routed


@part
def expert_outputs(block: Block, x_BTD: Tensor) -> Tensor:
    """What each expert of a mixture adds to the residual stream when it reads x, [B, T, E, D]."""
    # a norm on the way out acts on the sum of the experts, which has no shares
    assert isinstance(block.ffn, MoE) and block.norm_position != "reordered"
    return block.ffn.expert_outputs(block.norm_if("pre", block.norm_of_ffn, x_BTD))
