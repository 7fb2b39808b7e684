"""What architectures share with Llama: the tables that the rows of families begin with."""

from __future__ import annotations

from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import PLAIN, Settings

FEATURES: Settings = {
    **PLAIN,
    "norm": "rmsnorm",
    "norm_bias": False,
    "norm_position": "pre",
    "qk_norm": "none",
    "positions": "rotary",
    "gated": True,
    "ffn": "dense",
}
KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
# Those of transformers' LlamaConfig, which files may leave out.
DEFAULTS: Settings = {"norm_eps": 1e-6, "tie_embeddings": False, "max_seq_len": 2048}
NO_BIAS: Settings = {"qkv_bias": False, "attention_output_bias": False, "ffn_bias": False}
ATTENTION_BIAS = {"qkv_bias": "attention_bias", "attention_output_bias": "attention_bias"}
NAMES = {
    "embedding": "embed_tokens",
    "final_norm": "norm",
    "blocks.{i}.attention_norm": "layers.{i}.input_layernorm",
    "blocks.{i}.ffn_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.attention.query": "layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.key": "layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.value": "layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.output": "layers.{i}.self_attn.o_proj",
    "blocks.{i}.ffn.gate": "layers.{i}.mlp.gate_proj",
    "blocks.{i}.ffn.up": "layers.{i}.mlp.up_proj",
    "blocks.{i}.ffn.down": "layers.{i}.mlp.down_proj",
}
QK_NORM_NAMES = {
    "blocks.{i}.attention.query_norm": "layers.{i}.self_attn.q_norm",
    "blocks.{i}.attention.key_norm": "layers.{i}.self_attn.k_norm",
}
REORDERED_NAMES = {
    "blocks.{i}.attention_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.ffn_norm": "layers.{i}.post_feedforward_layernorm",
}


def without(table: Settings, *names: str) -> Settings:
    """A table without some of its entries: what a family does not fix, a key of its own may say."""
    return {key: value for key, value in table.items() if key not in names}


def whole_heads(config: ModelConfig) -> bool:
    """Whether the heads cut the width of the model evenly; their files have no key for another width of heads."""
    return config.head_dim * config.num_heads == config.d_model


def plain_heads(config: ModelConfig) -> bool:
    """`whole_heads`, each with keys and values of its own."""
    return whole_heads(config) and config.num_kv_heads == config.num_heads
