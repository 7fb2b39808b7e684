"""The description of a network by its features, with exact counts of parameters and arithmetic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config


class ModelConfig(Config):
    """A decoder-only transformer, described by features and not by family name.

    Sizes left out take the usual defaults: `num_kv_heads = num_heads`, `head_dim = d_model / num_heads`, and `d_ff` of
    4 `d_model`, or 8/3 `d_model` rounded up to a multiple of 64 for a gated feed-forward network.
    """

    vocab_size: PositiveInt
    num_layers: PositiveInt
    d_model: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    d_ff: PositiveInt
    max_seq_len: PositiveInt = 2048
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: PositiveFloat = 1e-5
    qk_norm: Literal["none", "head"] = "none"
    positions: Literal["rotary", "learned", "none"] = "rotary"
    rope_theta: PositiveFloat = 10_000.0
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    attention_output_bias: bool = False
    ffn_bias: bool = False
    norm_bias: bool = False
    tie_embeddings: bool = True
    init: Literal["normal", "depth_scaled"] = "depth_scaled"
    init_std: PositiveFloat = Field(default=0.02, le=1.0)

    @model_validator(mode="before")
    @classmethod
    def _fill_sizes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        width, heads = data.get("d_model"), data.get("num_heads")
        if isinstance(heads, int) and data.get("num_kv_heads") is None:
            data["num_kv_heads"] = heads
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and data.get("head_dim") is None:
            if width % heads:
                raise ValueError(f"d_model {width} is not a multiple of num_heads {heads}; give head_dim to choose another width of a head.")
            data["head_dim"] = width // heads
        if isinstance(width, int) and data.get("d_ff") is None:
            data["d_ff"] = -(-8 * width // 3 // 64) * 64 if data.get("gated", True) else 4 * width
        return data

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}.")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}.")
        if self.norm == "rmsnorm" and self.norm_bias:
            raise ValueError("rmsnorm has no bias; set norm_bias to false, or norm to layernorm.")
        return self

    def num_parameters(self, embedding: bool = True) -> int:
        """The number of parameters; `embedding=False` leaves out the input and position tables (and a tied head with them)."""
        d, attention, kv = self.d_model, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = d * (2 if self.norm_bias else 1)
        layer = 2 * norm + d * (attention + 2 * kv) + attention * d + (3 if self.gated else 2) * d * self.d_ff
        layer += (attention + 2 * kv) * self.qkv_bias + d * self.attention_output_bias
        layer += (self.d_ff * (2 if self.gated else 1) + d) * self.ffn_bias
        layer += 2 * self.head_dim * (self.qk_norm == "head")
        total = self.num_layers * layer + norm + (0 if self.tie_embeddings else self.vocab_size * d)
        if embedding:
            total += self.vocab_size * d + (self.max_seq_len * d if self.positions == "learned" else 0)
        return total

    def flops_per_token(self, seq_len: int, backward: bool = True) -> float:
        """Floating-point operations of one token in a sequence of `seq_len`: matrix products and causal attention, the head included.

        A multiplication and an addition count as two; the backward pass costs twice the forward one (Kaplan et al. 2020, table 1, with the
        attention term halved because a causal query meets half the keys).
        """
        d, attention, kv = self.d_model, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = d * (attention + 2 * kv) + attention * d + (3 if self.gated else 2) * d * self.d_ff
        forward = 2 * (self.num_layers * layer + d * self.vocab_size) + 2 * self.num_layers * attention * seq_len
        return float(forward * (3 if backward else 1))
