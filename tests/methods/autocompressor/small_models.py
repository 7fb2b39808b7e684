"""Small random models that compress."""

from __future__ import annotations

from typing import Any

import torch

from lmlab.models import ModelConfig, Transformer

SIZES = {"vocab_size": 61, "num_layers": 2, "d_model": 32, "num_heads": 4, "max_seq_len": 48, "num_kv_heads": 2}
FEATURES: dict[str, dict[str, Any]] = {
    "llama": {"d_ff": 72},
    "gpt2": {"d_ff": 80, "positions": "learned", "norm": "layernorm", "qkv_bias": True, "num_kv_heads": 4},
    "olmoe": {
        "qk_norm": "full",
        "tie_embeddings": False,
        "ffn": "moe",
        "moe": {"num_experts": 8, "top_k": 3, "expert_hidden_size": 24},
    },
    "qwen3": {"head_dim": 12, "d_ff": 72, "qk_norm": "head", "tie_embeddings": False, "rope_theta": 50_000.0},
    "phi": {
        "positions": "rotary",
        "partial_rotary_factor": 0.5,
        "norm": "layernorm",
        "norm_bias": True,
        "qkv_bias": True,
        "parallel_residual": True,
        "shared_norm": True,
    },
    "no positions": {"positions": "none"},
    "sliding": {"attention": ("sliding", "full"), "sliding_window": 6, "attention_soft_cap": 20.0},
}


def random_model(kind: str = "llama", seed: int = 1, **changes: Any) -> Transformer:
    """A model whose every parameter is far from its initial value."""
    model = Transformer(ModelConfig(**{**SIZES, **FEATURES[kind], **changes})).initialize(seed).eval()
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model
