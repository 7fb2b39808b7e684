"""Multi-head attention: grouped key-value heads, rotary positions, optional QK-norm, separate query, key and value inputs.

Shapes: B batch, T query tokens, S key tokens, D model width, N query heads, K key-value heads, H width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.models.cache import KVCache
from lmlab.models.config import ModelConfig
from lmlab.models.norm import make_norm
from lmlab.models.rope import apply_rotary


@dataclass(frozen=True)
class AttentionContext:
    """What all layers of one forward pass share.

    Attributes:
        mask_BTS: which keys a query may see, [B, 1, T, S] with True = attend; None means plain causal.
        rotary: cosines and sines for the tokens of this pass, None without rotary positions.
        cache: keys and values of earlier tokens.
    """

    mask_BTS: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    cache: KVCache | None = None


class Attention(nn.Module):
    """Causal self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        attention_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.d_model, attention_width, bias=config.qkv_bias)
        self.key = nn.Linear(config.d_model, kv_width, bias=config.qkv_bias)
        self.value = nn.Linear(config.d_model, kv_width, bias=config.qkv_bias)
        self.output = nn.Linear(attention_width, config.d_model, bias=config.attention_output_bias)
        self.query_norm = make_norm(config, config.head_dim) if config.qk_norm == "head" else None
        self.key_norm = make_norm(config, config.head_dim) if config.qk_norm == "head" else None
        self.group_size = config.num_heads // config.num_kv_heads

    def forward(self, query_BTD: Tensor, context: AttentionContext, key_BTD: Tensor | None = None, value_BTD: Tensor | None = None) -> Tensor:
        """Attend, with the query input also serving as key and value input unless those are given.

        Returns:
            the layer's output, [B, T, D].
        """
        q_BNTH = self._heads(self.query(query_BTD))
        k_BKTH = self._heads(self.key(query_BTD if key_BTD is None else key_BTD))
        v_BKTH = self._heads(self.value(query_BTD if value_BTD is None else value_BTD))
        if self.query_norm is not None and self.key_norm is not None:
            q_BNTH, k_BKTH = self.query_norm(q_BNTH), self.key_norm(k_BKTH)
        if context.rotary is not None:
            q_BNTH, k_BKTH = apply_rotary(q_BNTH, context.rotary), apply_rotary(k_BKTH, context.rotary)
        if context.cache is not None:
            k_BKTH, v_BKTH = context.cache.update(self.layer, k_BKTH, v_BKTH)
        out_BNTH = F.scaled_dot_product_attention(
            q_BNTH,
            k_BKTH.to(q_BNTH.dtype),
            v_BKTH.to(q_BNTH.dtype),
            attn_mask=context.mask_BTS,
            is_causal=context.mask_BTS is None,
            enable_gqa=self.group_size > 1,
        )
        return self.output(out_BNTH.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
