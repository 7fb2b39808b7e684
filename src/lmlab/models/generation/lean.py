"""A step of decoding with few operators, for a CPU.

To give each row one token is little arithmetic: what a layer costs beyond reading its weights is the number of
operators and the Python between them. This calls the same modules as `Transformer.forward`, in the same order and with
the same rounding, on matrices [R, D], without what only other passes need: listeners, packed documents, gradients, a
prefix. So adapters, quantized layers and experts are what they are there.

Shapes: R rows, D model width, N query heads, K key-value heads, H width of a head, S keys, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmlab.models.attention.attention import Attention
from lmlab.models.attention.backends import one_query
from lmlab.models.attention.cache import KVCache
from lmlab.models.attention.rope import Table, apply_rotary, rotary_table
from lmlab.models.attention.visibility import Visibility
from lmlab.models.block import Block
from lmlab.models.config import ModelConfig
from lmlab.models.layers.feed_forward import FeedForward, gate_product
from lmlab.models.moe.layer import MoE
from lmlab.models.transformer import Transformer

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def can_be_lean(model: Transformer, cache: KVCache) -> bool:
    """Whether a step on this cache can be taken so: on a CPU, with plain modules (no hooks, not compiled, not spread
    over processes), where nothing but the cache's own slots is read and rotations do not depend on the text's length.
    """
    config = model.config
    scaling = config.rope_scaling
    plain = model.embedding.weight.device.type == "cpu" and model.attention_backend == "auto" and model.spread is None
    by_length = scaling is not None and scaling.depends_on_length
    if not plain or by_length or cache.prefix is not None or cache.memory is not None or not config.lm_head:
        return False
    return model.score is None and _is_plain(model, Transformer) and all(_is_plain_block(each) for each in model.blocks)


def _is_plain_block(block: nn.Module) -> bool:
    assert isinstance(block, Block)
    parts = _is_plain(block, Block) and _is_plain(block.attention, Attention)
    return parts and (_is_plain(block.ffn, FeedForward) or isinstance(block.ffn, MoE))


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `forward` can be called by itself: who wraps a module gives it hooks, another class, or compiles it."""
    wrapped = any(getattr(module, name) for name in _HOOKS) or module._compiled_call_impl is not None
    return type(module) is kind and not wrapped


class LeanStep:
    """One further token for every row of a cache, to which keys and values are added as the model adds them.

    Arguments:
        model: in evaluation mode, where `can_be_lean`.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._blocks = [model.block(layer) for layer in range(model.config.num_layers)]

    def run(self, ids_R1: Tensor, cache: KVCache) -> Tensor:
        """The logits [R, V] after these tokens, in fp32.

        Raises:
            ValueError: the cache is full, or a learned table has no further position.
        """
        model, config = self._model, self._model.config
        cache.extend(1)
        position_ids_R1, visibility = cache.positions(1), cache.visibility(1)
        x_R1D = model.enter(ids_R1, position_ids_R1)
        pass_ = _Pass(config, cache, visibility, position_ids_R1, x_R1D.dtype)
        x_RD = x_R1D[:, 0]
        for block in self._blocks:
            x_RD = _run_block(block, x_RD, pass_)
        return model.read_out(x_RD).float()


class _Pass:
    """What all layers share: what their queries see, and their rotations."""

    def __init__(
        self, config: ModelConfig, cache: KVCache, visibility: Visibility, position_ids_R1: Tensor, dtype: torch.dtype
    ) -> None:
        self.cache, self._visibility = cache, visibility
        self.rotary: Table | None = None
        self.sliding_rotary: Table | None = None
        if config.positions == "rotary":
            self.rotary = self.sliding_rotary = _by_row(rotary_table(config, position_ids_R1, dtype))
            if config.sliding_rope_theta is not None and "sliding" in config.attention_kinds:
                self.sliding_rotary = _by_row(rotary_table(config, position_ids_R1, dtype, sliding=True))

    def seen(self, window: int | None) -> Visibility:
        """By a layer with this window."""
        return self._visibility if window is None else self._visibility.within(window, torch.device("cpu"))


def _by_row(table: Table) -> Table:
    """[R, 1, 1, W] to [R, 1, W]."""
    return table[0].squeeze(2), table[1].squeeze(2)


def _run_block(block: Block, x_RD: Tensor, pass_: _Pass) -> Tensor:
    """As `Block.forward`."""
    entered_RD = x_RD
    written_RD = _attention(block.attention, block.read(block.attention_norm, x_RD), pass_)
    x_RD = x_RD + block.written(written_RD, block.attention_norm, block.attention_out_norm)
    x_RD = block.norm_if("post", block.attention_norm, x_RD)
    norm = block.norm_of_ffn
    read_RD = block.read(norm, entered_RD if block.parallel else x_RD)
    x_RD = x_RD + block.written(_feed_forward(block.ffn, read_RD), norm, block.ffn_out_norm)
    return block.norm_if("post", norm, x_RD)


def _feed_forward(ffn: Any, x_RD: Tensor) -> Tensor:
    if isinstance(ffn, MoE):
        mixed: Tensor = ffn(x_RD[:, None])[0][:, 0]
        return mixed
    if ffn.gate is None:
        plain: Tensor = ffn.down.forward(ffn.hidden(x_RD))
        return plain
    gated: Tensor = ffn.down.forward(gate_product(ffn.gate.forward(x_RD), ffn.up.forward(x_RD), ffn.activation))
    return gated


def _attention(attention: Attention, x_RD: Tensor, pass_: _Pass) -> Tensor:
    """As `Attention.forward`."""
    heads, kv_heads, width = attention.num_heads, attention.num_kv_heads, attention.head_dim
    query, key, value = (each.forward(x_RD) for each in (attention.query, attention.key, attention.value))
    if attention.full_norm and attention.query_norm is not None and attention.key_norm is not None:
        query, key = attention.query_norm(query), attention.key_norm(key)
    if attention.clip is not None:
        query, key, value = (each.clamp(-attention.clip, attention.clip) for each in (query, key, value))
    q_RNH, k_RKH = query.view(-1, heads, width), key.view(-1, kv_heads, width)
    if attention.query_norm is not None and attention.key_norm is not None and not attention.full_norm:
        q_RNH, k_RKH = attention.query_norm(q_RNH), attention.key_norm(k_RKH)
    rotary = pass_.rotary if attention.window is None else pass_.sliding_rotary
    if rotary is not None and attention.rotates:
        both = apply_rotary(torch.cat((q_RNH, k_RKH), 1), rotary)  # together: half the operators
        q_RNH, k_RKH = both[:, :heads], both[:, heads:]
    if attention.query_scale is not None:
        q_RNH = q_RNH * attention.query_scale
    keys, values = pass_.cache.put_newest(attention.layer, k_RKH, value.view(-1, kv_heads, width))
    keys, values = keys.to(q_RNH.dtype), values.to(q_RNH.dtype)
    out = one_query(q_RNH[:, :, None], keys, values, pass_.seen(attention.window), attention.soft_cap)
    written: Tensor = attention.output.forward(out.reshape(len(x_RD), -1))
    return written
