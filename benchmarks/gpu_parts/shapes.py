"""The models that are measured, and the same in `transformers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmlab.models import ModelConfig, Transformer

_TINY = {"vocab_size": 512, "num_layers": 2, "d_model": 64, "num_heads": 4, "num_kv_heads": 2, "d_ff": 192}
_LLAMA_3B = {"preset": "Llama-3.2-1B", "num_layers": 28, "d_model": 3072, "num_heads": 24, "head_dim": 128}
_SHAPES: dict[str, dict[str, Any]] = {
    "135M": {"preset": "SmolLM2-135M"},
    "1B": {"preset": "Llama-3.2-1B"},
    "3B": _LLAMA_3B,
}


def shape(name: str, tiny: bool = False, **changes: Any) -> ModelConfig:
    """The configuration of SmolLM2-135M, Llama-3.2-1B or Llama-3.2-3B by its size; or a small one in its place."""
    settings = {**_TINY, "max_seq_len": 8192} if tiny else dict(_SHAPES[name])
    settings["rope_scaling"] = None  # so that the peer's configuration is as plain
    return ModelConfig(**{**settings, **changes})


def make(config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Transformer:
    """A model with random weights, drawn on the device: billions of numbers take minutes on a processor."""
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device=device).to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02, generator=generator)
        for buffer in model.buffers():
            buffer.zero_()
    return model


def llama(config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """`transformers`' Llama of the same shape, by its attention through `scaled_dot_product_attention`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attn_implementation": "sdpa",
    }
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    return model.to(dtype)


def rows(config: ModelConfig, count: int, length: int, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Rows of random ids as the loader gives them: one document a row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (count, length + 1), generator=generator)
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
    batch["document_ids"] = torch.zeros_like(batch["input_ids"])
    return {key: value.to(device) for key, value in batch.items()}


def documents(count: int, length: int, mean: int, device: torch.device, seed: int = 0) -> Tensor:
    """Which document each token of packed rows belongs to, [count, length]; their sizes vary about `mean`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, length, generator=generator) < 1 / mean).cumsum(1).to(device)
