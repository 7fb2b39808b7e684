"""Multi-head attention: grouped key-value heads, rotary positions, QK-norm, separate query, key and value inputs.

Shapes: B batch, T query tokens, S key tokens, D model width, N query heads, K key-value heads, H width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmlab.models.attention.backends import Attend, Backend, attend, attend_with_pattern, attend_with_prefix
from lmlab.models.attention.cache import KVCache
from lmlab.models.attention.rope import Table, apply_rotary
from lmlab.models.attention.visibility import Visibility
from lmlab.models.config import ModelConfig
from lmlab.models.internals.taps import Taps
from lmlab.models.layers.linear import Linear
from lmlab.models.layers.norm import make_norm
from lmlab.models.lora.adapt import full_weight
from lmlab.models.memory.rows import Before


@dataclass(frozen=True)
class AttentionContext:
    """What all layers of one forward pass share.

    Attributes:
        visibility: which keys each query sees.
        rotary: cosines and sines for the tokens of this pass, None without rotary positions.
        sliding_rotary: those of layers with a sliding window, where they have their own.
        cache: keys and values of earlier tokens.
        backend: how attention is computed.
        taps: listeners on intermediates.
        positions_BT: where each token of this pass stands in its text.
        before: keys and values from outside, which stand before those of this pass and of the cache.
        attend: how queries meet keys; another one than `attend` where a text is spread over processes.
    """

    visibility: Visibility
    rotary: Table | None = None
    sliding_rotary: Table | None = None
    cache: KVCache | None = None
    backend: Backend = "auto"
    taps: Taps | None = None
    positions_BT: Tensor | None = None
    before: Before | None = None
    attend: Attend = attend

    def tap(self, layer: int, name: str, x: Tensor) -> Tensor:
        """Show an intermediate to its listeners."""
        return x if self.taps is None else self.taps(f"blocks.{layer}.{name}", x)

    def wants(self, layer: int, name: str) -> bool:
        """Whether anyone listens to an intermediate that is only made on demand."""
        return self.taps is not None and self.taps.wants(f"blocks.{layer}.{name}")


class Attention(nn.Module):
    """Causal self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.window = config.sliding_window if config.attention_kinds[layer] == "sliding" else None
        self.rotates = config.rotary_layers is None or config.rotary_layers[layer]
        self.soft_cap, self.clip = config.attention_soft_cap, config.clip_qkv
        # every way to compute attention divides by the root of the head's width; queries carry what differs
        self.query_scale = None if config.attention_scale is None else config.attention_scale * config.head_dim**0.5
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.d_model, width, bias=config.qkv_bias)
        self.key = Linear(config.d_model, kv_width, bias=config.qkv_bias)
        self.value = Linear(config.d_model, kv_width, bias=config.qkv_bias)
        self.output = Linear(width, config.d_model, bias=config.attention_output_bias)
        self.full_norm = config.qk_norm == "full"
        self.query_norm = self.key_norm = None
        if config.qk_norm != "none":
            self.query_norm = make_norm(config, width if self.full_norm else config.head_dim)
            self.key_norm = make_norm(config, kv_width if self.full_norm else config.head_dim)

    def forward(
        self, query: Tensor, context: AttentionContext, key: Tensor | None = None, value: Tensor | None = None
    ) -> Tensor:
        """Attend, with the query input also serving as key and value input unless those are given.

        Arguments:
            query: [B, T, D] for all heads, or [B, T, N, D] with an input for each.
            key, value: [B, T, D], or [B, T, K, D] with an input for each key-value head.

        Returns:
            the layer's output, [B, T, D].
        """
        heads_BTNH = self.heads(query, context, key, value)
        if context.wants(self.layer, "attention.head_outputs"):
            out_BTND = context.tap(self.layer, "attention.head_outputs", self.head_outputs(heads_BTNH))
            out_BTD = out_BTND.sum(2)
            return out_BTD if self.output.bias is None else out_BTD + self.output.bias
        return self.output(heads_BTNH.flatten(2))

    def heads(
        self, query: Tensor, context: AttentionContext, key: Tensor | None = None, value: Tensor | None = None
    ) -> Tensor:
        """What each head gathers, before the output matrix, [B, T, N, H]; arguments as in `forward`."""
        q_BNTH = self._project(self.query, self.query_norm, query, self.num_heads)
        k_BKTH = self._project(self.key, self.key_norm, query if key is None else key, self.num_kv_heads)
        v_BKTH = self._project(self.value, None, query if value is None else value, self.num_kv_heads)
        visibility, rotary = context.visibility, context.rotary
        if self.window is not None:
            rotary = context.sliding_rotary or rotary
        if context.before is not None:
            visibility = context.before.visibility(self.layer, self.window)
        elif self.window is not None:
            visibility = visibility.within(self.window, q_BNTH.device)
        if rotary is not None and self.rotates:
            q_BNTH, k_BKTH = apply_rotary(q_BNTH, rotary), apply_rotary(k_BKTH, rotary)
        if self.query_scale is not None:
            q_BNTH = q_BNTH * self.query_scale
        q_BNTH = context.tap(self.layer, "attention.query", q_BNTH)
        k_BKTH = context.tap(self.layer, "attention.key", k_BKTH)
        v_BKTH = context.tap(self.layer, "attention.value", v_BKTH)
        prefix = None
        if context.cache is not None:
            k_BKTH, v_BKTH = (x.to(q_BNTH.dtype) for x in context.cache.update(self.layer, k_BKTH, v_BKTH))
            prefix = context.cache.prefix
        if context.before is not None:
            k_BKTH, v_BKTH = context.before.put(self.layer, k_BKTH, v_BKTH)
        if context.wants(self.layer, "attention.pattern"):
            if prefix is not None:
                raise ValueError("the attention pattern cannot be tapped on a cache that shares a prefix")
            out_BTNH = attend_with_pattern(
                q_BNTH,
                k_BKTH,
                v_BKTH,
                visibility,
                lambda pattern: context.tap(self.layer, "attention.pattern", pattern),
                self.soft_cap,
            )
        elif prefix is not None:
            seen = prefix.seen_by(context.positions_BT, self.window)
            out_BTNH = attend_with_prefix(
                q_BNTH, k_BKTH, v_BKTH, *prefix.layer(self.layer), visibility, seen, self.soft_cap
            )
        else:
            out_BTNH = context.attend(q_BNTH, k_BKTH, v_BKTH, visibility, context.backend, self.soft_cap)
        return context.tap(self.layer, "attention.heads", out_BTNH)

    def head_outputs(self, heads_BTNH: Tensor) -> Tensor:
        """What each head writes to the residual stream, [B, T, N, D]; the output's bias is not part of it."""
        weight_DNH = full_weight(self.output).to(heads_BTNH.dtype).unflatten(1, (self.num_heads, self.head_dim))
        return torch.einsum("btnh,dnh->btnd", heads_BTNH, weight_DNH)

    def _project(self, linear: nn.Linear, norm: nn.Module | None, x: Tensor, heads: int) -> Tensor:
        """[B, T, D], or one input a head [B, T, heads, D], to [B, heads, T, H]."""
        if x.dim() == 3:
            flat = linear(x)
        else:
            if x.shape[2] != heads:
                raise ValueError(f"expected one input for each of {heads} heads, got {x.shape[2]}")
            weight_NHD = full_weight(linear).to(x.dtype).unflatten(0, (heads, self.head_dim))
            flat = torch.einsum("btnd,nhd->btnh", x, weight_NHD).flatten(2)
            flat = flat if linear.bias is None else flat + linear.bias
        if norm is not None and self.full_norm:
            flat = norm(flat)
        if self.clip is not None:
            flat = flat.clamp(-self.clip, self.clip)
        split = flat.unflatten(-1, (heads, self.head_dim))
        if norm is not None and not self.full_norm:
            split = norm(split)
        return split.transpose(1, 2)
