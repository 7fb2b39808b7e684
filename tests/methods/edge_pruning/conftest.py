from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.methods.edge_pruning import (
    CircuitGraph,
    Counterfactuals,
    GraphOptions,
    MaskedModel,
    TracrProgram,
    load_tracr,
    make_examples,
)
from lmlab.methods.edge_pruning.examples.tracr import EMBEDDINGS
from lmlab.models import ModelConfig, Transformer

GPT2 = {
    "norm": "layernorm",
    "positions": "learned",
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "ffn_bias": True, "norm_bias": True},
    "llama": {"num_kv_heads": 2},
    "qwen3": {"num_kv_heads": 2, "head_dim": 12, "qk_norm": "head", "tie_embeddings": False},
    "olmo2": {"num_kv_heads": 2, "qk_norm": "full", "norm_position": "reordered", "tie_embeddings": False},
    "olmoe": {
        "num_kv_heads": 2,
        "qk_norm": "full",
        "tie_embeddings": False,
        "ffn": "moe",
        "moe": {"num_experts": 8, "top_k": 3, "expert_hidden_size": 24},
    },
    "shared_expert": {
        "ffn": "moe",
        "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 24, "num_shared_experts": 1},
    },
    # sub-layers side by side (GPT-NeoX), with one norm (Phi-2); norms before and after (Gemma 2); factors (Granite)
    "neox": {**GPT2, "ffn_bias": True, "norm_bias": True, "parallel_residual": True},
    "phi": {**GPT2, "norm_bias": True, "parallel_residual": True, "shared_norm": True, "partial_rotary_factor": 0.5}
    | {"positions": "rotary"},
    "gemma2": {
        "num_kv_heads": 2,
        "norm_position": "both",
        "norm_offset": True,
        "embedding_scale": 5.0,
        "attention": ("sliding", "full"),
        "sliding_window": 4,
        "attention_soft_cap": 8.0,
        "logit_soft_cap": 9.0,
    },
    "granite": {
        "num_kv_heads": 2,
        "residual_multiplier": 0.4,
        "embedding_scale": 3.0,
        "logit_scale": 0.5,
        "attention_scale": 0.2,
    },
    "granite_moe": {
        "residual_multiplier": 0.4,
        "ffn": "moe",
        "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 24},
    },
    "no_norm": {**GPT2, "norm": "none", "ffn_bias": True, "causal": False, "activation": "relu", "head_dim": 5},
}


@pytest.fixture
def network() -> Callable[..., Transformer]:
    """A small model of a family with weights far from their initial values, in fp64."""

    def make(kind: str, **changes: Any) -> Transformer:
        sizes = {"vocab_size": 61, "num_layers": 2, "d_model": 32, "num_heads": 4, "max_seq_len": 48, "d_ff": 72}
        model = Transformer(ModelConfig(**{**sizes, **FAMILIES[kind], **changes})).initialize(1).double().eval()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
        return model

    return make


@pytest.fixture
def task_of() -> Callable[..., Counterfactuals]:
    """A task of random tokens on a model."""

    def make(
        model: Transformer, ablation: Any = "interchange", count: int = 6, length: int = 7, **options: Any
    ) -> Counterfactuals:
        generator = torch.Generator().manual_seed(3)
        clean, corrupted = torch.randint(0, 61, (2, count, length), generator=generator).tolist()
        answers, distractors = torch.randint(0, 61, (2, count), generator=generator).tolist()
        examples = make_examples(clean, corrupted, [[length - 3, length - 1]] * count, answers, distractors)
        return Counterfactuals(
            MaskedModel(model, CircuitGraph(model.config, GraphOptions(**options))), examples, ablation, batch_size=4
        )

    return make


@pytest.fixture
def program() -> Callable[[str], TracrProgram]:
    """A compiled program of the shared data."""

    def read(name: str) -> TracrProgram:
        folder = Path(os.environ.get("LMLAB_SHARED", "../shared")) / "data" / "tracr" / name
        if not folder.exists():
            pytest.skip(f"{folder} is not there (LMLAB_SHARED)")
        return load_tracr(folder)

    return read


@pytest.fixture
def tracr_task(program: Callable[[str], TracrProgram]) -> Callable[..., tuple[TracrProgram, Counterfactuals]]:
    """A compiled program and its task."""

    def make(name: str, ablation: Any = "zero") -> tuple[TracrProgram, Counterfactuals]:
        read = program(name)
        graph = CircuitGraph(read.model.config, embedding_names=EMBEDDINGS)
        return read, Counterfactuals(MaskedModel(read.model, graph), read.examples, ablation, batch_size=256)

    return make
