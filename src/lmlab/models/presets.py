"""Published shapes, by name: the beginnings of a `ModelConfig`."""

from __future__ import annotations

from typing import Any

_LLAMA = {"norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True}
_GPT = {
    "norm": "layernorm",
    "norm_bias": True,
    "positions": "learned",
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
    "ffn_bias": True,
    "num_layers": 12,
    "d_model": 768,
    "num_heads": 12,
    "d_ff": 3072,
}

_OLMOE = {
    **_LLAMA,
    "vocab_size": 50_304,
    "num_layers": 16,
    "d_model": 2048,
    "num_heads": 16,
    "max_seq_len": 4096,
    "qk_norm": "full",
    "tie_embeddings": False,
    "init": "truncated_normal",
    "output_init": "same",
}
# Of bytes and a few marks, in a multiple of eight.
_OLMOE_TINY = {**_OLMOE, "vocab_size": 264, "num_layers": 4, "d_model": 128, "num_heads": 4, "max_seq_len": 512}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT, "vocab_size": 50_257, "max_seq_len": 1024, "activation": "gelu_tanh"},
    "opt-125m": {**_GPT, "vocab_size": 50_272, "max_seq_len": 2048, "position_offset": 2, "activation": "relu"},
    "SmolLM2-135M": {
        **_LLAMA,
        "vocab_size": 49_152,
        "num_layers": 30,
        "d_model": 576,
        "num_heads": 9,
        "num_kv_heads": 3,
        "d_ff": 1536,
        "max_seq_len": 8192,
        "rope_theta": 100_000.0,
    },
    "Llama-3.2-1B": {
        **_LLAMA,
        "vocab_size": 128_256,
        "num_layers": 16,
        "d_model": 2048,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 64,
        "d_ff": 8192,
        "max_seq_len": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "type": "llama3",
            "factor": 32.0,
            "original_max_seq_len": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    },
    "Qwen3-0.6B": {
        **_LLAMA,
        "vocab_size": 151_936,
        "num_layers": 28,
        "d_model": 1024,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "d_ff": 3072,
        "max_seq_len": 40_960,
        "rope_theta": 1_000_000.0,
        "norm_eps": 1e-6,
        "qk_norm": "head",
    },
    "OLMo-2-1B": {
        **_LLAMA,
        "vocab_size": 100_352,
        "num_layers": 16,
        "d_model": 2048,
        "num_heads": 16,
        "d_ff": 8192,
        "max_seq_len": 4096,
        "rope_theta": 500_000.0,
        "norm_eps": 1e-6,
        "norm_position": "reordered",
        "qk_norm": "full",
        "tie_embeddings": False,
    },
    "OLMoE-1B-7B": {
        **_OLMOE,
        "ffn": "moe",
        "moe": {
            "num_experts": 64,
            "top_k": 8,
            "expert_hidden_size": 1024,
            "load_balancing_loss": {"coef": 0.01, "granularity": "micro_batch", "convention": "olmoe"},
            "router_z_loss": {"coef": 0.001, "divide_by_top_k": True},
        },
    },
    "OLMo-1B-dense-twin": {**_OLMOE, "d_ff": 8192},
    "OLMoE-tiny": {**_OLMOE_TINY, "ffn": "moe", "moe": {"num_experts": 16, "top_k": 4, "expert_hidden_size": 64}},
    "OLMoE-tiny-dense-twin": {**_OLMOE_TINY, "d_ff": 256},
}
"""Published shapes, by the names of their checkpoints; a dense twin has the active width of its sparse model.
Those called tiny read bytes.
"""
