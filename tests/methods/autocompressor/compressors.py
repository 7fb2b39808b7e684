"""Small compressors, with weights by a formula or drawn."""

from __future__ import annotations

import math
from typing import Any

import torch

from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig
from lmlab.models import ModelConfig, Transformer, named_tensors
from lmlab.models.formats.names import Layout
from lmlab.models.formats.settings import family_of

_OPT: dict[str, Any] = {
    "norm": "layernorm",
    "norm_bias": True,
    "positions": "learned",
    "position_offset": 2,
    "activation": "relu",
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
    "ffn_bias": True,
}
_MOE = {"num_experts": 4, "top_k": 2, "expert_hidden_size": 16}
_KINDS: dict[str, dict[str, Any]] = {
    "opt": _OPT | {"max_seq_len": 32},
    "gpt2": _OPT | {"max_seq_len": 32, "position_offset": 0, "activation": "gelu_tanh"},
    "llama": {"max_seq_len": 64, "norm_eps": 1e-6, "tie_embeddings": False},
    "gqa": {"max_seq_len": 64, "num_heads": 4, "num_kv_heads": 2, "qk_norm": "head"},
    "moe": {"max_seq_len": 64, "ffn": "moe", "moe": _MOE, "num_kv_heads": 1},
}


def shape(kind: str, **changes: Any) -> ModelConfig:
    base = {"vocab_size": 37, "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32, "init_std": 0.3}
    return ModelConfig(**(base | _KINDS[kind] | changes))


def small(kind: str = "llama", kappa: int = 3, accumulate: bool = True, **config: Any) -> AutoCompressor:
    """In fp64, so that what must be equal is equal to the last digits."""
    model = Transformer(shape(kind)).initialize(1).double()
    compressor = AutoCompressor(model, CompressorConfig(summary_length=kappa, accumulate=accumulate, **config))
    with torch.no_grad():
        compressor.summary_embedding_ND.normal_(0, 0.5, generator=torch.Generator().manual_seed(2))
    return compressor.eval()


def by_formula(kind: str, accumulate: bool = True) -> AutoCompressor:
    """Weights as the reference's were filled: sorted by name, 0.2 sin(0.7 j + 1.3 k), and 1 more in norms."""
    model = Transformer(shape(kind))
    family = family_of(model.config, kind)
    assert family is not None
    layout = Layout(model.config, family, {name: tuple(each.shape) for name, each in named_tensors(model).items()})
    shapes = {**layout.shapes, "embed_summary.weight": (3, 16)}
    values = {}
    for k, name in enumerate(sorted(shapes)):
        j = torch.arange(math.prod(shapes[name]), dtype=torch.float64)
        value = 0.2 * torch.sin(0.7 * j + 1.3 * k) + float("norm" in name and name.endswith("weight"))
        values[name] = value.reshape(shapes[name])
    if kind == "opt":
        values["model.decoder.embed_positions.weight"][1] = 0
    compressor = AutoCompressor(model.double(), CompressorConfig(summary_length=3, accumulate=accumulate))
    model.load_state_dict({name: place.read(values.__getitem__) for name, place in layout.locations.items()})
    with torch.no_grad():
        compressor.summary_embedding_ND.copy_(values["embed_summary.weight"])
    return compressor.eval()
