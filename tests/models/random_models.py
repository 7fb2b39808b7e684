"""Small random models of every family, for the tests of networks and their files."""

from __future__ import annotations

from typing import Any

import torch

from lmlab.models import ModelConfig, Transformer

SIZES = {"vocab_size": 61, "num_layers": 2, "d_model": 32, "num_heads": 4, "max_seq_len": 48}
GPT2_FEATURES = {
    "norm": "layernorm",
    "positions": "learned",
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
    "ffn_bias": True,
    "norm_bias": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2, "d_ff": 72},
    "qwen3": {
        "num_kv_heads": 2,
        "head_dim": 12,
        "d_ff": 72,
        "qk_norm": "head",
        "tie_embeddings": False,
        "rope_theta": 50_000.0,
        "norm_eps": 1e-6,
    },
    "qwen2": {
        "num_kv_heads": 2,
        "d_ff": 72,
        "qkv_bias": True,
        "tie_embeddings": False,
        "rope_theta": 1e6,
        "norm_eps": 1e-6,
    },
    "olmo2": {
        "num_kv_heads": 2,
        "d_ff": 72,
        "qk_norm": "full",
        "norm_position": "reordered",
        "tie_embeddings": False,
        "norm_eps": 1e-6,
    },
    "olmoe": {
        "num_kv_heads": 2,
        "qk_norm": "full",
        "tie_embeddings": False,
        "ffn": "moe",
        "moe": {"num_experts": 8, "top_k": 3, "expert_hidden_size": 24},
    },
    "phi": {
        **GPT2_FEATURES,
        "positions": "rotary",
        "partial_rotary_factor": 0.5,
        "d_ff": 80,
        "num_kv_heads": 2,
        "parallel_residual": True,
        "shared_norm": True,
        "head_bias": True,
        "tie_embeddings": False,
    },
    "gpt2": {**GPT2_FEATURES, "d_ff": 80},
    "opt": {**GPT2_FEATURES, "d_ff": 80, "activation": "relu", "position_offset": 2},
    "no_family": {
        **GPT2_FEATURES,
        "positions": "none",
        "activation": "relu",
        "gated": True,
        "norm_bias": False,
        "tie_embeddings": False,
    },
}


def random_model(kind: str = "llama", seed: int = 1, **changes: Any) -> Transformer:
    """A small model whose every parameter, norms and biases included, is far from its initial value."""
    model = Transformer(ModelConfig(**{**SIZES, **CONFIGS[kind], **changes})).initialize(seed).eval()
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model
